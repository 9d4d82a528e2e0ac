"""Pictures from finished runs."""
