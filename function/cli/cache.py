"""`comfyfn cache`: the model cache on this machine, also while a function uses it."""

from __future__ import annotations

import json
import math
import os
import sys
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from function.config import read_settings
from function.errors import ComfyfnError
from function.models.downloads import disk_errors
from function.models.opening import open_models
from function.setting_values import GIB, MIB
from function.telemetry import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from function.config import Settings
    from function.models.cache import CachedFile, ModelCache
    from function.models.opening import OpenedModels
    from function.telemetry import Progress

_STEPS = 1000  # of a bar: sizes don't fit on it


@click.group(name="cache")
def command() -> None:
    """Look after the model cache in MODEL_DIR.

    Settings come from the environment, as those of the function do: give LRU_CACHE_SIZE_GB the same value. A KEY is
    <folder>/<filename>, for example checkpoints/sd.safetensors. Files that the cache did not bring are left alone.
    """


@command.command(name="ls")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def list_files(*, as_json: bool) -> None:
    """List the cached files: size, last use, whether pinned or in use, and source."""
    with _opened() as (models, settings):
        files = models.cache.files()
        size_bytes = models.cache.size_bytes
    capacity_bytes = settings.cache_capacity_bytes
    if as_json:
        document = {
            "model_dir": str(settings.model_dir),
            "size_bytes": size_bytes,
            "capacity_bytes": capacity_bytes,
            "files": [asdict(file) for file in files],
        }
        click.echo(json.dumps(document, indent=2))
        return
    for line in _table(files):
        click.echo(line)
    limit = human_size(capacity_bytes) if capacity_bytes else "the disk"
    click.echo(f"{human_size(size_bytes)} of {limit} in {settings.model_dir}, files: {len(files)}")


@command.command()
@click.argument("keys", metavar="[KEY]...", nargs=-1)
def verify(keys: tuple[str, ...]) -> None:
    """Read files (default: all) and compare them with the checksums of what was downloaded."""
    with _opened() as (models, _):
        sizes = {file.key: file.size_bytes for file in models.cache.files()}
        damaged = [key for key in keys or sizes if not _is_whole(models.cache, key, sizes.get(key, 0))]
    if damaged:
        raise click.ClickException(f"damaged: {', '.join(damaged)}; evict them, the next job brings them anew")


@command.command()
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
def evict(keys: tuple[str, ...]) -> None:
    """Remove files; one that a job uses, or that is pinned, stays."""
    _for_each(keys, "evicted", lambda cache, key: cache.evict(key))


@command.command()
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
def pin(keys: tuple[str, ...]) -> None:
    """Keep files: they are not evicted to make room."""
    _for_each(keys, "pinned", lambda cache, key: cache.pin(key))


@command.command()
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
def unpin(keys: tuple[str, ...]) -> None:
    """Undo pin."""
    _for_each(keys, "unpinned", lambda cache, key: cache.unpin(key))


@command.command()
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@click.option("--from", "url", help="The s3:// or https:// URL to bring it from, in place of MODELS_URL.")
def pull(keys: tuple[str, ...], url: str | None) -> None:
    """Bring files that are missing or were replaced in storage."""
    if url and len(keys) > 1:
        raise click.UsageError("--from takes one KEY")
    with _opened() as (models, _):
        for key in keys:
            folder, _, filename = key.partition("/")
            ref = models.lookup.named(folder, filename, source_url=url)
            with _bar(f"pulling {key}") as show:
                size_bytes = models.cache.pull(ref, deadline=math.inf, on_progress=_fraction_of(show))
            click.echo(f"{key}: {human_size(size_bytes)}")


def human_size(size_bytes: int) -> str:
    """Bytes for people, in binary units."""
    if size_bytes < 1024:  # noqa: PLR2004  (a KiB)
        return f"{size_bytes} B"
    if size_bytes < MIB:
        return f"{size_bytes / 1024:.1f} KiB"
    return f"{size_bytes / MIB:.1f} MiB" if size_bytes < GIB else f"{size_bytes / GIB:.2f} GiB"


@contextmanager
def _opened() -> Iterator[tuple[OpenedModels, Settings]]:
    settings = replace(read_settings(os.environ), model_revalidate_seconds=0.0)  # who pulls wants what is there now
    with disk_errors(settings.model_dir):
        models = open_models(settings, metrics=Metrics())
        if models.cache.read_only:
            raise click.ClickException(f"{settings.model_dir} can't be written to, so there is no cache in it")
        try:
            yield models, settings
        finally:
            models.fetcher.stop()


def _for_each(keys: tuple[str, ...], done: str, act: Callable[[ModelCache, str], None]) -> None:
    """Do something to every file, also after one where it failed; then exit with 1."""
    failures = 0
    with _opened() as (models, _):
        for key in keys:
            try:
                act(models.cache, key)
                click.echo(f"{done} {key}")
            except ComfyfnError as error:
                click.echo(f"Error: {error.message}", err=True)
                failures += 1
    if failures:
        sys.exit(1)


def _is_whole(cache: ModelCache, key: str, size_bytes: int) -> bool:
    read_bytes = 0
    with _bar(f"verifying {key}") as show:

        def count(more_bytes: int) -> None:
            nonlocal read_bytes
            read_bytes += more_bytes
            show(read_bytes / (size_bytes or 1))

        whole = cache.verify(key, on_bytes=count)
    click.echo(f"{key}: {'ok' if whole else 'DAMAGED'}")
    return whole


def _table(files: list[CachedFile]) -> Iterator[str]:
    width = max([len(file.key) for file in files], default=0)
    for file in files:
        used = datetime.fromtimestamp(file.used_at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        state = " ".join(word for word, holds in (("pinned", file.pinned), ("in use", file.in_use)) if holds)
        yield f"{file.key:{width}}  {human_size(file.size_bytes):>10}  {used}  {state or '-':13}  {file.source}"


@contextmanager
def _bar(title: str) -> Iterator[Callable[[float], None]]:
    """Show on stderr which part of something is done: a bar on a terminal, else its title."""
    if not sys.stderr.isatty():
        click.echo(title, err=True)
        yield lambda _fraction: None
        return
    with click.progressbar(length=_STEPS, label=title, file=sys.stderr) as bar:
        yield lambda fraction: bar.update(max(0, int(min(fraction, 1.0) * _STEPS) - bar.pos))
        bar.update(_STEPS - bar.pos)


def _fraction_of(show: Callable[[float], None]) -> Callable[[Progress], None]:
    return lambda progress: show(progress.fraction)
