"""What is said of a template beside its file: the engine's nodes, and the picture for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from function.cli.template_picture import template_lines
from function.templates.checking import problems_with_nodes, unstaged_media
from function.templates.template import Template, parse_template
from function.validation.definitions import parse_definitions
from tests.support.engine import recorded

SAMPLES = Path(__file__).parents[2] / "demo" / "workflows"
NODES = parse_definitions(recorded("object_info"), {})


def sample(name: str, **changes: dict[str, Any]) -> Template:
    """A sample, with changes to its parameters."""
    document = json.loads((SAMPLES / f"{name}.json").read_bytes())
    for parameter, members in changes.items():
        document["parameters"].setdefault(parameter, {}).update(members)
    return parse_template(json.dumps(document).encode(), name=name, where=name)


@pytest.mark.parametrize("name", ["txt2img", "upscale"])
def test_the_samples_fit_a_real_comfyui(name: str) -> None:
    """Its nodes take every default, bound and choice of theirs."""
    assert list(problems_with_nodes(sample(name), NODES)) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"width": {"maximum": 20_000}}, "width = 20000: "),
        ({"steps": {"minimum": 0}}, "steps = 0: "),
        ({"sampler_name": {"choices": ["euler", "oiler"]}}, "sampler_name = oiler: "),
        ({"width": {"type": "string", "default": "wide", "minimum": None, "maximum": None}}, "wide"),
    ],
)
def test_what_the_engine_would_refuse_is_found_before_a_job_is_sent(changes: dict[str, Any], says: str) -> None:
    """Each in a line that names parameter and value."""
    problems = list(problems_with_nodes(sample("txt2img", **changes), NODES))
    assert len(problems) == 1
    assert says in problems[0]


def test_media_of_nodes_that_read_no_uploads() -> None:
    """Only a data URI reaches them."""
    assert unstaged_media(sample("upscale")) == []
    assert unstaged_media(sample("upscale", film={"input": "4.filename_prefix", "type": "video"})) == ["film"]


def test_the_picture_of_a_template() -> None:
    """A table of the parameters; each node with what comes from other nodes, from the file and from parameters."""
    assert list(template_lines(sample("upscale", model={"description": ""}))) == [
        "upscale: Make a photo larger with an upscaler model.",
        "",
        "parameter  type    default                takes                           description",
        "image      image   (required)             a file                          The photo.",
        'model      string  "demo-x2.safetensors"  text of at most 200 characters',
        "",
        "an uploaded object fills: image",
        "",
        "1 LoadImage",
        "    image <== image",
        "2 UpscaleModelLoader",
        "    model_name <== model",
        "3 ImageUpscaleWithModel",
        "    upscale_model <-- 2 UpscaleModelLoader",
        "    image <-- 1 LoadImage",
        "4 SaveImage",
        "    images <-- 3 ImageUpscaleWithModel",
        '    filename_prefix = "larger"',
    ]
