"""Bringing large objects to disk: ranged, resumable, verified, in a process of its own."""
