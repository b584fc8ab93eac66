"""Bodies at the limit: taken without a copy too many, refused before they are read."""

from __future__ import annotations

import base64
import http.client
import json
import socket
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from function.setting_values import MIB
from tests.support.engine import DATA
from tests.support.function_process import functions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.function_process import FunctionProcess

LIMIT_BYTES = 200 * MIB
GROWTH = 2.2
PIECE_BYTES = MIB
IS_JSON = "Content-Type: application/json\r\n"


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FunctionProcess]:
    """A function that takes bodies of 200 MiB."""
    with functions(tmp_path_factory.mktemp("bodies")) as start:
        yield start(MAX_BODY_SIZE_MB=str(LIMIT_BYTES // MIB))


def padded_png(size_bytes: int) -> bytes:
    """A picture of 64 x 48 pixels with bytes behind its end, which readers skip."""
    photo = (DATA / "cases" / "in_64x48.png").read_bytes()
    return photo + bytes(size_bytes - len(photo))


def body_of(size_bytes: int) -> bytes:
    """A request for `/prompt` of exactly this length that carries its input file."""
    workflow = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "@"}},
        "2": {"class_type": "ImageScaleBy", "inputs": {"image": ["1", 0], "upscale_method": "area", "scale_by": 0.5}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "small"}},
    }
    head, tail = json.dumps({"prompt": workflow}).encode().split(b"@")
    head += b"data:image/png;base64,"
    room = size_bytes - len(head) - len(tail)
    data = base64.b64encode(padded_png(room // 4 * 3))
    return head + data + tail + b" " * (size_bytes - len(head) - len(data) - len(tail))


def rss_bytes(pid: int, field: str = "VmRSS") -> int:
    """What a process has in main memory; `VmHWM`: the most since `forget_peak`."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def forget_peak(pid: int) -> None:
    """The peak is counted from now on (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def send(function: FunctionProcess, body: bytes, framing: str) -> tuple[int, bytes]:
    """POST a body to `/prompt` in pieces; status and body of the answer."""
    pieces = (body[start : start + PIECE_BYTES] for start in range(0, len(body), PIECE_BYTES))
    chunked = framing == "chunked"
    headers = {"Content-Type": "application/json", **({} if chunked else {"Content-Length": str(len(body))})}
    with closing(http.client.HTTPConnection("127.0.0.1", function.port, timeout=120)) as connection:
        connection.request("POST", "/prompt", body=pieces, headers=headers, encode_chunked=chunked)
        answer = connection.getresponse()
        return answer.status, answer.read()


@contextmanager
def little_growth(function: FunctionProcess) -> Iterator[None]:
    """The worker's memory grows by less than so many times the largest body, at any moment within the block."""
    before = rss_bytes(function.worker_pid)
    forget_peak(function.worker_pid)
    yield
    growth = (rss_bytes(function.worker_pid, "VmHWM") - before) / LIMIT_BYTES
    assert growth < GROWTH, f"{growth:.2f} times the body"


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
@pytest.mark.parametrize("letter", ["x", "画"])
def test_a_body_at_the_limit_is_read_and_parsed(function: FunctionProcess, framing: str, letter: str) -> None:
    """All of it is looked at, in little memory, also if it is not all ASCII: here for a name that is too long."""
    name = b"x" * (LIMIT_BYTES - len(letter.encode()) - len(b'{"id": "", "prompt": {}}'))
    body = b'{"id": "' + letter.encode() + b'", "prompt": {}, "x": "' + name[: -len(b', "x": ""')] + b'"}'
    assert len(body) == LIMIT_BYTES
    with little_growth(function):
        status, answer = send(function, body, framing)
    assert status == 400
    assert len(answer) < PIECE_BYTES


def test_a_body_at_the_limit_runs(function: FunctionProcess) -> None:
    """200 MiB with a file in them are a job like any other, in little memory."""
    body = body_of(LIMIT_BYTES)
    assert len(body) == LIMIT_BYTES
    with little_growth(function):
        status, answer = send(function, body, "content-length")
    assert status == 200, answer[:500]
    assert len(json.loads(answer)["images"]) == 1


def test_a_body_that_is_announced_too_large_is_refused_unread(function: FunctionProcess) -> None:
    """413 comes although nothing but the head was sent."""
    head = f"POST /prompt HTTP/1.1\r\nHost: f\r\n{IS_JSON}Content-Length: {LIMIT_BYTES + 1}\r\n\r\n"
    with little_growth(function), socket.create_connection(("127.0.0.1", function.port), timeout=30) as connection:
        connection.sendall(head.encode())
        assert connection.recv(65_536).startswith(b"HTTP/1.1 413")


def test_a_body_that_turns_out_too_large_is_refused_before_its_end(function: FunctionProcess) -> None:
    """413 comes with the first bytes above the limit, while the client still sends."""
    head = f"POST /prompt HTTP/1.1\r\nHost: f\r\n{IS_JSON}Transfer-Encoding: chunked\r\n\r\n"
    piece = f"{PIECE_BYTES:x}\r\n".encode() + b"x" * PIECE_BYTES + b"\r\n"
    with little_growth(function), socket.create_connection(("127.0.0.1", function.port), timeout=60) as connection:
        connection.sendall(head.encode())
        for _ in range(LIMIT_BYTES // PIECE_BYTES):
            connection.sendall(piece)
        connection.sendall(b"800\r\n" + b"x" * 2048 + b"\r\n")  # not the end: another piece may follow
        assert connection.recv(65_536).startswith(b"HTTP/1.1 413")
