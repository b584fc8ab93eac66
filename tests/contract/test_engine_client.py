"""The client against recorded traffic of a real ComfyUI, played by a real server."""

from __future__ import annotations

import json
import socket
import threading
import time
import uuid
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from function.engine.api import EngineApi
from function.engine.client import EngineClient, EngineFile, RunLimits, new_prompt_id
from function.errors import (
    DeadlineExceededError,
    EngineUnavailableError,
    InterruptedJobError,
    InvalidWorkflowError,
    JobFailedError,
    ModelMissingError,
    NodeFailedError,
)
from tests.support.replay import RECORDED, Recording, ReplayEngine, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from function.engine.client import EngineRun
    from function.engine.previews import OnPreview, Preview
    from function.telemetry import Progress

WORKFLOW = {"1": {"class_type": "SaveImage", "inputs": {}}}
VALIDATION: dict[str, Any] = {
    name: exchange
    for name, exchange in json.loads((RECORDED / "validation.json").read_text()).items()
    if exchange.get("status") in (400, 500)
} | {path.stem: json.loads(path.read_text()) for path in sorted(RECORDED.glob("validation_missing_*.json"))}


@pytest.fixture
def engine() -> Iterator[ReplayEngine]:
    """A server that plays one recording."""
    with serving(ReplayEngine()) as server:
        yield server


def run(
    engine: ReplayEngine,
    *,
    progress: list[Progress] | None = None,
    announced: list[EngineFile] | None = None,
    previews: list[Preview] | None = None,
    **limits: Any,
) -> EngineRun:
    """Run the recording's own workflow."""
    limits = {"deadline": time.monotonic() + 20} | limits
    with closing(EngineClient("127.0.0.1", engine.port, interrupt_seconds=2.0, quiet_seconds=0.2)) as client:
        return client.run(
            engine.recording.workflow or WORKFLOW,
            prompt_id=new_prompt_id(),
            limits=RunLimits(**limits),
            on_progress=[].append if progress is None else progress.append,
            on_outputs=[].extend if announced is None else announced.extend,
            on_preview=None if previews is None else previews.append,
        )


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("simple_fresh", [("2", "images", "output")]),
        ("simple_cached", [("2", "images", "output")]),
        ("upscale_fresh", [("4", "images", "output")]),
        ("upscale_partly_cached", [("4", "images", "output")]),
        ("ksampler", [("7", "images", "output")]),
        ("preview_and_save", [("2", "images", "temp"), ("4", "images", "output")]),
        ("preview_plain", [("7", "images", "output")]),
        ("preview_meta", [("7", "images", "output")]),
    ],
)
def test_recorded_success(engine: ReplayEngine, name: str, files: list[tuple[str, str, str]]) -> None:
    """A recorded run that succeeded gives its files, all of them announced, and a progress that rises to 1."""
    engine.recording = Recording.of_run(name)
    progress: list[Progress] = []
    announced: list[EngineFile] = []
    result = run(engine, progress=progress, announced=announced)
    assert tuple(announced) == result.files
    assert sorted((file.node_id, file.kind, file.folder_type) for file in result.files) == files
    fractions = [step.fraction for step in progress]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    classes = {node["class_type"] for node in engine.recording.workflow.values()}
    assert {step.detail for step in progress} <= classes | {""}
    assert result.node_seconds.keys() <= engine.recording.workflow.keys()


@pytest.mark.parametrize("name", ["preview_plain", "preview_meta"])
def test_previews_are_handed_on_to_who_asks(engine: ReplayEngine, name: str) -> None:
    """The prompt asks for them, the first message says what we understand, and the node is named either way."""
    engine.recording = Recording.of_run(name)
    previews: list[Preview] = []
    run(engine, previews=previews)
    assert 1 <= len(previews) <= 4
    assert {(preview.node_id, preview.media_type) for preview in previews} == {("4", "image/jpeg")}
    binaries = [message["data"] for message in engine.recording.messages if message["type"] == "<binary>"]
    overhead = 8 if name == "preview_plain" else 8 + 166
    assert len(previews[-1].data) == binaries[-1]["len"] - overhead
    assert engine.bodies[0]["extra_data"] == {"preview_method": "auto"}
    flags = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
    assert [json.loads(text) for text in engine.told] == [flags]


def test_a_run_that_nobody_watches_asks_for_no_previews(engine: ReplayEngine) -> None:
    """An engine that sends them all the same is not listened to."""
    engine.recording = Recording.of_run("preview_meta")
    assert run(engine).files
    assert "extra_data" not in engine.bodies[0]
    assert engine.told == []


def test_progress_names_nodes_and_steps(engine: ReplayEngine) -> None:
    """Of a recorded run: the sampler's four steps, and as many nodes as the workflow has."""
    engine.recording = Recording.of_run("ksampler")
    progress: list[Progress] = []
    run(engine, progress=progress)
    steps = [(step.node_id, step.class_type, step.step, step.steps) for step in progress if step.steps]
    assert list(dict.fromkeys(steps)) == [("4", "KSampler", number, 4) for number in range(1, 5)]
    assert {step.nodes_total for step in progress} == {len(engine.recording.workflow)}
    done = [step.nodes_done for step in progress]
    assert done == sorted(done)
    assert done[-1] == len(engine.recording.workflow)


def test_file_is_reported_whole(engine: ReplayEngine) -> None:
    """A file comes with its node, kind, name, subfolder and folder type."""
    engine.recording = Recording.of_run("upscale_fresh")
    assert run(engine).files == (EngineFile("4", "images", "u957691_00001_.png", "", "output"),)


@pytest.mark.parametrize(
    ("name", "error", "node", "message"),
    [
        ("after_partial_output", NodeFailedError, "3", "node 3 (UpscaleModelLoader) failed: RuntimeError: Error(s) in"),
        ("broken_model", NodeFailedError, "2", "node 2 (UpscaleModelLoader) failed: RuntimeError: Error(s) in loading"),
        ("corrupt_image", NodeFailedError, "1", "node 1 (LoadImage) failed: PIL.UnidentifiedImageError: cannot ident"),
        ("garbage_safetensors", NodeFailedError, "2", "node 2 (VAELoader) failed: safetensors._safetensors_rust.Safet"),
        (
            "v3_missing_model_at_runtime",
            ModelMissingError,
            "2",
            "node 2 (UpscaleModelLoader): model upscale_models/nope.safetensors was not found",
        ),
    ],
)
def test_recorded_failure(
    engine: ReplayEngine, name: str, error: type[JobFailedError], node: str, message: str
) -> None:
    """A recorded run that failed names node, class and exception in one line without a stack trace."""
    engine.recording = Recording.of_run(f"fail_{name}")
    with pytest.raises(error) as raised:
        run(engine)
    assert raised.value.message.startswith(message)
    assert "\n" not in raised.value.message
    assert raised.value.details["node_id"] == node
    assert raised.value.details.keys() == {"node_id", "class_type", "exception_type"}


@pytest.mark.parametrize("name", VALIDATION)
def test_recorded_refusal(engine: ReplayEngine, name: str) -> None:
    """A recorded refusal is an invalid workflow, in one line, with the node errors but no stack trace."""
    engine.recording = Recording.of_validation(VALIDATION[name])
    with pytest.raises(InvalidWorkflowError) as raised:
        run(engine)
    assert "\n" not in raised.value.message
    assert "Traceback" not in raised.value.message
    assert '"traceback"' not in json.dumps(raised.value.details)
    for node_id, node in VALIDATION[name].get("json", {}).get("node_errors", {}).items():
        assert f"node {node_id} ({node['class_type']})" in raised.value.message
        assert raised.value.details["node_errors"][node_id]["class_type"] == node["class_type"]


def test_missing_model_is_named_in_the_refusal(engine: ReplayEngine) -> None:
    """A refused value names node, class, input and value."""
    engine.recording = Recording.of_validation(VALIDATION["validation_missing_VAELoader"])
    with pytest.raises(InvalidWorkflowError, match=r"\(VAELoader\), input vae_name: value_not_in_list: .*nope"):
        run(engine)


def test_dropped_branch_is_no_success(engine: ReplayEngine) -> None:
    """A workflow that the engine takes only in part is refused, and its run is cancelled."""
    exchange = json.loads((RECORDED / "validation.json").read_text())["one_good_one_bad_output"]
    engine.recording = Recording(200, exchange["json"], messages=engine.recording.messages)
    engine.hold_at = 3
    with pytest.raises(InvalidWorkflowError, match=r"node 4 \(LoadImage\)"):
        run(engine, on_stuck=_unexpected)
    assert {"POST /interrupt", "POST /queue"} <= set(engine.seen)
    assert not engine.running


@pytest.mark.parametrize(("status", "error"), [(413, InvalidWorkflowError), (502, EngineUnavailableError)])
def test_other_statuses(engine: ReplayEngine, status: int, error: type[Exception]) -> None:
    """A workflow too large for the engine is the caller's fault, a strange status is the engine's."""
    engine.recording = Recording(status, "")
    with pytest.raises(error):
        run(engine)


def test_socket_is_open_before_the_run_exists(engine: ReplayEngine) -> None:
    """The socket is connected before the POST, under the POST's client id, and the prompt id is a canonical UUID."""
    run(engine)
    assert engine.seen.index("GET /ws") < engine.seen.index("POST /prompt")
    body = engine.bodies[0]
    assert body["prompt_id"] == str(uuid.UUID(body["prompt_id"]))
    assert len(body["client_id"]) == 32


def test_two_runs_share_no_id(engine: ReplayEngine) -> None:
    """Each run has its own prompt id and client id."""
    run(engine)
    run(engine)
    first, second = engine.bodies
    assert first["prompt_id"] != second["prompt_id"]
    assert first["client_id"] != second["client_id"]


@pytest.mark.parametrize("cut_at", [0, 4, -2])
def test_lost_socket(engine: ReplayEngine, cut_at: int) -> None:
    """A socket that is cut in mid-run doesn't matter: the run is found through the history."""
    engine.cut_at = cut_at % len(engine.recording.messages)
    announced: list[EngineFile] = []
    files = run(engine, announced=announced).files
    assert len(files) == 1
    assert set(announced) <= set(files)


def test_files_are_announced_before_the_run_ends(engine: ReplayEngine) -> None:
    """A node's files are announced while later nodes still run, also those of a run that fails in the end."""
    engine.recording = Recording.of_run("fail_after_partial_output")
    announced: list[EngineFile] = []
    with pytest.raises(NodeFailedError):
        run(engine, announced=announced)
    assert [(file.node_id, file.folder_type) for file in announced] == [("2", "output")]


def test_silent_socket(engine: ReplayEngine) -> None:
    """A run whose last messages never arrive is found through the history."""
    engine.mute_from = 3
    assert len(run(engine).files) == 1


def test_forgotten_run(engine: ReplayEngine) -> None:
    """A run that is neither in queue nor history is reported as retryable."""
    engine.cut_at, engine.forgets = 3, True
    with pytest.raises(EngineUnavailableError, match="lost the run"):
        run(engine)


def test_deadline_interrupts(engine: ReplayEngine) -> None:
    """When the deadline passes the run is interrupted, again if the first interrupt has no effect."""
    engine.hold_at, engine.deaf = 3, 2
    with pytest.raises(DeadlineExceededError):
        run(engine, deadline=time.monotonic() + 0.3, on_stuck=_unexpected)
    assert engine.seen.count("POST /interrupt") == 3


def test_stuck_run_is_reported(engine: ReplayEngine) -> None:
    """A run that can't be interrupted is reported, so that the engine can be replaced."""
    engine.hold_at, engine.deaf = 3, -1
    stuck = threading.Event()
    with pytest.raises(DeadlineExceededError):
        run(engine, deadline=time.monotonic() + 0.3, on_stuck=stuck.set)
    assert stuck.is_set()
    _release(engine)


def test_cancelled_run(engine: ReplayEngine) -> None:
    """A run that is no longer wanted is interrupted."""
    engine.hold_at = 3
    with pytest.raises(InterruptedJobError):
        run(engine, is_cancelled=engine.holding.is_set)
    assert "POST /interrupt" in engine.seen


def test_foreign_interrupt(engine: ReplayEngine) -> None:
    """A run that somebody else interrupts ends as interrupted, at the node that was running."""
    engine.hold_at = 3
    threading.Thread(target=_release, args=(engine,)).start()
    with pytest.raises(InterruptedJobError, match=r"at node 4 \(KSampler\)"):
        run(engine)


def test_dead_engine(engine: ReplayEngine) -> None:
    """When the engine's process is gone the run ends as retryable, whatever the socket says."""
    engine.hold_at = 3
    with pytest.raises(EngineUnavailableError, match="died"):
        run(engine, is_alive=lambda: not engine.holding.is_set())
    _release(engine)


def test_no_engine() -> None:
    """An engine that takes no connection is unavailable."""
    with ReplayEngine() as closed:
        pass
    with pytest.raises(EngineUnavailableError, match="takes no connection"):
        run(closed)


def _unexpected() -> None:
    raise AssertionError("the run counted as stuck")


def _release(engine: ReplayEngine) -> None:
    assert engine.holding.wait(10)
    for event in list(engine.running.values()):
        event.set()


def run_again(client: EngineClient, on_preview: OnPreview | None = None) -> EngineRun:
    """A run of a client that had others before."""
    limits = RunLimits(deadline=time.monotonic() + 20)
    return client.run(WORKFLOW, prompt_id=new_prompt_id(), limits=limits, on_preview=on_preview)


def test_connections_are_kept_from_run_to_run(engine: ReplayEngine) -> None:
    """One socket and one client id serve one run after the other."""
    engine.recording = Recording.of_run("simple_fresh")
    with closing(EngineClient("127.0.0.1", engine.port)) as client:
        assert [len(run_again(client).files) for _ in range(3)] == [1, 1, 1]
    assert engine.seen.count("GET /ws") == 1
    assert engine.connections == 2


def test_a_socket_that_said_hello_serves_only_runs_that_say_it(engine: ReplayEngine) -> None:
    """ComfyUI takes only the first message for it, and a run that nobody watches is sent no previews."""
    engine.recording = Recording.of_run("preview_meta")
    previews: list[Preview] = []
    with closing(EngineClient("127.0.0.1", engine.port)) as client:
        watched = [None, previews.append, previews.append, None]
        assert [len(run_again(client, on_preview).files) for on_preview in watched] == [1, 1, 1, 1]
    ids = [body["client_id"] for body in engine.bodies]
    assert ids[1] == ids[2]
    assert len(set(ids)) == 3
    assert [bool(body.get("extra_data")) for body in engine.bodies] == [False, True, True, False]
    assert len(engine.told) == 1
    assert previews


def test_a_kept_socket_on_which_the_engine_was_just_heard_is_not_asked(engine: ReplayEngine) -> None:
    """What comes on it between two runs is dropped."""
    with closing(EngineClient("127.0.0.1", engine.port, quiet_seconds=60, trusted_seconds=60)) as client:
        assert run_again(client).files
        engine.answers_pings = False
        assert run_again(client).files
    assert engine.seen.count("GET /ws") == 1


def test_a_kept_socket_on_which_the_engine_is_silent_is_replaced(engine: ReplayEngine) -> None:
    """Before the run is submitted it has to answer; nothing of the run is looked for on one that does not."""
    with closing(EngineClient("127.0.0.1", engine.port, quiet_seconds=60, trusted_seconds=0)) as client:
        assert run_again(client).files
        engine.answers_pings = False
        assert run_again(client).files
    assert engine.seen.count("GET /ws") == 2


def test_a_kept_socket_on_which_much_was_said_is_kept(engine: ReplayEngine) -> None:
    """Whatever the engine tells all its clients between two runs of ours, also of runs that are somebody else's."""
    with closing(EngineClient("127.0.0.1", engine.port, quiet_seconds=60, trusted_seconds=0)) as client:
        assert run_again(client).files
        (client_id,) = engine.sockets
        for number in range(1000):
            engine.send(client_id, {"type": "status", "data": {"status": {"exec_info": {"queue_remaining": number}}}})
        assert run_again(client).files
    assert engine.seen.count("GET /ws") == 1


def test_each_answer_may_repeat_its_own_workflow(engine: ReplayEngine) -> None:
    """What was allowed for the workflow of a run before is not allowed for the next one's answers."""
    with closing(EngineApi("127.0.0.1", engine.port, max_answer_bytes=300)) as api:
        for text, is_read in (("", False), ("x" * 5000, True), ("", False)):
            workflow = {"1": {"class_type": "SaveImage", "inputs": {"text": text}}}
            prompt_id = new_prompt_id()
            api.submit(workflow, prompt_id=prompt_id, client_id="c", extra_data={}, timeout_seconds=20)
            assert reads_history(api, prompt_id) == is_read


def reads_history(api: EngineApi, prompt_id: str) -> bool:
    """Wait until a run has ended; whether its record may be read."""
    try:
        while api.history(prompt_id) is None:
            time.sleep(0.01)
    except NodeFailedError:
        return False
    return True


def test_a_kept_socket_that_the_engine_closed_is_replaced(engine: ReplayEngine) -> None:
    """A connection that ended between two runs costs the next one nothing but a new connection, under a new id."""
    engine.recording = Recording.of_run("simple_fresh")
    with closing(EngineClient("127.0.0.1", engine.port, quiet_seconds=60, trusted_seconds=0)) as client:
        assert run_again(client).files
        (connection,) = engine.sockets.values()
        connection.shutdown(socket.SHUT_RDWR)
        assert run_again(client).files
    assert len(engine.sockets) == 2


def test_a_socket_that_was_lost_in_a_run_is_not_kept(engine: ReplayEngine) -> None:
    """Silence of a socket that came back means nothing, so the next run has one of its own."""
    engine.recording = Recording.of_run("simple_fresh")
    engine.cut_at = 4
    with closing(EngineClient("127.0.0.1", engine.port, quiet_seconds=0.2)) as client:
        assert run_again(client).files
        engine.cut_at = -1
        assert run_again(client).files
    assert engine.seen.count("GET /ws") == 2


def test_a_message_of_before_is_nothing_to_the_next_run(engine: ReplayEngine) -> None:
    """What comes between two runs is dropped, also the end of a run that was not this one."""
    engine.recording = Recording.of_run("simple_fresh")
    with closing(EngineClient("127.0.0.1", engine.port)) as client:
        first = run_again(client)
        (client_id,) = engine.sockets
        engine.send(client_id, {"type": "executing", "data": {"node": None, "prompt_id": first.prompt_id}})
        assert run_again(client).prompt_id != first.prompt_id
