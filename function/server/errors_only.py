"""gunicorn's logger without its access log."""

from __future__ import annotations

from gunicorn.glogging import Logger


class ErrorsOnly(Logger):  # type: ignore[misc]  # gunicorn has no types
    """Writes what gunicorn has to say of itself.

    With a `logconfig_dict` gunicorn also puts a line together for each request, whoever reads it; each job has one.
    """

    @property
    def access_log_enabled(self) -> bool:
        """No."""
        return False
