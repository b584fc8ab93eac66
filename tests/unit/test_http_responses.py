"""Bodies read and errors written by every edge."""

from __future__ import annotations

import io
import json

import pytest
from flask import Request
from werkzeug.exceptions import MethodNotAllowed

from function.errors import BodyTooLargeError, InvalidRequestError, ModelMissingError, QueueFullError
from function.http.responses import error_response, http_error_response, parse_json, read_body, to_response


def request_with(body: bytes, content_length: int | None) -> Request:
    """A request as gunicorn hands it on; without a length it was chunked."""
    environ = {"REQUEST_METHOD": "POST", "wsgi.input": io.BytesIO(body), "wsgi.input_terminated": True}
    if content_length is not None:
        environ["CONTENT_LENGTH"] = str(content_length)
    return Request(environ)


@pytest.mark.parametrize("content_length", [10, None])
def test_a_body_of_exactly_the_limit_is_read(content_length: int | None) -> None:
    """The limit itself is allowed, chunked or not."""
    assert read_body(request_with(b"x" * 10, content_length), max_bytes=10) == b"x" * 10


@pytest.mark.parametrize("content_length", [11, None])
def test_one_byte_more_is_refused(content_length: int | None) -> None:
    """Chunked bodies too, whose length nobody announced."""
    with pytest.raises(BodyTooLargeError, match="MAX_BODY_SIZE_MB"):
        read_body(request_with(b"x" * 11, content_length), max_bytes=10)


def test_a_body_that_is_announced_too_large_is_not_read() -> None:
    """Not one byte of it."""
    request = request_with(b"x" * 11, 11)
    with pytest.raises(BodyTooLargeError):
        read_body(request, max_bytes=10)
    assert request.environ["wsgi.input"].tell() == 0


def test_a_body_that_breaks_off_is_no_body() -> None:
    """Half a document is never taken for a whole one."""
    with pytest.raises(InvalidRequestError, match="ended before the body did"):
        read_body(request_with(b"{}", 10), max_bytes=10)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b"1" * 5000])
def test_what_is_not_json_is_refused(body: bytes) -> None:
    """Whatever the parser stumbles over."""
    with pytest.raises(InvalidRequestError, match="not JSON"):
        parse_json(body)


def test_an_error_is_its_line_its_code_and_its_details() -> None:
    """And Retry-After where trying again helps."""
    answer = error_response(ModelMissingError("no such model", details={"node_errors": {"1": {}}}))
    assert answer.status_code == 422
    assert json.loads(answer.get_data()) == {
        "error": "no such model",
        "code": "model_missing",
        "message": "no such model",
        "statusCode": 422,
        "node_errors": {"1": {}},
    }
    assert "Retry-After" not in answer.headers
    assert error_response(QueueFullError("full", retry_after_seconds=7)).headers["Retry-After"] == "7"


def test_a_refused_method_names_the_allowed_ones() -> None:
    """As HTTP wants it."""
    answer = http_error_response(MethodNotAllowed(valid_methods=["GET", "HEAD"]))
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert json.loads(answer.get_data())["code"] == "method_not_allowed"


def test_a_response_counts_as_streamed_and_has_a_length() -> None:
    """functions-framework reads what a refused client still sends unless the response is streamed."""
    answer = to_response(b"abc")
    assert (answer.is_streamed, answer.content_length) == (True, 3)
