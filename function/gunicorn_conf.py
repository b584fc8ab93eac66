"""How gunicorn runs the function: one worker process, so one engine and one cache, with threads for the requests.

Read by gunicorn as `-c python:function.gunicorn_conf`; every name below is one of its settings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from function.logs import logging_config
from function.worker import engine_supervisor, settings

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter
    from gunicorn.workers.base import Worker

_settings = settings()

# Threads beyond the jobs: probes, metrics, refusals and downloads are answered while every admitted job holds one.
_SPARE_THREADS = 8
# Time for answers to leave after the last job has ended or has been stopped.
_ANSWER_SECONDS = 15

bind = f"{_settings.host}:{_settings.port}"
worker_class = "function.gunicorn_worker.DrainingWorker"
workers = 1
threads = _settings.admit_limit + _SPARE_THREADS
timeout = 0  # a job may hold its thread for minutes
graceful_timeout = _settings.drain_seconds + _ANSWER_SECONDS
keepalive = 95  # longer than the 90 s for which Knative's queue-proxy keeps idle connections, else it meets closed ones
preload_app = False
control_socket_disable = True  # it would be made in HOME, which a read-only pod does not have
worker_tmp_dir = None
accesslog = None
loglevel = _settings.log_level.lower()
logconfig_dict = logging_config(_settings.log_level)


def post_fork(_server: Arbiter, _worker: Worker) -> None:
    """Start the engine before the application is imported."""
    engine_supervisor()
