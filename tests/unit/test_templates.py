"""Templates: what a file may say, and what comes of values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from function.errors import InvalidRequestError, TemplateInvalidError
from function.templates.parameter import LARGEST_RANDOM, Parameter
from function.templates.template import Template, TemplateFile, fill_template, parse_template, to_json_schema
from tests.support.engine import case

SAMPLES = sorted((Path(__file__).parents[2] / "demo" / "workflows").glob("*.json"))
WORKFLOW = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
    "2": {"class_type": "Noise", "inputs": {"seed": 1, "strength": 0.5, "mode.kind": "soft", "deep": True}},
    "3": {"class_type": "Blend", "inputs": {"image": ["1", 0], "other": ["2", 0], "text": "", "more": None}},
    "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "out"}},
}
JOB = "0" * 32


def template(**parameters: Any) -> Template:
    """A template with these parameters."""
    return parse({"workflow": WORKFLOW, "parameters": parameters})


def parse(document: Any) -> Template:
    """A template's file, read."""
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse_template(data, name="cat", where="file:///t/cat.json")


def refusal(document: Any) -> str:
    """What is said of a file that is wrong."""
    with pytest.raises(TemplateInvalidError) as error:
        parse(document)
    assert error.value.message.startswith("template cat (file:///t/cat.json): ")
    assert "\n" not in error.value.message
    return error.value.message


SEED = {"input": "2.seed", "type": "integer", "default": "random", "minimum": 5, "maximum": 7}
STRENGTH = {"input": "2.strength", "type": "number", "default": 0.25, "minimum": 0, "maximum": 1}
PROMPT = {"input": ["3.text", "4.filename_prefix"], "type": "string", "max_length": 5}
KIND = {"input": "2.mode.kind", "type": "string", "default": "soft", "choices": ["soft", "hard"]}
IMAGE = {"input": "1.image", "type": "image"}


def test_values_and_defaults_go_where_they_belong() -> None:
    """One parameter may fill several inputs, an input's name may have dots; the template itself stays as it was."""
    subject = template(strength=STRENGTH, prompt=PROMPT, kind=KIND, image=IMAGE)
    filled = fill_template(subject, {"prompt": "cat", "image": "b.png", "kind": "hard"}, job_id=JOB)
    assert filled.parameters == {"strength": 0.25, "prompt": "cat", "kind": "hard", "image": "b.png"}
    assert filled.workflow["1"]["inputs"] == {"image": "b.png"}
    assert filled.workflow["2"]["inputs"] == {"seed": 1, "strength": 0.25, "mode.kind": "hard", "deep": True}
    assert filled.workflow["3"]["inputs"]["text"] == filled.workflow["4"]["inputs"]["filename_prefix"] == "cat"
    assert subject.workflow == WORKFLOW


def test_every_problem_stands_in_one_line_and_no_value_does() -> None:
    """Missing, wrong and unknown parameters are told together, with what would be right."""
    subject = template(strength=STRENGTH, prompt=PROMPT, kind=KIND, image=IMAGE)
    with pytest.raises(InvalidRequestError) as error:
        fill_template(subject, {"strength": 17, "prompt": "s3cr3t", "kind": 1, "colour": "s3cr3t"}, job_id=JOB)
    assert error.value.message == (
        "template cat: strength: expected a number from 0 to 1; prompt: expected text of at most 5 characters; "
        "kind: expected one of soft, hard; image: required, image: a name under UPLOADS_URL, a URL there or a data "
        "URI; 'colour': no such parameter; there are strength, prompt, kind, image"
    )


@pytest.mark.parametrize(
    ("parameter", "accepted", "refused"),
    [
        ({"type": "integer"}, [0, -1, 5.0, 2**70, 10**400], [True, 5.5, "5", None, [], float("nan"), float("inf")]),
        ({"type": "integer", "minimum": 1, "maximum": 3}, [1, 3, 2.0], [0, 4, 10**400]),
        ({"type": "integer", "choices": [1, 2]}, [1, 2.0], [3, True]),
        ({"type": "number"}, [0, 0.5, -1e300], [True, "1", None, float("nan"), float("-inf")]),
        ({"type": "number", "maximum": 0.5}, [0.5, -(10**400)], [0.6, 10**400]),
        ({"type": "string"}, ["", "a"], [1, None, ["a"]]),
        ({"type": "string", "max_length": 2}, ["ab", "日本"], ["abc"]),
        ({"type": "boolean"}, [True, False], [0, 1, "true", None]),
        ({"type": "image"}, ["a.png", "data:image/png;base64,"], ["", 1, None]),
        ({"type": "video"}, ["a.mp4"], [""]),
    ],
)
def test_what_each_type_takes(parameter: dict[str, Any], accepted: list[Any], refused: list[Any]) -> None:
    """And its JSON Schema says the same of every JSON value."""
    subject = Parameter.model_validate({"input": "1.image", **parameter})
    assert [subject.accepts(value) for value in accepted] == [True] * len(accepted)
    assert [subject.accepts(value) for value in refused] == [False] * len(refused)
    schema = Draft202012Validator(subject.to_json_schema())
    assert all(schema.is_valid(value) for value in accepted)
    json_refused = [value for value in refused if value == value and value not in (float("inf"), -float("inf"), "")]  # noqa: PLR0124  (not NaN)
    assert not any(schema.is_valid(value) for value in json_refused)


def test_a_whole_number_arrives_as_one() -> None:
    """JavaScript may write 6 as 6.0; the node gets 6."""
    filled = fill_template(template(seed=SEED), {"seed": 6.0}, job_id=JOB)
    assert json.dumps(filled.workflow["2"]["inputs"]["seed"]) == "6"


def test_a_random_number_differs_between_jobs_and_not_between_deliveries() -> None:
    """A job that is delivered again has the same workflow; other jobs get other numbers, all of them in the range."""
    subject = template(seed=SEED)

    def draw(job_id: str) -> int:
        return int(fill_template(subject, {}, job_id=job_id).parameters["seed"])

    assert {draw(f"{number:032x}") for number in range(100)} == {5, 6, 7}
    assert draw(JOB) == draw(JOB)
    assert fill_template(subject, {"seed": 5}, job_id=JOB).parameters["seed"] == 5


@given(st.uuids(), st.integers(-(2**70), 2**70), st.integers(0, 2**70) | st.none())
def test_a_random_number_is_one_that_could_be_given(job: Any, minimum: int, width: int | None) -> None:
    """Whatever the range is; without a maximum it is one that JavaScript reads exactly."""
    maximum = None if width is None else minimum + width
    if maximum is None:
        minimum = min(abs(minimum), LARGEST_RANDOM)
    subject = template(seed=SEED | {"minimum": minimum, "maximum": maximum})
    seed = fill_template(subject, {}, job_id=job.hex).parameters["seed"]
    assert subject.parameters["seed"].accepts(seed)
    assert maximum is not None or seed <= LARGEST_RANDOM


def test_a_plain_workflow_is_a_template_of_all_its_literals() -> None:
    """Each is called by its place; links and what is no literal are not among them; the only image takes an upload."""
    subject = parse(WORKFLOW)
    assert {name: (parameter.type, parameter.default) for name, parameter in subject.parameters.items()} == {
        "1.image": ("image", "a.png"),
        "2.seed": ("number", 1),
        "2.strength": ("number", 0.5),
        "2.mode.kind": ("string", "soft"),
        "2.deep": ("boolean", True),
        "3.text": ("string", ""),
        "4.filename_prefix": ("string", "out"),
    }
    assert subject.upload == "1.image"
    assert fill_template(subject, {}, job_id=JOB).workflow == WORKFLOW
    assert fill_template(subject, {"2.mode.kind": "hard"}, job_id=JOB).workflow["2"]["inputs"]["mode.kind"] == "hard"


def test_a_plain_workflow_may_have_a_node_called_workflow() -> None:
    """It is told from a template's file by its class."""
    assert "workflow.image" in parse({"workflow": {"class_type": "LoadImage", "inputs": {"image": "a"}}}).parameters


@pytest.mark.parametrize(
    ("parameters", "upload"),
    [
        ({"image": IMAGE}, "image"),
        ({"image": IMAGE, "mask": {"input": "3.text", "type": "mask"}}, None),
        ({"seed": SEED}, None),
    ],
)
def test_the_only_media_parameter_takes_an_upload(parameters: dict[str, Any], upload: str | None) -> None:
    """Where there are several the file has to say which."""
    assert parse({"workflow": WORKFLOW, "parameters": parameters}).upload == upload


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (b"{", "the file is not JSON"),
        (b"[" * 100_000, "the file is not JSON"),
        (b"1" * 10_000, "the file is not JSON"),
        (b"\xff", "the file is not JSON"),
        ([], "expected an object of node id to node"),
        ({"nodes": [], "links": []}, "Export (API)"),
        ({"workflow": {"nodes": [], "links": []}}, "Export (API)"),
        ({"workflow": []}, "workflow: Input should be a valid dictionary"),
        ({"workflow": WORKFLOW, "parameter": {}}, "parameter: unknown field"),
        ({"workflow": WORKFLOW, "parameters": {"a b": IMAGE}}, "String should match pattern"),
        ({"workflow": WORKFLOW, "description": "a\x1b[2J"}, "description: "),
        ({"workflow": WORKFLOW, "preloads": ["a.safetensors"]}, "preloads.0: expected a model's key"),
        ({"workflow": WORKFLOW, "preloads": ["vae/../a"]}, "preloads.0: expected a model's key"),
        ({"workflow": WORKFLOW, "upload": "image"}, "upload: expected a parameter that is an image"),
        (
            {"workflow": WORKFLOW, "parameters": {"seed": SEED, "image": IMAGE}, "upload": "seed"},
            "there are image",
        ),
    ],
)
def test_a_file_that_is_wrong_is_named_with_its_field(document: Any, says: str) -> None:
    """In one line, with what would be right."""
    assert says in refusal(document)


@pytest.mark.parametrize(
    ("parameter", "says"),
    [
        ({"input": "9.seed"}, "parameters.p.input: 9.seed: no node '9'; the workflow has 1, 2, 3, 4"),
        ({"input": "2.sede"}, "node 2 has no input 'sede'; it has deep, mode.kind, seed, strength"),
        ({"input": "seed"}, "no node ''"),
        ({"input": "3.image"}, "3.image is a link to node 1; name an input of that node"),
        ({"input": ["2.seed", "2.seed"]}, "2.seed is filled twice"),
        ({"input": []}, "parameters.p.input"),
        ({"type": "float"}, "parameters.p.type: Input should be 'integer', 'number'"),
        ({"max": 3}, "parameters.p.max: unknown field"),
        ({"minimum": "1"}, "parameters.p.minimum"),
        ({"minimum": 3, "maximum": 2}, "parameters.p: minimum is larger than maximum"),
        ({"minimum": 0.5}, "minimum and maximum must be a whole number"),
        ({"type": "string", "minimum": 1}, "minimum and maximum are for integer and number, this is string"),
        ({"max_length": 3}, "max_length is for string, this is integer"),
        ({"type": "image", "choices": ["a"]}, "choices are for integer, number and string"),
        ({"choices": []}, "parameters.p.choices"),
        ({"choices": [1, 2.5]}, "the choice 2.5 is not what type"),
        ({"choices": [1, 9], "maximum": 3}, "the choice 9 is not what type"),
        ({"default": 4, "maximum": 3}, "the default is not a whole number to 3"),
        ({"default": None}, "the default is not a whole number"),
        ({"default": "random", "choices": [1]}, "takes a range, not choices"),
        ({"type": "number", "default": "random"}, "the default is not a number"),
        ({"default": "random", "minimum": 2**60}, "needs a maximum"),
    ],
)
def test_a_parameter_that_is_wrong_is_named(parameter: dict[str, Any], says: str) -> None:
    """In one line, with what would be right."""
    document = {"workflow": WORKFLOW, "parameters": {"p": {"input": "2.seed", "type": "integer", **parameter}}}
    assert says in refusal(document)


def test_a_file_of_nothing_but_mistakes_names_them_all() -> None:
    """Not only the first."""
    parameters = {"a": {"input": "9.x", "type": "string"}, "b": {"input": "2.seed", "type": "integer"}}
    parameters["c"] = parameters["b"]
    line = refusal({"workflow": WORKFLOW, "parameters": parameters, "preloads": ["x"]})
    assert [part in line for part in ("9.x", "b.input", "c.input", "preloads.0")] == [True] * 4


def test_the_schema_of_parameters() -> None:
    """A valid one, that the page's forms and /docs can show; it takes what the template takes."""
    subject = template(seed=SEED, prompt=PROMPT | {"description": "What to paint."}, image=IMAGE, kind=KIND)
    schema = to_json_schema(subject)
    Draft202012Validator.check_schema(schema)
    assert schema["required"] == ["prompt", "image"]
    assert schema["properties"] == {
        "seed": {"type": "integer", "minimum": 5, "maximum": 7},
        "prompt": {"type": "string", "description": "What to paint.", "maxLength": 5},
        "image": {"type": "string", "contentMediaType": "image/*"},
        "kind": {"type": "string", "enum": ["soft", "hard"], "default": "soft"},
    }
    assert Draft202012Validator(schema).is_valid({"prompt": "cat", "image": "a.png"})
    assert not Draft202012Validator(schema).is_valid({"prompt": "cat", "image": "a.png", "colour": 1})


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_the_samples_are_templates(path: Path) -> None:
    """Each is in order, also by the schema of the file format."""
    subject = parse_template(path.read_bytes(), name=path.stem, where=str(path))
    assert subject.description
    Draft202012Validator(TemplateFile.model_json_schema()).validate(json.loads(path.read_bytes()))


def test_a_recorded_workflow_is_a_template_as_it_is() -> None:
    """What ComfyUI exports can be dropped into the store."""
    assert parse(case("10_upscale_srvgg")).upload == "1.image"
