"""`comfyfn run`: one workflow through a function, with its files at the end."""

from __future__ import annotations

import base64
import json
import mimetypes
import os
import sys
import tempfile
import uuid
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from function.cli.client import FunctionClient, to_job_event
from function.cli.local import local_function
from function.errors import InvalidRequestError
from function.workflow import check_relative, parse_workflow, set_input

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from function.workflow import Workflow

# What part of the whole bar each stage is worth.
_STAGES = {"queued": (0, 0), "models": (0, 30), "inputs": (30, 5), "executing": (35, 60), "storing": (95, 5)}


@click.command(name="run")
@click.argument("workflow", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--set", "settings", multiple=True, metavar="NODE.INPUT=VALUE", help="Change an input; @FILE: a file.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), default="out", show_default=True)
@click.option(
    "--url",
    default="http://127.0.0.1:3000",
    show_default=True,
    help="Where to send it; token: COMFYFN_TOKEN.",
)
@click.option("--local", is_flag=True, help="Start a function for this job and stop it afterwards.")
@click.option("--label", default="", help="Your own name for the job.")
def command(workflow: Path, settings: tuple[str, ...], output: Path, url: str, label: str, *, local: bool) -> None:
    """Run WORKFLOW (ComfyUI's API format) and write its files to the output directory."""
    document: dict[str, Any] = {"workflow": load_workflow(workflow, settings)}
    if label:
        document["label"] = label
    with function_client(url, local=local) as client:
        run_job(client, document, output)


@contextmanager
def function_client(url: str, *, local: bool) -> Iterator[FunctionClient]:
    """A client of the function at this URL, or of one that is started for it and stopped at the end.

    COMFYFN_TOKEN is the token that the function at the URL may ask for (see API_TOKENS).
    """
    with ExitStack() as stack:
        if local:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="comfyfn-"))
            click.echo("starting a function", err=True)
            url = stack.enter_context(local_function(log=Path(folder) / "function.log"))
        token = "" if local else os.environ.get("COMFYFN_TOKEN", "")
        yield stack.enter_context(closing(FunctionClient(url, token=token)))


def run_job(client: FunctionClient, document: dict[str, Any], output: Path) -> None:
    """Send a job document, write the files that come of it to a directory, and print their paths.

    Raises:
        click.ClickException: The job failed.
    """
    for path in _fetch(client, _run(client, document), output):
        click.echo(path)


def load_workflow(path: Path, settings: tuple[str, ...]) -> Workflow:
    """Read a workflow and apply `NODE.INPUT=VALUE` settings.

    A value is JSON where it parses as JSON, else text; `@FILE` becomes a data URI with the file's bytes.

    Raises:
        InvalidRequestError: The file is not JSON, or a setting has no `=`.
    """
    try:
        workflow = parse_workflow(json.loads(path.read_bytes()))
    except ValueError as error:
        raise InvalidRequestError(f"{path} is not JSON: {error}") from error
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise InvalidRequestError(f"--set {setting}: expected NODE.INPUT=VALUE")
        workflow = set_input(workflow, name, _value(text))
    return workflow


def _value(text: str) -> object:
    if text.startswith("@"):
        return to_data_uri(Path(text[1:]))
    try:
        return json.loads(text)
    except ValueError:
        return text


def to_data_uri(path: Path) -> str:
    """A file as a data URI.

    Raises:
        InvalidRequestError: It can't be read.
    """
    media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    try:
        return f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode()}"
    except OSError as error:
        raise InvalidRequestError(f"{path}: {error.strerror}") from error


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show on stderr how far a job is, told by its status documents: a bar on a terminal, else a line per stage."""
    if not sys.stderr.isatty():
        yield _StageLines(title)
        return
    with click.progressbar(length=100, label=title, file=sys.stderr, show_eta=False) as bar:
        yield lambda status: bar.update(max(0, _percent(status) - bar.pos))
        bar.update(100 - bar.pos)


class _StageLines:
    def __init__(self, title: str) -> None:
        self._title = title
        self._last = ""

    def __call__(self, status: dict[str, Any]) -> None:
        progress = status.get("progress")
        if progress:
            line = f"{self._title}: {progress['stage']} {progress['detail']}".rstrip()
            if line != self._last:
                click.echo(line, err=True)
            self._last = line


def _percent(status: dict[str, Any]) -> int:
    progress = status.get("progress")
    if not progress:
        return 0
    start, share = _STAGES[progress["stage"]]
    return int(start + share * progress["fraction"])


def _run(client: FunctionClient, document: dict[str, Any]) -> dict[str, Any]:
    event = to_job_event(document, event_id=uuid.uuid4().hex)
    with progress_bar("running") as follow:
        reply = client.send_and_watch(event, follow)
    manifest: dict[str, Any] = json.loads(reply)["data"]
    if manifest["error"]:
        raise click.ClickException(f"{manifest['error']['code']}: {manifest['error']['message']}")
    return manifest


def _fetch(client: FunctionClient, manifest: dict[str, Any], folder: Path) -> list[Path]:
    paths = []
    for output in manifest["outputs"]:
        name = "/".join(part for part in (output["subfolder"], output["filename"]) if part)
        check_relative(name, what="output file")
        path = folder / name
        client.fetch_output(manifest, output, path)
        paths.append(path)
    return paths
