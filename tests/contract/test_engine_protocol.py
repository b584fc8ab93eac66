"""The protocol of ComfyUI 0.3.64: recorded requests are sent again and the answers compared with the recorded ones.

Runs against the embedded core; with COMFY_HOME set, against that ComfyUI. Where another version is known to answer
otherwise, the test says so: with what it expects there, or with the reason why the recording does not apply.
"""

from __future__ import annotations

import copy
import json
import re
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.engine import (
    RECORDED_VERSION,
    EmbeddedEngine,
    Message,
    as_recorded,
    case,
    embedded_only,
    engine_version,
    messages_until_end,
    receive,
    recorded,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SEQUENCES = (
    ("run_simple_fresh", "run_simple_cached"),
    ("run_upscale_fresh", "run_upscale_partly_cached"),
    ("run_preview_and_save", "run_fail_v3_missing_model_at_runtime", "run_fail_broken_model"),
    ("run_fail_corrupt_image",),
    ("run_fail_garbage_safetensors",),
    ("run_fail_after_partial_output",),
)
STATIC = (
    "/queue",
    "/prompt",
    "/features",
    "/history",
    "/embeddings",
    "/models",
    "/models/upscale_models",
    "/models/nosuchfolder",
    "/object_info/UpscaleModelLoader",
    "/object_info/SaveImage",
    "/object_info/LoadImage",
    "/object_info/NoSuchNode",
    "/history/00000000-0000-0000-0000-000000000000",
    "/view?filename=nosuch.png&type=output",
    "/view?filename=../../etc/passwd&type=output",
    "/api/queue",
)
SLOW = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 4096, "height": 4096, "batch_size": 1, "color": 0}},
    "2": {"class_type": "UpscaleModelLoader", "inputs": {"model_name": "tiny_srvgg_x2.safetensors"}},
    "3": {"class_type": "ImageUpscaleWithModel", "inputs": {"upscale_model": ["2", 0], "image": ["1", 0]}},
    "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
}
"""Runs for seconds, in 81 tiles."""


def simple(prefix: str, color: int = 0) -> dict[str, Any]:
    """A workflow that saves one small image."""
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": color}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }


def comparable(value: object, engine: EmbeddedEngine | None = None) -> Any:
    """Traffic without what differs between any two runs: ids, times, stack traces, temporary names, paths."""
    text = json.dumps(value)
    if engine is not None:
        text = text.replace(str(engine.directories.base), "/data")
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "<uuid>", text)
    text = re.sub(r'"(client_id|sid)": "[0-9a-f]{32}"', r'"\1": "<client>"', text)
    text = re.sub(r"ComfyUI_temp_[a-z]{5}_", "ComfyUI_temp_<random>_", text)
    return json.loads(text, object_pairs_hook=_without_noise)


def _without_noise(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    kept = {key: value for key, value in pairs if key not in {"timestamp", "traceback", "create_time"}}
    for unordered in ("executed", "current_outputs"):
        if isinstance(kept.get(unordered), list):
            kept[unordered] = sorted(kept[unordered])
    return kept


def history_entry(recording: dict[str, Any]) -> dict[str, Any]:
    """The entry of a recorded run, its place in the queue left out: that depends on all runs before."""
    (entry,) = comparable(recording).values()
    _, prompt_id, graph, extra_data, outputs = entry["prompt"]
    entry["prompt"] = [prompt_id, graph, extra_data, sorted(outputs)]  # ComfyUI keeps the outputs in a set
    return entry


@pytest.fixture
def recorded_inputs(engine: EmbeddedEngine) -> EmbeddedEngine:
    """The engine with the broken files that some recorded runs name."""
    (engine.directories.input / "corrupt.png").write_bytes(b"not an image")
    (engine.directories.models / "vae" / "garbage.safetensors").write_bytes(b"\xff" * 64)
    return engine


@pytest.mark.parametrize("names", SEQUENCES, ids="+".join)
def test_recorded_runs_again(recorded_inputs: EmbeddedEngine, names: tuple[str, ...]) -> None:
    """A run sends the recorded messages in order, shows a bystander only the queue, and leaves the recorded entry."""
    engine = recorded_inputs
    for name in names:
        recording = recorded(name)
        if name == "run_fail_v3_missing_model_at_runtime" and engine_version() != RECORDED_VERSION:
            answer = engine.post("/prompt", recording["post"]["request_json"])
            assert answer.status == 400  # newer cores look for the files of V3 loaders when the prompt is posted
            continue
        with engine.socket(uuid.uuid4().hex) as bystander:
            receive(bystander)
            run = engine.run(recording["post"]["request_json"]["prompt"])
            seen = [receive(bystander) for _ in recording["observer_messages"]]
        assert comparable(run.messages, engine) == comparable([each["msg"] for each in recording["messages"]])
        assert seen == recording["observer_messages"]
        assert history_entry({"": comparable(run.history, engine)}) == history_entry(recording["history"])


def test_run_without_client(engine: EmbeddedEngine) -> None:
    """Without a client_id every socket hears the queue and the progress, and nothing else."""
    expected = json.loads(json.dumps(recorded("run_no_client_id_messages")))
    with engine.socket(uuid.uuid4().hex) as bystander:
        receive(bystander)
        engine.post("/prompt", {"prompt": simple("nobody")})
        seen = [receive(bystander) for _ in expected]
    assert comparable(seen) == comparable(expected)


@as_recorded("the texts and some types of refusals changed")
def test_recorded_validation(engine_factory: Callable[..., EmbeddedEngine]) -> None:
    """Good and bad prompts get the recorded status, type and body, their place in the queue included."""
    engine = engine_factory()
    differences = {}
    for name, exchange in recorded("validation").items():
        if "request_json" not in exchange:
            continue
        answer = engine.post("/prompt", exchange["request_json"])
        got: dict[str, Any] = {"status": answer.status, "content_type": answer.headers["content-type"]}
        got |= {"json": answer.json} if "json" in exchange else {"text": answer.body.decode()}
        if comparable(got) != comparable({key: exchange[key] for key in got}):
            differences[name] = got
    assert differences == {}


@as_recorded("newer cores refuse some of these when they are posted")
def test_recorded_ends_of_accepted_prompts(engine_factory: Callable[..., EmbeddedEngine]) -> None:
    """Each prompt that validation lets through ends as recorded, with the recorded error if it fails."""
    engine = engine_factory()
    validation = recorded("validation")
    for exchange in validation.values():
        prompt_id = exchange.get("json", {}).get("prompt_id")
        if prompt_id not in validation["_history_after"]:
            continue
        expected = validation["_history_after"][prompt_id]["status"]
        entry = engine.wait_for(engine.post("/prompt", exchange["request_json"]).json["prompt_id"])
        assert entry["status"]["status_str"] == expected["status_str"]
        assert _end_of(entry["status"]) == _end_of(expected)


def _end_of(status: dict[str, Any]) -> Any:
    kind, data = copy.deepcopy(status["messages"][-1])
    data.get("current_inputs", {}).pop("images", None)  # torch prints pixels in its own way
    if "exception_message" in data:
        data["exception_message"] = data["exception_message"].splitlines()[0]  # the rest names directories
    return comparable([kind, data])


def test_recorded_missing_model_of_a_v1_loader(recorded_inputs: EmbeddedEngine) -> None:
    """VAELoader's file name is checked when the prompt is posted, and the answer lists the files there are."""
    exchange = recorded("validation_missing_VAELoader")
    answer = recorded_inputs.post("/prompt", exchange["request_json"])
    assert (answer.status, answer.json) == (exchange["status"], exchange["json"])


@as_recorded("there are more model folders, features and input options")
def test_recorded_information(engine_factory: Callable[..., EmbeddedEngine]) -> None:
    """A fresh core answers GET as recorded: status, type, body."""
    engine = engine_factory()
    static = recorded("http_static")
    differences = {}
    for path in STATIC:
        answer = engine.get(path)
        got: dict[str, Any] = {"status": answer.status}
        if "json" in static[path]:
            got |= {"content_type": answer.headers["content-type"], "json": answer.json}
        else:
            got |= {"text": answer.body.decode()}
        if got != {key: static[path][key] for key in got}:
            differences[path] = got
    assert differences == {}


def test_system_stats(engine: EmbeddedEngine) -> None:
    """The machine is described under ComfyUI's keys, with one CPU device."""
    expected = recorded("http_static")["/system_stats"]["json"]
    stats = engine.get("/system_stats").json
    assert (
        stats["system"].keys() & {"comfyui_version", "ram_total", "python_version", "argv"} <= expected["system"].keys()
    )
    assert stats["system"]["comfyui_version"] == engine_version()
    assert [device.keys() for device in stats["devices"]] == [device.keys() for device in expected["devices"]]


@embedded_only
def test_embedded_engine_names_itself(engine: EmbeddedEngine) -> None:
    """Nobody can take the embedded core for ComfyUI: its statistics say what it is."""
    assert "embedded_engine" in engine.get("/system_stats").json["system"]


@as_recorded("display names and categories changed")
def test_object_info_as_recorded(engine: EmbeddedEngine) -> None:
    """Every node that the core and the recording share has the recorded inputs, outputs and names."""
    shared = engine.get("/object_info").json
    expected = {name: node for name, node in recorded("object_info").items() if name in shared}
    unlisted = {"LoadImage", "LoadImageMask", "UpscaleModelLoader", "VAELoader", "CheckpointLoaderSimple"}
    assert len(expected) >= 20
    for name in expected.keys() - unlisted:
        assert _without_texts({key: shared[name][key] for key in expected[name]}) == expected[name]


def _without_texts(node: dict[str, Any]) -> Any:
    return json.loads(json.dumps(node), object_pairs_hook=lambda pairs: {k: v for k, v in pairs if k != "tooltip"})


@pytest.mark.parametrize("path", ["/prompt", "/free", "/queue", "/history"])
def test_body_that_is_not_json(engine: EmbeddedEngine, path: str) -> None:
    """A body that is no JSON is answered with ComfyUI's fixed text and status 500."""
    answer = engine.post(path, b"{")
    assert (answer.status, answer.body.decode()) == (500, recorded("validation")["invalid_json"]["text"])


@pytest.mark.parametrize(("origin", "status"), [("http://evil.example", 403), ("{own}", 200)])
def test_origin(engine: EmbeddedEngine, origin: str, status: int) -> None:
    """A page of another site may not post a prompt; one of the core's own may."""
    headers = {"Origin": origin.format(own=engine.base_url)}
    answer = engine.post("/prompt", {"prompt": simple("origin")}, headers=headers)
    assert answer.status == status
    if status == 403:
        assert answer.body == b""


@embedded_only
def test_cross_site_fetch(engine: EmbeddedEngine) -> None:
    """What a browser marks as cross-site is refused, as ComfyUI does from 0.33 on."""
    assert engine.request("GET", "/queue", headers={"Sec-Fetch-Site": "cross-site"}).status == 403


@pytest.fixture
def busy(engine: EmbeddedEngine) -> tuple[EmbeddedEngine, str, list[str]]:
    """The engine with one slow prompt running and two pending."""
    client_id = uuid.uuid4().hex
    with engine.socket(client_id) as opened:
        running = engine.post("/prompt", {"prompt": SLOW, "client_id": client_id}).json["prompt_id"]
        pending = [engine.post("/prompt", {"prompt": simple(f"p{i}")}).json["prompt_id"] for i in range(2)]
        while receive(opened)["type"] != "progress":
            pass
    return engine, running, pending


def prompt_ids(items: list[list[Any]]) -> list[str]:
    """Ids of queue items."""
    return [item[1] for item in items]


def test_queue_shows_running_and_pending(busy: tuple[EmbeddedEngine, str, list[str]]) -> None:
    """The queue lists prompts as [number, id, graph, extra data, outputs], and counts the running one too."""
    engine, running, pending = busy
    queue = engine.get("/queue").json
    assert prompt_ids(queue["queue_running"]) == [running]
    assert prompt_ids(queue["queue_pending"]) == pending
    assert comparable(queue["queue_pending"][0][2:]) == [simple("p0"), {}, ["2"]]
    assert engine.get("/prompt").json == {"exec_info": {"queue_remaining": 3}}
    assert engine.get(f"/history/{running}").json == {}
    engine.post("/interrupt", {})


def test_delete_from_queue(busy: tuple[EmbeddedEngine, str, list[str]]) -> None:
    """A pending prompt can be deleted and leaves no trace; a running or unknown one is not touched."""
    engine, running, pending = busy
    assert engine.post("/queue", {"delete": [pending[0], running, "unknown"]}).status == 200
    queue = engine.get("/queue").json
    assert (prompt_ids(queue["queue_running"]), prompt_ids(queue["queue_pending"])) == ([running], pending[1:])
    engine.post("/interrupt", {})
    engine.wait_for(pending[1])
    assert engine.get(f"/history/{pending[0]}").json == {}


def test_clear_queue(busy: tuple[EmbeddedEngine, str, list[str]]) -> None:
    """Clearing the queue keeps the running prompt."""
    engine, running, _ = busy
    assert engine.post("/queue", {"clear": True}).status == 200
    queue = engine.get("/queue").json
    assert (prompt_ids(queue["queue_running"]), queue["queue_pending"]) == ([running], [])
    engine.post("/interrupt", {})


def test_interrupt_of_a_pending_prompt(busy: tuple[EmbeddedEngine, str, list[str]]) -> None:
    """Interrupting a pending prompt by its id does nothing."""
    engine, running, pending = busy
    assert engine.post("/interrupt", {"prompt_id": pending[0]}).status == 200
    queue = engine.get("/queue").json
    assert (prompt_ids(queue["queue_running"]), prompt_ids(queue["queue_pending"])) == ([running], pending)
    engine.post("/interrupt", {})


@pytest.mark.parametrize("targeted", [True, False])
def test_interrupt(engine: EmbeddedEngine, *, targeted: bool) -> None:
    """An interrupt ends the running prompt between two steps: the recorded messages, an entry of status error."""
    expected = recorded("record3_control")
    client_id = uuid.uuid4().hex
    with engine.socket(client_id) as opened:
        prompt_id = engine.post("/prompt", {"prompt": SLOW, "client_id": client_id}).json["prompt_id"]
        while (message := receive(opened))["type"] != "progress":
            pass
        answer = engine.post("/interrupt", {"prompt_id": prompt_id} if targeted else b"")
        messages = messages_until_end(opened)
    assert (answer.status, answer.body) == (200, b"")
    interrupted, _, end = messages[-3:]
    assert message["data"]["value"] < message["data"]["max"]
    assert interrupted["type"] == "execution_interrupted"
    assert interrupted["data"].keys() == expected["interrupt_targeted_running"]["msgs"][0]["data"].keys()
    assert (interrupted["data"]["node_id"], interrupted["data"]["node_type"]) == ("3", "ImageUpscaleWithModel")
    assert end["data"] == {"node": None, "prompt_id": prompt_id}
    entry = engine.get(f"/history/{prompt_id}").json[prompt_id]
    assert (entry["status"]["status_str"], entry["status"]["completed"], entry["outputs"]) == ("error", False, {})
    assert entry["status"]["messages"][-1] == ["execution_interrupted", interrupted["data"]]


def test_interrupt_while_idle(engine: EmbeddedEngine) -> None:
    """An interrupt while nothing runs doesn't hit the next run."""
    assert engine.post("/interrupt", {}).status == 200
    assert engine.run(simple("idle")).status == "success"


def test_answers_while_a_node_runs(busy: tuple[EmbeddedEngine, str, list[str]]) -> None:
    """Probes are answered while a node computes."""
    engine, running, _ = busy
    assert [engine.get("/system_stats").status for _ in range(20)] == [200] * 20
    assert prompt_ids(engine.get("/queue").json["queue_running"]) == [running]
    engine.post("/interrupt", {})


def test_front_of_the_queue(busy: tuple[EmbeddedEngine, str, list[str]]) -> None:
    """A prompt posted with `front` overtakes the pending ones."""
    engine, _, pending = busy
    first = engine.post("/prompt", {"prompt": simple("front"), "front": True}).json
    assert first["number"] < 0
    queued = engine.get("/queue").json["queue_pending"]  # ComfyUI shows its heap as it lies
    assert prompt_ids(sorted(queued, key=lambda item: item[0])) == [first["prompt_id"], *pending]
    engine.post("/interrupt", {})


def test_progress_counts_tiles(engine: EmbeddedEngine) -> None:
    """An upscale reports each tile, as `progress` and in `progress_state`, up to the number of tiles."""
    prompt = copy.deepcopy(SLOW)
    prompt["1"]["inputs"] |= {"width": 600, "height": 500}
    run = engine.run(prompt)
    steps = [message["data"] for message in run.messages if message["type"] == "progress"]
    assert [(step["value"], step["max"], step["node"]) for step in steps] == [(1, 2, "3"), (2, 2, "3")]


def test_reconnecting_client(busy_client: tuple[EmbeddedEngine, str]) -> None:
    """A client that comes back while its prompt runs is told its node, without the prompt's id."""
    engine, client_id = busy_client
    with engine.socket(client_id) as opened:
        greeting, executing = receive(opened), receive(opened)
    assert (greeting["type"], greeting["data"]["sid"]) == ("status", client_id)
    assert executing == recorded("record3_control")["reconnect_same_client_first_msgs"][1] | {"data": {"node": "3"}}
    engine.post("/interrupt", {})


@pytest.fixture
def busy_client(engine: EmbeddedEngine) -> tuple[EmbeddedEngine, str]:
    """The engine with a slow prompt running, and the client that posted it, now gone."""
    client_id = uuid.uuid4().hex
    with engine.socket(client_id) as opened:
        engine.post("/prompt", {"prompt": SLOW, "client_id": client_id})
        while receive(opened)["type"] != "progress":
            pass
    return engine, client_id


def test_feature_flags(engine: EmbeddedEngine) -> None:
    """A client that begins with its feature flags gets the core's; newer cores have more."""
    greeting, flags = recorded("record4_files")["ws_feature_flags"]
    with engine.socket(uuid.uuid4().hex) as opened:
        opened.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
        assert comparable(receive(opened)) == comparable(greeting)
        got = receive(opened)
    assert got["type"] == flags["type"]
    assert flags["data"].items() <= got["data"].items()
    if engine_version() == RECORDED_VERSION:
        assert got == flags


def test_sockets_under_the_prefix(engine: EmbeddedEngine) -> None:
    """The socket exists under /api too, and gives an id to a client that brings none."""
    with engine.socket("", path="/api/ws") as opened:
        greeting: Message = receive(opened)
    assert greeting["data"]["sid"]


def test_history_window(engine: EmbeddedEngine) -> None:
    """`max_items` shows the newest prompts, oldest of them first; `offset` counts from the oldest."""
    engine.post("/history", {"clear": True})
    ids = [engine.run(simple("window", color)).answer.json["prompt_id"] for color in range(3)]
    assert list(engine.get("/history").json) == ids
    assert list(engine.get("/history?max_items=2").json) == ids[1:]
    assert list(engine.get("/history?max_items=1&offset=1").json) == ids[1:2]
    assert engine.post("/history", {"delete": ids[:1]}).status == 200
    assert list(engine.get("/history").json) == ids[1:]


def test_prompt_id_of_the_caller(engine: EmbeddedEngine) -> None:
    """Any text is taken as a prompt's id, and a second prompt under it replaces the first one's entry.

    Newer cores take canonical UUIDs alone.
    """
    if engine_version() != RECORDED_VERSION:
        answer = engine.post("/prompt", {"prompt": simple("own"), "prompt_id": "my-own-id"})
        assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_prompt_id")
        return
    for color in (1, 2):
        assert engine.run(simple("own", color), prompt_id="my-own-id").answer.json["prompt_id"] == "my-own-id"
    assert engine.get("/history/my-own-id").json["my-own-id"]["prompt"][2] == simple("own", 2)


def test_shared_workflows_are_accepted(engine: EmbeddedEngine) -> None:
    """The shared cases validate with an empty `node_errors`."""
    for name in ("01_empty_save", "10_upscale_srvgg", "12_vae_roundtrip"):
        assert engine.post("/prompt", {"prompt": case(name)}).json["node_errors"] == {}
