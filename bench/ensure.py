"""How long `ensure` of one cached file takes, from the call to the job's turn and back: median of 1000."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from pathlib import Path

from function.models.cache import ModelCache
from function.models.references import ModelRef
from function.storage.local import LocalStore
from function.telemetry import Metrics
from function.transfer.reader import RangedFetcher

_TURNS = 1000
_FILES = 100


def main() -> None:
    """Print the median for a cache of a hundred files."""
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(f"file://{folder}/store")
        models = [ModelRef("checkpoints", f"{i}.safetensors", "4", "ckpt_name") for i in range(_FILES)]
        for model in models:
            store.put(model.key, b"weights")
        cache = ModelCache(
            Path(folder, "models"),
            store,
            fetcher=RangedFetcher(),
            capacity_bytes=0,
            metrics=Metrics(),
            revalidate_seconds=math.inf,
        )
        with cache.ensure(models, deadline=math.inf):
            pass
        print(f"ensure of one cached file among {_FILES}: {_median_seconds(cache, models[0]) * 1e6:.0f} us")  # noqa: T201  (its purpose)


def _median_seconds(cache: ModelCache, model: ModelRef) -> float:
    turns = []
    for _ in range(_TURNS):
        began = time.perf_counter()
        with cache.ensure([model], deadline=math.inf):
            pass
        turns.append(time.perf_counter() - began)
    return statistics.median(turns)


if __name__ == "__main__":
    main()
