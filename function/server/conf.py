"""How gunicorn runs the function: one worker process, so one engine and one cache, with threads for the requests.

Read by gunicorn as `-c python:function.server.conf`; every name below is one of its settings.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from function.admission import MAX_STREAMS
from function.logs import logging_config
from function.process import engine_supervisor, settings

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter
    from gunicorn.http.message import Request
    from gunicorn.workers.base import Worker

_settings = settings()

# Threads beyond those that jobs and streams hold: for probes, metrics, refusals and downloads.
_SPARE_THREADS = 8
# Time for answers to leave after the last job has ended or has been stopped.
_ANSWER_SECONDS = 15

bind = f"{_settings.host}:{_settings.port}"
worker_class = "function.server.draining.DrainingWorker"
workers = 1
threads = _settings.admit_limit + MAX_STREAMS + _SPARE_THREADS
timeout = 0  # a job may hold its thread for minutes
graceful_timeout = _settings.drain_seconds + _ANSWER_SECONDS
keepalive = 95  # longer than the 90 s for which Knative's queue-proxy keeps idle connections, else it meets closed ones
preload_app = False
control_socket_disable = True  # it would be made in HOME, which a read-only pod does not have
worker_tmp_dir = None
logger_class = "function.server.errors_only.ErrorsOnly"
loglevel = _settings.log_level.lower()
logconfig_dict = logging_config(_settings.log_level)


_SWITCH_SECONDS = 0.0005

# gunicorn gives up a connection on which more than this is left unread, after having announced to keep it.
_SMALL_BODY_BYTES = 65_536


def pre_request(_worker: Worker, request: Request) -> None:
    """Announce that the connection ends, where a body is too large to be skipped if it is refused."""
    headers = dict(request.headers)
    length = headers.get("CONTENT-LENGTH", "")
    if "TRANSFER-ENCODING" in headers or (length.isdigit() and int(length) > _SMALL_BODY_BYTES):
        request.force_close()


def post_fork(_server: Arbiter, _worker: Worker) -> None:
    """Start the engine before the application is imported.

    The thread that starts it and asks whether it answers would wait 5 ms for the interpreter after each system call
    while another thread imports modules.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    engine_supervisor()
