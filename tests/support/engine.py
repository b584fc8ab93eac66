"""Fixtures and helpers: engine."""
