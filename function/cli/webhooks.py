"""`comfyfn webhooks`: webhooks that were given up."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict

import click

from function.config import read_settings
from function.errors import JobMissingError
from function.storage import open_store
from function.webhooks.records import WebhookRecords


@click.group(name="webhooks")
def command() -> None:
    """Look at webhooks that were given up, and have them tried again.

    Settings come from the environment: give RESULTS_URL the function's value.
    """


@command.command(name="ls")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def list_dead(*, as_json: bool) -> None:
    """List the dead letters: job, time, tries and why."""
    letters = list(_records().dead_letters())
    if as_json:
        click.echo(json.dumps([asdict(letter) for letter in letters], indent=2))
        return
    for letter in letters:
        click.echo(f"{letter.job_id}  {letter.at}  tries: {letter.tries}  {letter.says}")
    click.echo(f"dead letters: {len(letters)}")


@command.command()
@click.argument("job_ids", metavar="[JOB_ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All of them.")
def retry(job_ids: tuple[str, ...], *, everything: bool) -> None:
    """Have webhooks tried again from the start; the next sweep of the function sends them.

    Exits with 1 if a JOB_ID has no dead letter.
    """
    if bool(job_ids) == everything:
        raise click.UsageError("name jobs, or --all")
    records = _records()
    failed = False
    for job_id in job_ids or dict.fromkeys(letter.job_id for letter in records.dead_letters()):
        try:
            records.revive(job_id)
            click.echo(f"{job_id}: will be sent again")
        except JobMissingError as error:
            click.echo(f"Error: {error.message}", err=True)
            failed = True
    sys.exit(int(failed))


def _records() -> WebhookRecords:
    return WebhookRecords(open_store(read_settings(os.environ).results_url))
