"""Fixtures and helpers: gpu."""
