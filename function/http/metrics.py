"""`GET /metrics`: everything that is counted, in Prometheus' text format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from function.gpu import update_metrics
from function.http.responses import to_response

if TYPE_CHECKING:
    from flask import Request, Response

    from function.lifecycle import Function


def show(function: Function, _request: Request) -> Response:
    """Every metric; gauges of queue and GPU are read now."""
    function.metrics.jobs_admitted.set(function.admission.depth)
    if function.has_engine:
        update_metrics(function.metrics, function.line.gpus.read())
    return to_response(generate_latest(function.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
