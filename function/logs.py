"""Log lines: JSON on stderr, one each, with the ids of the request and of the job that they are about."""

from __future__ import annotations

import logging
import logging.config
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_request_id: ContextVar[str] = ContextVar("request_id", default="")
_job_id: ContextVar[str] = ContextVar("job_id", default="")


def mark_request(request_id: str) -> None:
    """Mark every log line of this thread with the request's id until another one comes; "" ends that."""
    _request_id.set(request_id)


def current_request_id() -> str:
    """The request that this thread answers; "" if there is none."""
    return _request_id.get()


@contextmanager
def job_context(job_id: str) -> Iterator[None]:
    """Mark every log line of this thread with the job's id."""
    token = _job_id.set(job_id)
    try:
        yield
    finally:
        _job_id.reset(token)


def current_job_id() -> str:
    """The job that this thread works for; "" if there is none."""
    return _job_id.get()


class ContextFilter(logging.Filter):
    """Adds the ids of the current request and job to a line."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every line pass."""
        if request_id := _request_id.get():
            record.request_id = request_id
        if job_id := _job_id.get():
            record.job_id = job_id
        return True


def logging_config(level: str) -> dict[str, Any]:
    """The configuration of `logging.config` for the whole process, gunicorn's own lines included."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"context": {"()": ContextFilter}},
        "formatters": {
            "json": {
                "()": "pythonjsonlogger.json.JsonFormatter",
                "format": "{asctime}{levelname}{name}{message}",
                "style": "{",
                "rename_fields": {"asctime": "time", "levelname": "level", "name": "logger"},
            }
        },
        "handlers": {"stderr": {"class": "logging.StreamHandler", "filters": ["context"], "formatter": "json"}},
        "root": {"level": level, "handlers": ["stderr"]},
        "loggers": {"gunicorn.error": {"propagate": True}},
    }


def configure_logging(level: str) -> None:
    """Send every log line of the process to stderr as JSON."""
    logging.config.dictConfig(logging_config(level))
