"""Finished and unfinished runs side by side: tables, CSV, pictures and one page with all of it."""
