"""`comfyfn template`: look at the templates under WORKFLOWS_URL, and run them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from function.cli.findings import Finding, show_finding
from function.cli.run import function_client, run_job, to_data_uri
from function.cli.template_check import check_template
from function.cli.template_picture import template_lines
from function.config import read_settings
from function.errors import ComfyfnError, InvalidRequestError
from function.storage import open_store
from function.templates.parameter import MEDIA_TYPES
from function.templates.store import SUFFIX, TemplateStore
from function.templates.template import parse_template

if TYPE_CHECKING:
    from collections.abc import Iterator

    from function.config import Settings
    from function.templates.template import Template


@click.group(name="template")
def command() -> None:
    """Workflows with parameters, kept under WORKFLOWS_URL.

    Settings come from the environment, as those of the function do.
    """


@command.command()
@click.argument("sources", metavar="[FILE|NAME]...", nargs=-1)
@click.option("--models", is_flag=True, help="Also ask MODELS_URL whether every model is there.")
def check(sources: tuple[str, ...], *, models: bool) -> None:
    """Check templates (default: all); exit with 1 if one is wrong.

    Parameters must fit the workflow and the nodes of the engine, as far as an engine has run here with these settings.
    """
    settings = read_settings(os.environ)
    failed = False
    for source in sources or TemplateStore(open_store(settings.workflows_url)).names():
        for finding in _check(source, settings, models=models):
            show_finding(finding)
            failed = failed or finding.level == "fail"
    sys.exit(int(failed))


@command.command()
@click.argument("source", metavar="FILE|NAME")
def show(source: str) -> None:
    """Show what a template takes and where it goes."""
    for line in template_lines(_load(source, read_settings(os.environ))):
        click.echo(line)


@command.command()
@click.argument("name")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A parameter; @FILE: a file.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), default="out", show_default=True)
@click.option("--url", default="http://127.0.0.1:3000", show_default=True, help="The function to send it to.")
@click.option("--local", is_flag=True, help="Start a function for this job and stop it afterwards.")
@click.option("--label", default="", help="Your own name for the job.")
def run(name: str, settings: tuple[str, ...], output: Path, url: str, label: str, *, local: bool) -> None:
    """Run a template and write its files to the output directory."""
    with function_client(url, local=local) as client:
        parameters = _values(settings, client.template(name)["parameters"])
        document: dict[str, Any] = {"template": name, "parameters": parameters}
        run_job(client, document | ({"label": label} if label else {}), output)


def _check(source: str, settings: Settings, *, models: bool) -> Iterator[Finding]:
    try:
        template = _load(source, settings)
    except ComfyfnError as error:
        yield Finding("fail", source, error.message)
    else:
        yield from check_template(template, settings, subject=source, models=models)


def _load(source: str, settings: Settings) -> Template:
    """The template in a file, or the one of this name."""
    path = Path(source)
    if not path.is_file():
        return TemplateStore(open_store(settings.workflows_url)).get(source)
    try:
        return parse_template(path.read_bytes(), name=path.name.removesuffix(SUFFIX), where=source)
    except OSError as error:
        raise InvalidRequestError(f"{path}: {error.strerror}") from error


def _values(settings: tuple[str, ...], declared: dict[str, Any]) -> dict[str, Any]:
    """What `--set` gives, by the types of the parameters; the function says what is wrong with it."""
    values = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise InvalidRequestError(f"--set {setting}: expected NAME=VALUE")
        values[name] = _value(text, declared.get(name, {}).get("type", "string"))
    return values


def _value(text: str, kind: str) -> object:
    if kind in MEDIA_TYPES and text.startswith("@"):
        return to_data_uri(Path(text[1:]))
    if kind in MEDIA_TYPES or kind == "string":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
