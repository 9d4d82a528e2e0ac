"""Configurations, and the commands that use them: fit, validate, test, analyze, export."""
