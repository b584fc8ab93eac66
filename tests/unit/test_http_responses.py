"""Answers and errors written by every edge."""

from __future__ import annotations

import json

from werkzeug.exceptions import MethodNotAllowed

from function.errors import ModelMissingError, QueueFullError
from function.http.responses import error_response, http_error_response, to_response


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
