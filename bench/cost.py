"""How many requests to S3 a stored job costs, by kind, counted by a proxy in front of a real server.

Requests for models and inputs are not counted (the job has none), nor what a pod asks whether or not there is a job:
the probe at its start, and the sweep. The note of which jobs a pod holds is counted apart: it is one for all of them.
"""

from __future__ import annotations

import math
import re
import sys
import tempfile
import zlib
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.document import write_table
from tests.support.function_process import functions
from tests.support.processes import wait_until
from tests.support.proxy import HttpProxy
from tests.support.storage import running_s3_server

if TYPE_CHECKING:
    from tests.support.function_process import FunctionProcess
    from tests.support.proxy import Seen

BUCKET = "bench"
LEASE_SECONDS = 20
BEATS_PER_LEASE = 4
FIXED = 5
BLURS_TO_CALIBRATE = 10
WAYS = ("event", "asynchronous")

KINDS = (
    ("job.json", "PUT", r"/jobs/[^/]+/job\.json"),
    ("index entry", "PUT", r"/index/"),
    ("open mark", "PUT|DELETE", r"/open/"),
    ("job.json read", "GET", r"/jobs/[^/]+/job\.json"),
    ("records listed", "GET", r"prefix=[^&]*jobs%2F[0-9a-f]+%2F"),
    ("claim", "PUT", r"/jobs/[^/]+/attempt-\d+\.json"),
    ("beats", "PUT", r"/jobs/[^/]+/attempt-\d+\.beat"),
    ("outputs", "PUT", r"/outputs/"),
    ("manifest", "PUT", r"/jobs/[^/]+/result\.json"),
)
POD = ("notes of the pod", "PUT|DELETE", r"/held/")
NO_JOBS = r"prefix=[^&]*(open|webhooks%2Fdue)%2F|\.comfyfn-probe"


@dataclass(frozen=True)
class Cost:
    """One job that was run."""

    way: str
    seconds: float
    outputs: int
    requests: Counter[str]
    notes: int

    @property
    def most(self) -> int:
        """How many requests it may take: two for each interval between heartbeats that it is in."""
        intervals = math.ceil(self.seconds / (LEASE_SECONDS / BEATS_PER_LEASE))
        return FIXED + self.outputs + 2 * intervals


def kind_of(seen: Seen) -> str:
    """What a request is for; "" if it belongs to no job."""
    url = f"{seen.path}?{seen.query}"
    if re.search(NO_JOBS, url):
        return ""
    for name, methods, pattern in (*KINDS, POD):
        if re.fullmatch(methods, seen.method) and re.search(pattern, url):
            return name
    return f"{seen.method} {url}"


def workflow(blurs: int, colour: int) -> dict[str, Any]:
    """A graph that takes a time in proportion, in short nodes; the engine remembers nothing of another colour's."""
    graph: dict[str, Any] = {
        "0": {"class_type": "EmptyImage", "inputs": {"width": 1024, "height": 1024, "batch_size": 1, "color": colour}}
    }
    for number in range(1, blurs + 1):
        inputs = {"image": [str(number - 1), 0], "blur_radius": 31, "sigma": 10.0}
        graph[str(number)] = {"class_type": "ImageBlur", "inputs": inputs}
    graph["save"] = {"class_type": "SaveImage", "inputs": {"images": [str(blurs), 0], "filename_prefix": "a"}}
    return graph


def run(function: FunctionProcess, proxy: HttpProxy, way: str, name: str, blurs: int) -> Cost:
    """Run one job and count."""
    proxy.seen.clear()
    document = {"workflow": workflow(blurs, zlib.crc32(name.encode()) & 0xFFFFFF)}
    if way == "event":
        manifest = function.send_event(name, document).json["data"]
    else:
        path = f"/jobs/{function.post('/jobs', document).json['job_id']}"
        call = function.log_records  # the log tells of the end, which costs no request
        before = len(call("job ended"))
        wait_until(lambda: len(call("job ended")) > before, what="the job's end", timeout_seconds=600)
        wait_until(lambda: any(seen.method == "DELETE" for seen in proxy.seen), what="the job to be seen off")
        seen = list(proxy.seen)
        manifest = function.get(path).json["result"]
        proxy.seen[:] = seen
    if manifest["status"] != "completed":
        sys.exit(f"{name}: {manifest['error']}")
    kinds = Counter(kind for seen in proxy.seen if (kind := kind_of(seen)))
    notes = kinds.pop(POD[0], 0)
    return Cost(way, manifest["timings"]["total"], len(manifest["outputs"]), kinds, notes)


def to_table(costs: list[Cost]) -> str:
    """One column for each job."""
    kinds = [name for name, *_ in KINDS]
    kinds += sorted({kind for cost in costs for kind in cost.requests} - set(kinds))
    rows = [
        ["requests", *(f"{cost.way}, {cost.seconds:.1f} s" for cost in costs)],
        ["---"] * (len(costs) + 1),
        *([kind, *(str(cost.requests[kind] or "") for cost in costs)] for kind in kinds),
        ["**together**", *(f"**{cost.requests.total()}**" for cost in costs)],
        ["at most", *(str(cost.most) for cost in costs)],
        [POD[0], *(str(cost.notes or "") for cost in costs)],
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


@click.command()
@click.option("--seconds", default="1,60", show_default=True, help="How long the jobs take, about.")
@click.option("--write", is_flag=True, help="Put the table into docs/performance.md.")
def main(*, seconds: str, write: bool) -> None:
    """Measure, and print the table; a job that costs more than it may ends the benchmark with status 1."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "s3").mkdir()
        server = stack.enter_context(running_s3_server(folder / "s3"))
        client = server.make_client()
        stack.callback(client.close)
        client.create_bucket(Bucket=BUCKET)
        proxy = stack.enter_context(HttpProxy([server.endpoint_url]))
        start = stack.enter_context(functions(folder))
        urls = {
            f"{name}_URL": f"s3://{BUCKET}/{name.lower()}" for name in ("MODELS", "UPLOADS", "RESULTS", "WORKFLOWS")
        }
        environ = {**server.environ, **urls, "AWS_ENDPOINT_URL": proxy.url, "LEASE_SECONDS": str(LEASE_SECONDS)}
        function = start(**environ)
        run(function, proxy, "event", "first", 1)  # connections, the engine's nodes
        first = run(function, proxy, "event", "calibration", BLURS_TO_CALIBRATE)
        per_blur = first.seconds / BLURS_TO_CALIBRATE
        costs = [
            run(function, proxy, way, f"{way} {wanted}", max(1, round(float(wanted) / per_blur)))
            for way in WAYS
            for wanted in seconds.split(",")
        ]
    table = to_table(costs)
    click.echo(table)
    if write:
        write_table("bench-cost", table)
    sys.exit(any(cost.requests.total() > cost.most for cost in costs))


if __name__ == "__main__":
    main()
