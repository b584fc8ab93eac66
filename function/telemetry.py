"""What the function measures of itself: metrics, and the progress of a job.

Metrics use Prometheus base units and live in a registry of their own, so that two functions in one process do not
share counters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    OnProgress: TypeAlias = Callable[["Progress"], None]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job has come; one model for all edges.

    Attributes:
        stage: `queued`, `models`, `inputs`, `executing` or `storing`.
        fraction: Done part of the stage, 0 to 1; never goes back within a stage.
        detail: What is being worked on, for people: a node's class, a file's name.
        node_id: The node of the workflow that runs, "" before the first one.
        class_type: Its class.
        step: Its steps that are done.
        steps: All its steps; 0 for a node without.
        nodes_done: Nodes that have run, were in the engine's cache, or turned out not to be needed.
        nodes_total: Nodes that the workflow's output nodes need, 0 before the workflow runs.
    """

    stage: str
    fraction: float
    detail: str = ""
    node_id: str = ""
    class_type: str = ""
    step: int = 0
    steps: int = 0
    nodes_done: int = 0
    nodes_total: int = 0


def ignore_progress(_progress: Progress) -> None:
    """The observer of a caller who doesn't watch."""


_SECONDS_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """Every metric of the function, on one registry."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"comfyfn_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"comfyfn_{name}", text, labels, registry=registry)

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(f"comfyfn_{name}", text, registry=registry, buckets=_SECONDS_BUCKETS)

        self.jobs = counter("jobs", "Jobs that ended, by outcome: completed or the error's code.", ("outcome",))
        self.jobs_refused = counter("jobs_refused", "Jobs that found ADMIT_LIMIT others in the pod and were sent away.")
        self.job_seconds = seconds("job_seconds", "Time of a job from admission to its answer.")
        self.webhooks = counter("webhooks", "Tries to deliver webhooks: delivered, failed or dead.", ("outcome",))
        self.jobs_admitted = gauge("jobs_admitted", "Jobs waiting or running in this pod.")
        self.cache_hits = counter("cache_hits", "Model files that were present.")
        self.cache_misses = counter("cache_misses", "Model files that had to be downloaded.")
        self.cache_evictions = counter("cache_evictions", "Model files removed to make room.")
        self.cache_downloaded_bytes = counter("cache_downloaded_bytes", "Bytes of model files downloaded.")
        self.cache_download_rate = gauge("cache_download_bytes_per_second", "Rate of the last finished model download.")
        self.cache_size_bytes = gauge("cache_size_bytes", "Bytes of cached and reserved model files.")
        self.cache_capacity_bytes = gauge("cache_capacity_bytes", "Capacity of the model cache; 0 is unlimited.")
        self.cache_wait_seconds = seconds("cache_wait_seconds", "Time a job waited for its models.")
        self.engine_ready = gauge("engine_ready", "1 while the engine answers.")
        self.engine_starts = counter("engine_starts", "Engine processes started.")
        self.engine_run_seconds = seconds("engine_run_seconds", "Time of a workflow in the engine.")
        self.gpu_lost = gauge("gpu_lost", "GPUs that are lost: the node needs a reset, which no restart brings.")
        self.gpu_memory_used_bytes = gauge("gpu_memory_used_bytes", "GPU memory in use.", ("gpu",))
        self.gpu_memory_total_bytes = gauge("gpu_memory_total_bytes", "GPU memory.", ("gpu",))
        self.gpu_utilization_ratio = gauge("gpu_utilization_ratio", "Part of the time a kernel ran, 0 to 1.", ("gpu",))
        self.gpu_temperature_celsius = gauge("gpu_temperature_celsius", "GPU temperature.", ("gpu",))
