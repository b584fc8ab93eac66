"""A client that asks for a file by `Accept` gets the file, as it gets it in base64 otherwise."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.contract import two_files
from tests.support.engine import case

if TYPE_CHECKING:
    from tests.support.function_process import Answer, FunctionProcess

ONE = {"prompt": case("01_empty_save")}
WEBP = {"convert_output": {"format": "webp", "options": {"lossless": True}}}


def prompted(function: FunctionProcess, accept: str | None, document: dict[str, Any] = ONE, **headers: str) -> Answer:
    """The answer to a workflow whose sender accepts these types."""
    return function.post("/prompt", document, headers | ({"Accept": accept} if accept is not None else {}))


@pytest.mark.parametrize(
    "accept", ["image/png", "image/*", "image/*, */*;q=0.5", "application/json;q=0.5, image/png", "IMAGE/PNG"]
)
def test_a_file_that_is_preferred_is_the_answer(function: FunctionProcess, accept: str) -> None:
    """The same bytes as in the document, but for the name of the job in the picture's text."""
    answer = prompted(function, accept, ONE | {"id": "a"})
    document = prompted(function, None, ONE | {"id": "a"}).json
    assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
    (image,) = document["images"]
    assert len(answer.body) == len(base64.b64decode(image))
    assert answer.body[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    "accept", [None, "", "*/*", "application/json", "application/json, image/png", "image/webp", "text/html", ";;q=x"]
)
def test_any_other_client_gets_the_document(function: FunctionProcess, accept: str | None) -> None:
    """Whatever it accepts: the run is paid for, and what came of it is not thrown away with a 406."""
    answer = prompted(function, accept)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert len(answer.json["images"]) == 1


def test_several_files_are_no_file(function: FunctionProcess) -> None:
    """They come in the document."""
    answer = prompted(function, "image/png", {"prompt": two_files()})
    assert len(answer.json["images"]) == 2


def test_a_converted_file_is_of_another_type(function: FunctionProcess) -> None:
    """What counts is what the client gets."""
    answer = prompted(function, "image/webp", ONE | WEBP)
    assert (answer.headers["content-type"], answer.body[8:12]) == ("image/webp", b"WEBP")
    assert prompted(function, "image/png", ONE | WEBP).json["images"]


def test_a_repeated_request_gets_the_stored_file(function: FunctionProcess) -> None:
    """The same bytes, and no second run."""
    first, second = (prompted(function, "image/png", **{"Idempotency-Key": "one-file"}) for _ in range(2))
    assert first.headers["content-type"] == "image/png"
    assert first.body == second.body


def test_an_error_is_a_document(function: FunctionProcess) -> None:
    """A client that asks for a picture reads why there is none."""
    answer = prompted(function, "image/png", {"prompt": {"1": {"class_type": "NoSuchNode", "inputs": {}}}})
    assert (answer.status, answer.headers["content-type"]) == (400, "application/json")
    assert "NoSuchNode" in answer.json["error"]


def test_a_job_that_nobody_waits_for_is_a_document(function: FunctionProcess) -> None:
    """202 has no file."""
    answer = prompted(function, "image/png", Prefer="respond-async")
    assert (answer.status, answer.headers["content-type"]) == (202, "application/json")
