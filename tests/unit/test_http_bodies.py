"""Bodies read and parsed by every edge."""

from __future__ import annotations

import hashlib
import io

import pytest
from flask import Request

from function.errors import BodyTooLargeError, InvalidRequestError
from function.http.bodies import RequestBody, parse_json, read_body


def request_with(body: bytes, content_length: int | None) -> Request:
    """A request as gunicorn hands it on; without a length it was chunked."""
    environ = {"REQUEST_METHOD": "POST", "wsgi.input": io.BytesIO(body), "wsgi.input_terminated": True}
    if content_length is not None:
        environ["CONTENT_LENGTH"] = str(content_length)
    return Request(environ)


@pytest.mark.parametrize("content_length", [10, None])
def test_a_body_of_exactly_the_limit_is_read(content_length: int | None) -> None:
    """The limit itself is allowed, chunked or not."""
    assert read_body(request_with(b"x" * 10, content_length), max_bytes=10).take() == b"x" * 10


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


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b"1" * 5000, b'"\\ud800"'])
def test_what_is_not_json_is_refused(body: bytes) -> None:
    """Whatever the parser stumbles over."""
    with pytest.raises(InvalidRequestError, match="not JSON"):
        parse_json(RequestBody(io.BytesIO(body)))


def test_json_is_parsed_and_its_bytes_are_gone() -> None:
    """So that a large body isn't there twice; a byte order mark, which editors write, is skipped."""
    body = RequestBody(io.BytesIO('\ufeff{"a": ["ä", 1, 1.5, null]}'.encode()))
    assert parse_json(body) == {"a": ["ä", 1, 1.5, None]}
    with pytest.raises(ValueError, match="closed"):
        body.take()


def test_what_came_under_a_key_is_known_by_its_digest() -> None:
    """Path and bytes, and only where a key asks for it."""
    request = request_with(b"{}", 2)
    assert read_body(request, max_bytes=10).sha256 == ""
    keyed = Request({**request_with(b"{}", 2).environ, "PATH_INFO": "/prompt", "HTTP_IDEMPOTENCY_KEY": "k"})
    assert read_body(keyed, max_bytes=10).sha256 == hashlib.sha256(b"/prompt\0{}").hexdigest()
