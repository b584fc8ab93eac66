"""Benchmarks: each prints a table; numbers worth keeping go to docs/performance.md."""
