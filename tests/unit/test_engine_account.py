"""What the socket told of recorded runs of a real ComfyUI, beside their history."""

from __future__ import annotations

import json
from typing import Any

import pytest

from function.engine.account import RunAccount
from function.engine.results import parse_run
from tests.support.replay import RECORDED

RUNS = sorted(path.stem for path in RECORDED.glob("run_*.json"))
TOLD = ["run_ksampler", "run_preview_and_save", "run_simple_fresh", "run_upscale_fresh"]
PROMPT_ID = "b02d4090-05d6-4423-a3f2-db6cfaeccdf0"
OUTPUT = {"images": [{"filename": "a_00001_.png", "subfolder": "", "type": "output"}]}

MESSAGES_OF_OTHERS = [
    {},
    {"type": []},
    {"type": "executed", "data": 7},
    {"data": {"prompt_id": "x"}},
    {"type": [], "data": {"prompt_id": PROMPT_ID}},
]


def recorded(name: str) -> dict[str, Any]:
    """A recording."""
    return json.loads((RECORDED / f"{name}.json").read_text())


def account_of(messages: list[dict[str, Any]]) -> RunAccount:
    """An account of a run of two nodes that has seen some messages."""
    account = RunAccount({"1", "2"}, prompt_id=PROMPT_ID)
    for message in messages:
        account.see(message)
    return account


def told() -> list[dict[str, Any]]:
    """What is told of a run of two nodes."""
    return [
        to_message("execution_start", timestamp=1),
        to_message("execution_cached", nodes=[], timestamp=1),
        to_message("executing", node="1", display_node="1"),
        to_message("executing", node="2", display_node="2"),
        to_message("executed", node="2", display_node="2", output=OUTPUT),
        to_message("execution_success", timestamp=2),
        to_message("executing", node=None),
    ]


def to_message(kind: str, **data: Any) -> dict[str, Any]:
    """A message of the run."""
    return {"type": kind, "data": {"prompt_id": PROMPT_ID} | data}


@pytest.mark.parametrize("name", TOLD)
def test_a_run_that_was_told_whole_is_as_its_history_has_it(name: str) -> None:
    """Files, texts and times, to the millisecond."""
    recording = recorded(name)
    ((prompt_id, entry),) = recording["history"].items()
    account = RunAccount(recording["post"]["request_json"]["prompt"], prompt_id=prompt_id)
    for message in recording["messages"]:
        account.see(message["msg"])
    record = account.record()
    assert record
    run = parse_run(prompt_id, record, node_seconds={})
    assert run.files
    assert run == parse_run(prompt_id, entry, node_seconds={})


@pytest.mark.parametrize("name", [name for name in RUNS if "cached" in name or "fail" in name])
def test_only_the_history_has_all_of_other_runs(name: str) -> None:
    """Those with nodes from the cache, and those that failed."""
    recording = recorded(name)
    prompt_id = recording["post"]["json"]["prompt_id"]
    account = RunAccount(recording["post"]["request_json"]["prompt"], prompt_id=prompt_id)
    for message in recording["messages"]:
        account.see(message["msg"])
    assert account.record() is None


def test_whole() -> None:
    """The messages that the next tests change are enough."""
    record = account_of(told()).record()
    assert record
    assert record["outputs"] == {"2": OUTPUT}


@pytest.mark.parametrize("kind", ["execution_start", "execution_cached", "execution_success"])
def test_a_message_that_did_not_come(kind: str) -> None:
    """Without the run's beginning or end nobody knows what else is missing."""
    assert account_of([message for message in told() if message["type"] != kind]).record() is None


@pytest.mark.parametrize(
    "message",
    [
        to_message("execution_error", exception_type="ExecutionBlocked"),
        to_message("executing", node="1.0.0.1", display_node="1"),
        to_message("executed", node="1.0.0.1", display_node="1", output=OUTPUT),
        to_message("execution_cached", nodes=["1"]),
        to_message("execution_cached", nodes=None),
    ],
    ids=["blocked branch", "added node", "output of an added node", "cached node", "no list"],
)
def test_a_message_that_says_that_there_is_more(message: dict[str, Any]) -> None:
    """What came from the cache, nodes that another node added, and errors are in the history alone."""
    assert account_of([*told()[:-2], message, *told()[-2:]]).record() is None


@pytest.mark.parametrize("output", [None, [], "text", 7])
def test_a_node_that_shows_nothing(output: object) -> None:
    """As the history, which leaves it out."""
    messages = told()
    messages[4]["data"]["output"] = output
    record = account_of(messages).record()
    assert record
    assert record["outputs"] == {}


@pytest.mark.parametrize("message", MESSAGES_OF_OTHERS)
def test_messages_of_others(message: dict[str, Any]) -> None:
    """Other runs' messages, and what no ComfyUI sends, change nothing."""
    assert account_of([*told(), message]).record() == account_of(told()).record()
