"""What `comfyfn template check` finds in one template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from function.cli.findings import Finding
from function.engine.catalogue import open_catalogue
from function.errors import ComfyfnError
from function.models.listing import list_models
from function.models.lookup import ModelLookup
from function.storage import open_store
from function.storage.objects import ObjectMissingError
from function.storage.origins import fetch_rules
from function.templates.checking import problems_with_nodes, unstaged_media, with_defaults

if TYPE_CHECKING:
    from collections.abc import Iterator

    from function.config import Settings
    from function.models.references import ModelRef
    from function.templates.template import Template


def check_template(template: Template, settings: Settings, *, subject: str, models: bool) -> Iterator[Finding]:
    """Everything that can be said of a template whose file is in order."""
    upload = f"an upload fills {template.upload}" if template.upload else "no upload can run it"
    yield Finding("ok", subject, f"parameters: {', '.join(template.parameters) or 'none'}; {upload}")
    for name in unstaged_media(template):
        yield Finding("warn", subject, f"{name}: its node reads no uploads by name; give it data URIs")
    yield from _check_nodes(template, settings, subject)
    if models:
        yield from _check_models(template, settings, subject)


def _check_nodes(template: Template, settings: Settings, subject: str) -> Iterator[Finding]:
    definitions = open_catalogue(settings).definitions
    if definitions is None:
        yield Finding("warn", subject, "nodes not checked: no engine with these settings has run on this DATA_DIR yet")
        return
    problems = list(problems_with_nodes(template, definitions))
    for problem in problems:
        yield Finding("fail", subject, problem)
    if not problems:
        yield Finding("ok", subject, "the engine has its nodes, which take its defaults, bounds and choices")


def _check_models(template: Template, settings: Settings, subject: str) -> Iterator[Finding]:
    store = open_store(settings.models_url)
    lookup = ModelLookup(store, rules=fetch_rules(settings), allow_pickle=settings.allow_pickle_models)
    here = list_models(settings.model_dir)

    def is_there(reference: ModelRef) -> bool:
        if reference.filename in here.get(reference.folder, []):
            return True
        try:
            store.head(reference.key)
        except ObjectMissingError:
            return False
        return True

    try:
        references = lookup.references(with_defaults(template), template.preloads)
        named = {reference.key: reference for reference in references if reference.source_url is None}
        missing = [key for key, reference in named.items() if not reference.optional and not is_there(reference)]
    except ComfyfnError as error:
        yield Finding("fail", subject, f"models: {error.message}")
        return
    for key in missing:
        yield Finding("fail", subject, f"model {key} is neither in MODEL_DIR nor at {store.object_url(key)}")
    if not missing:
        yield Finding("ok", subject, f"models there: {', '.join(named) or 'none needed'}")
