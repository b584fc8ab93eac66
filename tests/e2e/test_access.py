"""Tokens, web pages of other origins, request ids: what every route has in common."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from events import JOB_COMPLETED
from tests.e2e.test_command_line import comfyfn
from tests.support.engine import case
from tests.support.function_process import functions
from tests.support.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.engine import Answer
    from tests.support.function_process import FunctionFactory, FunctionProcess

TOKENS = ("first-token-of-the-file", "second/token+of.the~file==")
PAGE = "https://app.example"
ROUTES = [
    ("POST", "/"),
    ("POST", "/prompt"),
    ("GET", "/workflow"),
    ("GET", "/models"),
    ("POST", "/download"),
    ("POST", "/jobs"),
    ("GET", "/jobs"),
    ("GET", f"/jobs/{'0' * 32}/events"),
    ("POST", f"/jobs/{'0' * 32}/cancel"),
    ("GET", "/outputs/x/1/y.png"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/models"),
    ("POST", "/v1/images/generations"),
]


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FunctionProcess]:
    """A function with two tokens in a file, that shares its answers with one page."""
    folder = tmp_path_factory.mktemp("access")
    tokens = folder / "tokens"
    tokens.write_text("\n".join(TOKENS) + "\n")
    with functions(folder) as start:
        yield start(API_TOKENS=str(tokens), CORS_ORIGINS=f"{PAGE}, http://localhost:8080")


def bearer(token: str) -> dict[str, str]:
    """The header that brings a token."""
    return {"Authorization": f"Bearer {token}"}


def ask(function: FunctionProcess, method: str, path: str, headers: dict[str, str] | None = None) -> Answer:
    """One request, without a body unless it is a POST."""
    return function._request(method, path, headers=headers or {}, **({"body": b"{}"} if method == "POST" else {}))


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_request_without_a_token_is_refused(function: FunctionProcess, method: str, path: str) -> None:
    """401 on every route that does or tells anything, and the header that says what is wanted."""
    answer = ask(function, method, path)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Bearer realm="comfyfn"')
    assert "error" in answer.json


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/docs"])
def test_probes_metrics_and_the_page_of_the_documentation_need_no_token(function: FunctionProcess, path: str) -> None:
    """Kubelets and scrapers send none; none of these answers tells what jobs are about."""
    assert ask(function, "GET", path).status == 200


@pytest.mark.parametrize("token", TOKENS)
def test_each_token_lets_its_bearer_in(function: FunctionProcess, token: str) -> None:
    """Whichever of the file; the scheme's case does not count."""
    assert ask(function, "GET", "/jobs", bearer(token)).status == 200
    assert ask(function, "GET", "/jobs", {"Authorization": f"bearer {token}"}).status == 200


@pytest.mark.parametrize(
    "header", ["", TOKENS[0], f"Basic {TOKENS[0]}", f"Bearer {TOKENS[0]}x", f"Bearer {TOKENS[0][:-1]}", "Bearer \xe9"]
)
def test_what_is_no_token_of_ours_is_refused(function: FunctionProcess, header: str) -> None:
    """Nor is a part of one, or one without the scheme."""
    assert ask(function, "GET", "/jobs", {"Authorization": header}).status == 401


def test_under_v1_a_missing_token_is_said_in_the_form_of_openai(function: FunctionProcess) -> None:
    """So that its clients raise what they raise there."""
    error = ask(function, "GET", "/v1/models").json["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "unauthorized")


def test_asynchronous_jobs_run_where_requests_need_a_token(function: FunctionProcess) -> None:
    """The process sends them to itself, with a token of its own."""
    answer = function.post("/jobs", {"workflow": case("01_empty_save")}, bearer(TOKENS[1]))
    assert answer.status == 202
    path = answer.json["urls"]["self"]
    wait_until(
        lambda: ask(function, "GET", path, bearer(TOKENS[0])).json["status"] == "completed", what="the job's end"
    )


def test_no_token_gets_into_the_log(function: FunctionProcess) -> None:
    """Neither a good one nor a bad one."""
    ask(function, "GET", "/jobs", bearer("not-one-of-the-tokens"))
    log = function.log.read_text()
    assert not [token for token in (*TOKENS, "not-one-of-the-tokens") if token in log]


def test_events_need_no_token_where_the_operator_says_so(function_factory: FunctionFactory) -> None:
    """A broker gets in, everybody else needs one everywhere else."""
    function = function_factory(API_TOKENS=TOKENS[0], EVENTS_NEED_TOKEN="false")
    assert function.send_event("free", {"workflow": case("01_empty_save")}).json["type"] == JOB_COMPLETED
    assert function.post("/prompt", {"prompt": case("01_empty_save")}).status == 401


def test_the_command_line_brings_its_token(function: FunctionProcess, tmp_path: Path) -> None:
    """COMFYFN_TOKEN; without it the line says what is missing."""
    workflow = tmp_path / "w.json"
    workflow.write_text(json.dumps(case("01_empty_save")))
    arguments = ("run", str(workflow), "--url", function.url, "-o", "out")
    refused = comfyfn(*arguments, cwd=tmp_path)
    assert (refused.returncode, "a token of API_TOKENS is needed" in refused.stderr) == (1, True)
    done = comfyfn(*arguments, cwd=tmp_path, COMFYFN_TOKEN=TOKENS[1])
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out").iterdir())


def test_a_page_may_ask_before_it_sends(function: FunctionProcess) -> None:
    """A preflight needs no token, and is told the route's methods and that the token's header may be sent."""
    asks = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    answer = ask(function, "OPTIONS", "/jobs", asks)
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-allow-methods"] == "GET, HEAD, POST"
    assert answer.headers["access-control-allow-headers"] == "*, Authorization"
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    "path", ["/prompt", "/workflow/x", "/jobs", "/download", "/interrupt", "/v1/images/generations"]
)
@pytest.mark.parametrize("media_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_what_any_page_may_send_without_asking_is_refused(
    function: FunctionProcess, path: str, media_type: str | None
) -> None:
    """A browser sends these to a function on a laptop whoever's page it shows."""
    headers = bearer(TOKENS[0]) | ({"Content-Type": media_type} if media_type else {})
    assert ask(function, "POST", path, headers).status == 415


@pytest.mark.parametrize(
    ("path", "status"), [("/jobs", 200), (f"/jobs/{'0' * 32}", 404), ("/nothing", 404), ("/prompt", 405)]
)
def test_a_page_may_read_answers_and_errors(function: FunctionProcess, path: str, status: int) -> None:
    """With the headers in them, such as the request's id; caches keep answers to other origins apart."""
    answer = ask(function, "GET", path, bearer(TOKENS[0]) | {"Origin": PAGE})
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, PAGE)
    assert (answer.headers["access-control-expose-headers"], answer.headers["vary"]) == ("*", "Origin")


def test_a_page_may_read_a_stream(function: FunctionProcess) -> None:
    """Events of a job are answers as well."""
    headers = bearer(TOKENS[0]) | {"Origin": PAGE}
    job = function.post("/jobs", {"workflow": case("01_empty_save")}, headers)
    answer = ask(function, "GET", job.json["urls"]["events"], headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("origin", ["https://other.example", "https://app.example.evil", "null", ""])
def test_other_pages_may_not(function: FunctionProcess, origin: str) -> None:
    """No header that a browser would take for a permission."""
    answer = ask(function, "GET", "/health", {"Origin": origin})
    assert (answer.status, "access-control-allow-origin" in answer.headers) == (200, False)


def test_every_page_may_where_the_operator_says_so(function_factory: FunctionFactory) -> None:
    """`*`, and the answer does not depend on who asked."""
    answer = ask(function_factory(CORS_ORIGINS="*", probe="/health"), "GET", "/health", {"Origin": PAGE})
    assert (answer.headers["access-control-allow-origin"], answer.headers.get("vary")) == ("*", None)


def test_a_request_keeps_its_id(function: FunctionProcess) -> None:
    """In the answer and in the log lines of its job, whose own id stands beside it."""
    answer = function.post(
        "/prompt", {"prompt": case("01_empty_save")}, bearer(TOKENS[0]) | {"X-Request-Id": "order-4711/a"}
    )
    assert (answer.status, answer.headers["x-request-id"]) == (200, "order-4711/a")
    (line,) = [line for line in function.log_records("job ended") if line.get("request_id") == "order-4711/a"]
    assert re.fullmatch(r"[0-9a-f]{32}", line["job_id"])


def test_an_asynchronous_job_keeps_the_id_of_its_request(function: FunctionProcess) -> None:
    """The log lines of its run have it, though another request brings the job to whoever runs it."""
    headers = bearer(TOKENS[0]) | {"X-Request-Id": "asynchronous-1"}
    function.post("/jobs", {"workflow": case("01_empty_save")}, headers)

    def lines() -> list[object]:
        return [line for line in function.log_records("job ended") if line.get("request_id") == "asynchronous-1"]

    wait_until(lambda: len(lines()) == 1, what="the line of the job's end")


@pytest.mark.parametrize("given", ["", "with space", "x" * 129, 'quote"', "é"])
def test_an_id_that_can_not_be_logged_is_replaced(function: FunctionProcess, given: str) -> None:
    """By a new one, as where none is given; errors have one too."""
    answers = [ask(function, "GET", path, {"X-Request-Id": given}) for path in ("/health", "/nothing", "/jobs")]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert all(re.fullmatch(r"[0-9a-f]{32}", found) for found in ids)
    assert len(set(ids)) == 3
