"""Templates end to end: over HTTP, as events, on the command line."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from events import JOB_COMPLETED
from tests.e2e.test_command_line import comfyfn
from tests.support.engine import DATA, case
from tests.support.function_process import functions
from tests.support.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.function_process import FunctionFactory, FunctionProcess

SAMPLES = Path(__file__).parents[2] / "demo" / "workflows"
PHOTO = DATA / "cases" / "in_64x48.png"
MODEL = "upscale_models/tiny_srvgg_x2.safetensors"


def noise_template() -> dict[str, Any]:
    """An image of a random colour; no model, no input file."""
    workflow = case("01_empty_save")
    node_id = next(node_id for node_id, node in workflow.items() if node["class_type"] == "EmptyImage")
    colour = {"input": f"{node_id}.color", "type": "integer", "default": "random", "minimum": 0, "maximum": 0xFFFFFF}
    width = {"input": f"{node_id}.width", "type": "integer", "default": 8, "minimum": 1, "maximum": 64}
    return {"description": "One colour.", "workflow": workflow, "parameters": {"colour": colour, "width": width}}


def put_template(function: FunctionProcess, name: str, document: object) -> None:
    """Write a template into storage."""
    path = function.store / "workflows" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory, model_files: Path) -> Iterator[FunctionProcess]:
    """One function with the samples, a photo and the demo's upscaler in storage."""
    with functions(tmp_path_factory.mktemp("templates")) as start:
        process = start()
        process.put_upload("in_64x48.png")
        process.put_model("upscale_models", model_files / MODEL)
        upscaler = process.store / "models" / "upscale_models"
        shutil.copy(upscaler / "tiny_srvgg_x2.safetensors", upscaler / "demo-x2.safetensors")
        shutil.copytree(SAMPLES, process.store / "workflows")
        put_template(process, "colours/plain", noise_template())
        put_template(process, "broken", {"workflow": {}, "parameters": {"a": {"input": "1.x", "type": "float"}}})
        yield process


def picture(answer: dict[str, Any]) -> Image.Image:
    """The answer's only image."""
    (data,) = answer["images"]
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize("inside", [True, False], ids=["in input", "beside"])
def test_a_template_runs_like_a_prompt(function: FunctionProcess, *, inside: bool) -> None:
    """With its parameters in `input`, as comfyui-api's clients send them, or as the body's own members."""
    parameters = {"image": "in_64x48.png"}
    body = {"id": "mine", **({"input": parameters} if inside else parameters)}
    answer = function.post("/workflow/upscale", body)
    assert answer.status == 200, answer.body
    assert (answer.json["id"], picture(answer.json).size) == ("mine", (128, 96))
    assert answer.json["input"] == {"image": "in_64x48.png", "model": "demo-x2.safetensors"}
    assert answer.json["prompt"]["1"]["inputs"]["image"] == "in_64x48.png"
    assert len(answer.json["filenames"]) == 1
    assert answer.json["stats"]["total_time"] >= 0


def test_a_random_parameter_is_told_and_can_be_sent_again(function: FunctionProcess) -> None:
    """Every call draws another one; the same picture comes from the same one."""
    first, second = (function.post("/workflow/colours/plain", {"width": 4}).json for _ in range(2))
    assert first["input"]["colour"] != second["input"]["colour"]
    again = function.post("/workflow/colours/plain", {"input": first["input"]}).json
    assert picture(again).width == 4
    assert picture(again).tobytes() == picture(first).tobytes() != picture(second).tobytes()


def test_the_same_call_with_an_idempotency_key_is_the_same_job(function: FunctionProcess) -> None:
    """It is answered with the same picture, although its colour is a random one."""
    calls = [function.post("/workflow/colours/plain", {"width": 3}, {"Idempotency-Key": "once"}) for _ in range(2)]
    assert [call.status for call in calls] == [200, 200]
    assert calls[0].json["input"] == calls[1].json["input"]
    assert calls[0].json["images"] == calls[1].json["images"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/workflow/colours/plain", {"width": 7}),
        ("/jobs", {"template": "colours/plain", "parameters": {"width": 7}}),
    ],
)
def test_a_job_is_recorded_with_the_workflow_that_its_template_stands_for(
    function: FunctionProcess, path: str, body: object
) -> None:
    """Whoever runs it later needs no template, also if that has been replaced meanwhile."""
    answer = function.post(path, body, {"Prefer": "respond-async"})
    assert answer.status == 202, answer.body
    record = json.loads((function.store / "results" / "jobs" / answer.json["job_id"] / "job.json").read_bytes())
    node = next(node for node in record["workflow"].values() if node["class_type"] == "EmptyImage")
    assert node["inputs"]["width"] == 7
    assert answer.json.get("input", {"colour": node["inputs"]["color"]})["colour"] == node["inputs"]["color"]


@pytest.mark.parametrize(
    ("name", "body", "status", "code", "says"),
    [
        ("upscale", {}, 400, "invalid_request", "template upscale: image: required"),
        ("colours/plain", {"width": 65}, 400, "invalid_request", "width: expected a whole number from 1 to 64"),
        ("colours/plain", {"colour": 1, "size": 2}, 400, "invalid_request", "'size': no such parameter"),
        ("colours/plain", {"input": []}, 400, "invalid_request", "input: "),
        ("colours/plain", [], 400, "invalid_request", "document: "),
        ("colours/plain", b"{", 400, "invalid_request", "not JSON"),
        ("nothing", {}, 404, "template_missing", "there are broken, colours/plain, txt2img, upscale"),
        ("..%2Fupscale", {}, 404, "template_missing", "there is no template"),
        ("broken", {}, 422, "template_invalid", "parameters.a.type: Input should be 'integer'"),
        ("upscale", {"image": "nowhere.png"}, 400, "input_missing", "nowhere.png"),
        ("upscale", {"image": "../x.png"}, 400, "input_refused", "not a relative file name"),
    ],
)
def test_a_wrong_call_gets_one_line(
    function: FunctionProcess, name: str, body: object, status: int, code: str, says: str
) -> None:
    """That names what is wrong with it."""
    answer = function.post(f"/workflow/{name}", body)
    assert (answer.status, answer.json["code"]) == (status, code)
    assert says in answer.json["error"]


def test_templates_are_listed_and_described(function: FunctionProcess) -> None:
    """What there is, what each takes, and that as JSON Schema."""
    assert function.get("/workflow").json == {"workflows": ["broken", "colours/plain", "txt2img", "upscale"]}
    answer = function.get("/workflow/upscale").json
    assert (answer["name"], answer["upload"]) == ("upscale", "image")
    assert answer["description"] == "Make a photo larger with an upscaler model."
    assert answer["parameters"]["image"] == {"input": "1.image", "type": "image", "description": "The photo."}
    assert answer["schema"]["required"] == ["image"]
    assert function.get("/workflow/nothing").status == 404


def test_an_event_may_name_a_template(function: FunctionProcess) -> None:
    """The job is the one of the workflow that it stands for; delivered again it is the same one."""
    document = {"template": "colours/plain", "parameters": {"width": 5}}
    first = function.send_event("by-template", document)
    assert (first.status, first.json["type"]) == (200, JOB_COMPLETED)
    assert first.json["data"]["outputs"][0]["width"] == 5
    record = json.loads((function.result_path("by-template").parent / "job.json").read_bytes())
    node = next(node for node in record["workflow"].values() if node["class_type"] == "EmptyImage")
    assert (node["inputs"]["width"], node["inputs"]["color"]) != (5, 0)
    assert function.send_event("by-template", document).body == first.body


@pytest.mark.parametrize(
    ("document", "status", "says"),
    [
        ({"template": "nothing"}, 400, "template: there is no template 'nothing'"),
        ({"template": "broken"}, 422, "template broken ("),
        ({"template": "colours/plain", "parameters": {"width": "5"}}, 400, "width: expected a whole number"),
        ({"template": "colours/plain", "workflow": {}}, 400, "one of the two"),
    ],
)
def test_an_event_that_can_never_be_a_job_is_not_delivered_again(
    function: FunctionProcess, request: pytest.FixtureRequest, document: object, status: int, says: str
) -> None:
    """A broker repeats 404 and 5xx; these go to its dead letters."""
    answer = function.send_event(request.node.name, document)
    assert (answer.status, says in answer.json["error"]) == (status, True), answer.body


def test_models_that_the_graph_does_not_name_are_there_before_it_runs(
    function_factory: FunctionFactory, model_files: Path
) -> None:
    """They are brought and held like the others, and missing like the others."""
    function = function_factory()
    document = {**noise_template(), "preloads": [MODEL]}
    put_template(function, "with-model", document)
    answer = function.post("/workflow/with-model", {})
    assert (answer.status, answer.json["code"]) == (422, "model_missing")
    assert MODEL in answer.json["error"]
    function.put_model("upscale_models", model_files / MODEL)
    assert function.post("/workflow/with-model", {}).status == 200
    assert (function.root / "data" / "models" / MODEL).exists()


def test_a_template_runs_from_the_command_line(function: FunctionProcess, tmp_path: Path) -> None:
    """A file goes along, text stays text, and the result arrives in the directory."""
    done = comfyfn(
        *("template", "run", "upscale", "--url", function.url, "-o", "results"),
        *("--set", f"image=@{PHOTO}", "--set", "model=demo-x2.safetensors"),
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, "results/larger_00001_.png\n"), done.stderr
    with Image.open(tmp_path / "results" / "larger_00001_.png") as image:
        assert image.size == (128, 96)


def test_a_template_runs_without_a_function(tmp_path: Path) -> None:
    """`--local` starts one with the settings of the environment."""
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "colour.json").write_text(json.dumps(noise_template()))
    done = comfyfn(
        *("template", "run", "colour", "--local", "--set", "width=6"),
        cwd=tmp_path,
        WORKFLOWS_URL=f"file://{tmp_path}/flows",
    )
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / done.stdout.strip()) as image:
        assert image.width == 6


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["upscale"], "image: required"),
        (["upscale", "--set", "image"], "expected NAME=VALUE"),
        (["upscale", "--set", "image=@nowhere.png"], "nowhere.png: No such file"),
        (["upscale", "--set", "image=a.png", "--set", "colour=1"], "'colour': no such parameter"),
        (["colours/plain", "--set", "width=wide"], "width: expected a whole number from 1 to 64"),
        (["nothing"], "there is no template 'nothing'"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(
    function: FunctionProcess, tmp_path: Path, arguments: list[str], says: str
) -> None:
    """And exits with 1, without a stack trace."""
    done = comfyfn("template", "run", *arguments, "--url", function.url, cwd=tmp_path)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_templates_are_checked_before_anybody_runs_them(function: FunctionProcess, tmp_path: Path) -> None:
    """The file, the engine's nodes, the models; one that is wrong makes the exit status 1."""
    data = function.root / "data"
    wait_until((data / "engine" / "nodes.json").exists, what="the nodes on disk")
    done = comfyfn("template", "check", "--models", "upscale", "colours/plain", cwd=tmp_path, DATA_DIR=str(data))
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [
            "ok    upscale          parameters: image, model; an upload fills image",
            "ok    upscale          the engine has its nodes, which take its defaults, bounds and choices",
            "ok    upscale          models there: upscale_models/demo-x2.safetensors",
            "ok    colours/plain    parameters: colour, width; no upload can run it",
            "ok    colours/plain    the engine has its nodes, which take its defaults, bounds and choices",
            "ok    colours/plain    models there: none needed",
        ],
    )
    done = comfyfn("template", "check", "--models", cwd=tmp_path, DATA_DIR=str(data))
    failed = [line for line in done.stdout.splitlines() if line.startswith("fail")]
    assert done.returncode == 1
    assert [line.split()[1] for line in failed] == ["broken", "txt2img", "txt2img"]
    assert "Input should be 'integer'" in failed[0]
    assert "Node 'CheckpointLoaderSimple' not found" in failed[1]
    assert "model checkpoints/sd15.safetensors is neither in MODEL_DIR nor at file://" in failed[2]


def test_a_file_is_checked_and_shown_without_a_store(tmp_path: Path) -> None:
    """What is not known is said, and is no failure; what is wrong is one."""
    good = str(SAMPLES / "upscale.json")
    done = comfyfn("template", "check", good, cwd=tmp_path)
    assert (done.returncode, "nodes not checked" in done.stdout) == (0, True)
    shown = comfyfn("template", "show", good, cwd=tmp_path)
    assert "    image <== image\n" in shown.stdout
    (tmp_path / "bad.json").write_text("{}")
    done = comfyfn("template", "check", "bad.json", cwd=tmp_path)
    assert (done.returncode, "template bad (bad.json): workflow: no output node" in done.stdout) == (1, True)
    done = comfyfn("template", "show", "nothing", cwd=tmp_path)
    assert (done.returncode, "there is no template 'nothing'" in done.stderr) == (1, True)
