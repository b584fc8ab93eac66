"""The OpenAPI document: whole, true, and a page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from function.config import read_settings
from function.http.openapi import routes, to_document
from function.http.operations import OPERATIONS
from tests.e2e.test_templates import SAMPLES, noise_template, put_template
from tests.support.function_process import functions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.function_process import FunctionProcess

SEED = "4711"
EXAMPLES = "10"
# What a document can't say: which workflows run, which models and templates there are.
CHECKS_THAT_DO_NOT_FIT = "positive_data_acceptance"


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FunctionProcess]:
    """A function with templates, one of them broken."""
    with functions(tmp_path_factory.mktemp("openapi")) as start:
        process = start(DEADLINE_SECONDS="20")
        shutil.copytree(SAMPLES, process.store / "workflows")
        put_template(process, "colours/plain", noise_template())
        put_template(process, "broken", {"workflow": {}, "parameters": {"a": {"input": "1.x", "type": "float"}}})
        yield process


def test_every_route_is_described_and_nothing_else() -> None:
    """The table of routes and the descriptions have the same methods and paths."""
    assert sorted((method, path) for method, path, _ in routes()) == sorted(OPERATIONS)


def test_the_document_has_every_route(function: FunctionProcess) -> None:
    """And each template as a path of its own, with its parameters; one that is broken is left out."""
    document = function.get("/openapi.json").json
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    templates = {"/workflow/colours/plain", "/workflow/txt2img", "/workflow/upscale"}
    assert described == set(OPERATIONS) | {(method, path) for path in templates for method in ("GET", "POST")}
    body = document["paths"]["/workflow/colours/plain"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["input"]["properties"]["width"] == {
        "type": "integer",
        "default": 8,
        "minimum": 1,
        "maximum": 64,
    }


def test_the_document_is_where_comfyui_api_has_it(function: FunctionProcess) -> None:
    """`/docs/json` is the same document."""
    assert function.get("/docs/json").json == function.get("/openapi.json").json


def test_requests_are_described_by_the_models_that_check_them() -> None:
    """A field of the model is a field of the document."""
    schemas = to_document(read_settings({}))["components"]["schemas"]
    assert schemas["DownloadRequest"]["additionalProperties"] is False
    assert {"url", "model_type", "filename", "wait", "auth"} == set(schemas["DownloadRequest"]["properties"])


def test_every_reference_leads_somewhere() -> None:
    """Generators of clients follow them."""
    text = json.dumps(document := to_document(read_settings({})))
    names = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert names
    assert names <= document["components"]["schemas"].keys()
    ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'"links": {"(\w+)"', text)) <= set(ids)


def test_the_document_says_which_routes_need_a_token() -> None:
    """All but the open ones, where there are tokens; none where there are none."""
    document = to_document(read_settings({"API_TOKENS": "0123456789abcdef"}))
    secured = {
        path for path, methods in document["paths"].items() if all("security" in one for one in methods.values())
    }
    assert document["paths"].keys() - secured == {"/health", "/ready", "/metrics", "/docs"}
    assert "security" not in json.dumps(to_document(read_settings({})))


def test_the_page_needs_nothing_from_anywhere_else(function: FunctionProcess) -> None:
    """No address of another host is in it, and the browser is told to load none."""
    page = function.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(rb"https?://|//[a-z]+\.", page.body)


@pytest.mark.parametrize("path", ["/a%0Ab", "/robots.txt"])
def test_a_path_that_is_none_is_answered_in_json(function: FunctionProcess, path: str) -> None:
    """Also one that the framework around the function refuses."""
    answer = function.get(path)
    assert (answer.status, answer.json["code"]) == (404, "not_found")
    assert function.get(f"/v1/models{path}").json["error"]["type"] == "invalid_request_error"


def test_answers_are_what_the_document_says(function: FunctionProcess, tmp_path: Path) -> None:
    """Schemathesis, with one seed: none is a 5xx, and status, headers and body of each are described."""
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "run", f"{function.url}/openapi.json"),
            *("--seed", SEED, "--max-examples", EXAMPLES, "--phases", "examples,coverage,fuzzing,stateful"),
            *("--exclude-checks", CHECKS_THAT_DO_NOT_FIT, "--no-color", "--continue-on-failure"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
