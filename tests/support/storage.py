"""Fixtures and helpers: storage."""
