"""Fixtures and helpers: function_process."""
