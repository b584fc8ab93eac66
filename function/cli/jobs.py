"""`comfyfn jobs`: the jobs in RESULTS_URL, whichever pods run them."""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from function.building import build_jobs
from function.cli.run import progress_bar
from function.config import read_settings
from function.errors import JobMissingError
from function.http.jobs import to_document
from function.job import JOB_ID
from function.logs import configure_logging
from function.telemetry import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from function.jobs.service import Jobs, JobStatus

_PAGE = 100
_POLL_SECONDS = 0.5


@click.group(name="jobs")
def command() -> None:
    """Look after the jobs in RESULTS_URL.

    Settings come from the environment, as those of the function do.
    """


@command.command(name="ls")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="How many at most.")
@click.option("--status", "wanted", default="", help="Only queued, running, cancelling, completed or failed ones.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document per line.")
def list_jobs(limit: int, wanted: str, *, as_json: bool) -> None:
    """List jobs, the newest first."""
    with _opened() as jobs:
        for number, status in enumerate(_newest(jobs, wanted)):
            if number == limit:
                return
            click.echo(json.dumps(to_document(status)) if as_json else _line(status))


@command.command()
@click.argument("job_id", metavar="JOB")
def show(job_id: str) -> None:
    """Show one job: its status, how far it is, its result."""
    with _opened() as jobs:
        click.echo(json.dumps(to_document(jobs.status(_checked(job_id))), indent=2, ensure_ascii=False))


@command.command()
@click.argument("job_ids", metavar="JOB...", nargs=-1, required=True)
def cancel(job_ids: tuple[str, ...]) -> None:
    """End jobs: at once where no pod runs them, else at the pod's next sign of life."""
    with _opened() as jobs:
        for job_id in job_ids:
            jobs.records.cancel(_checked(job_id))
            click.echo(f"{job_id} {jobs.status(job_id).status}")


@command.command()
@click.argument("job_id", metavar="JOB")
def rerun(job_id: str) -> None:
    """Run a job again as a new one, and wait for its end.

    It is sent to DISPATCH_URL. Interrupted, the new job goes on: it is open, and whoever sweeps sends it again.
    """
    with _opened() as jobs:
        again = jobs.repeat(_checked(job_id))
        click.echo(f"{again} is the new job", err=True)
        status = _wait(jobs, again)
    click.echo(json.dumps(to_document(status), indent=2, ensure_ascii=False))
    if status.status != "completed":
        raise SystemExit(1)


def _wait(jobs: Jobs, job_id: str) -> JobStatus:
    with progress_bar("running") as follow:
        while True:
            status = jobs.status(job_id)
            follow(to_document(status))
            if status.result:
                return status
            time.sleep(_POLL_SECONDS)


def _newest(jobs: Jobs, wanted: str) -> Iterator[JobStatus]:
    after = ""
    while True:
        page, after = jobs.page(lambda _job_id: None, limit=_PAGE, after=after)
        yield from (status for status in page if wanted in {"", status.status})
        if not after:
            return


def _line(status: JobStatus) -> str:
    detail = ""
    if status.result:
        error = status.result.error
        detail = f"{error['code']}: {error['message']}" if error else f"{len(status.result.outputs)} files"
    elif status.progress:
        detail = f"{status.progress.stage} {status.progress.fraction:.0%} {status.progress.detail}".rstrip()
    elif status.queue_position is not None:
        detail = f"{status.queue_position} before it"
    return f"{status.job_id}  {status.created_at:%Y-%m-%d %H:%M:%S}  {status.status:10}  {detail}".rstrip()


def _checked(job_id: str) -> str:
    if not JOB_ID.fullmatch(job_id):
        raise JobMissingError(f"{job_id!r} is no job: ids have 32 hexadecimal digits; `comfyfn jobs ls` lists them")
    return job_id


@contextmanager
def _opened() -> Iterator[Jobs]:
    settings = read_settings(os.environ)
    configure_logging("WARNING")
    jobs = build_jobs(settings, metrics=Metrics())
    jobs.start(sweeping=False)
    try:
        yield jobs
    finally:
        jobs.stop()
