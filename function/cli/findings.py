"""What a check found, as one line for people."""

from __future__ import annotations

from dataclasses import dataclass

import click


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        level: `ok`, `warn` (works, but you may not want it so) or `fail`.
        subject: What was checked.
        text: What was found; for anything but `ok` also what to do.
    """

    level: str
    subject: str
    text: str


def show_finding(finding: Finding) -> None:
    """Print it, its level in colour."""
    colour = {"ok": "green", "warn": "yellow", "fail": "red"}[finding.level]
    click.echo(f"{click.style(f'{finding.level:4}', fg=colour)}  {finding.subject:16} {finding.text}")
