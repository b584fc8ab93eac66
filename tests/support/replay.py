"""A small real server that plays recorded ComfyUI traffic: HTTP and WebSocket on one port, standard library only.

In a test it runs in a thread (`ReplayEngine`); as a program it is an engine process for the supervisor:

    python replay.py --port N [--hold-once FILE] [--deaf] [--out-of-memory N] [--fail-once FILE]
        [--memory-mb N] [--ignore-sigterm] [--with-child]
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

RECORDED = Path(__file__).parents[1] / "data" / "comfyui" / "recorded"
_HANDSHAKE_KEY = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TEXT, _BINARY, _CLOSE, _PING, _PONG = 1, 2, 8, 9, 10
_WITH_METADATA = b"\0\0\0\4"


@dataclass(frozen=True)
class Recording:
    """One recorded run: the POST's answer, the messages the client saw, the history entry."""

    status: int
    answer: dict[str, Any] | str
    workflow: dict[str, Any] = field(default_factory=dict)
    messages: tuple[dict[str, Any], ...] = ()
    history: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_run(cls, name: str) -> Recording:
        """`run_<name>.json`."""
        document = json.loads((RECORDED / f"run_{name}.json").read_text())
        return cls(
            status=document["post"]["status"],
            answer=document["post"]["json"],
            workflow=document["post"]["request_json"]["prompt"],
            messages=tuple(message["msg"] for message in document["messages"]),
            history=next(iter(document["history"].values())),
        )

    @classmethod
    def of_validation(cls, exchange: dict[str, Any]) -> Recording:
        """One exchange of `validation*.json`."""
        return cls(status=exchange["status"], answer=exchange.get("json", exchange.get("text", "")))

    def as_prompt(self, prompt_id: str) -> Recording:
        """The same run under another id."""
        recorded = self.answer.get("prompt_id") if isinstance(self.answer, dict) else None
        if not recorded:
            return self
        fields = (self.answer, self.messages, self.history)
        answer, messages, history = json.loads(json.dumps(fields).replace(recorded, prompt_id))
        return Recording(self.status, answer, self.workflow, tuple(messages), history)


class ReplayEngine(ThreadingHTTPServer):
    """Plays `recording` for every POST /prompt.

    Attributes:
        cut_at: Close the run's socket instead of sending this message (an index); the run still ends in history.
        hold_at: Stay at this message until interrupted, once.
        deaf: How many interrupts to ignore; -1: all.
        out_of_memory: How many runs fail for lack of memory, until POST /free has been seen that often.
        fails_with: What a node raises; "": none does.
        forgets: Whether a run leaves neither history nor queue entry.
        mute_from: From this message on send nothing, though the run goes on.
        seen: Method and path of every request, in order.
        bodies: Bodies of POST /prompt.
        told: Texts that clients sent on their sockets.
        answers_pings: Whether a socket's ping is answered.
        connections: How many were taken.
    """

    daemon_threads = True

    def __init__(self, recording: Recording | None = None, *, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.recording = recording or Recording.of_run("simple_fresh")
        self.cut_at = self.hold_at = self.mute_from = -1
        self.deaf = self.out_of_memory = 0
        self.forgets = False
        self.fails_with = ""
        self.seen: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.told: list[str] = []
        self.answers_pings = True
        self.connections = 0
        self.sockets: dict[str, socket.socket] = {}
        self.history: dict[str, Any] = {}
        self.running: dict[str, threading.Event] = {}
        self.holding = threading.Event()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.server_address[1]

    def accept_prompt(self, body: dict[str, Any]) -> Recording:
        """Take a prompt; the caller answers it, then plays it."""
        self.bodies.append(body)
        recording = self.recording.as_prompt(body["prompt_id"])
        if recording.status == 200:
            self.running[body["prompt_id"]] = threading.Event()
        return recording

    def play(self, body: dict[str, Any], recording: Recording) -> None:
        """Send the run's messages to the socket of its client and put it into the history before the last one."""
        prompt_id, client_id = body["prompt_id"], body["client_id"]
        entry = self._entry(recording)
        for index, message in enumerate(recording.messages):
            if index == self.cut_at and client_id in self.sockets:
                self.sockets.pop(client_id).shutdown(socket.SHUT_RDWR)
            if index == self.mute_from:
                self.sockets.pop(client_id, None)
            if index == self.hold_at:
                self.hold_at = -1
                self.holding.set()
                self.running[prompt_id].wait()
                self._end(prompt_id, _interrupted(prompt_id))
                self.send(client_id, {"type": "executing", "data": {"node": None, "prompt_id": prompt_id}})
                return
            if message["type"] == "executing" and message["data"]["node"] is None:
                self._end(prompt_id, entry)
            if message["type"] == "execution_success" and entry["status"]["status_str"] == "error":
                kind, data = entry["status"]["messages"][-1]
                self.send(client_id, {"type": kind, "data": data | {"prompt_id": prompt_id}})
                continue
            self.send(client_id, message, prompt_id)

    def _entry(self, recording: Recording) -> dict[str, Any]:
        if self.out_of_memory:
            return _failure("torch.OutOfMemoryError", "")
        return _failure("RuntimeError", self.fails_with) if self.fails_with else recording.history

    def _end(self, prompt_id: str, entry: dict[str, Any]) -> None:
        if not self.forgets:
            self.history[prompt_id] = entry
        self.running.pop(prompt_id)

    def interrupt(self, prompt_id: str) -> None:
        """As POST /interrupt does, unless deaf."""
        if self.deaf:
            self.deaf -= 1
        elif prompt_id in self.running:
            self.running[prompt_id].set()

    def send(self, client_id: str, message: dict[str, Any], prompt_id: str = "") -> None:
        """One message to a client's socket, if it has one."""
        connection = self.sockets.get(client_id)
        if connection is None:
            return
        if message["type"] == "<binary>":
            frame = _frame(_BINARY, _preview(message["data"], prompt_id))
        else:
            frame = _frame(_TEXT, json.dumps(message).encode())
        with suppress(OSError):
            connection.sendall(frame)

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a client that goes away is what some tests are about."""


def _interrupted(prompt_id: str) -> dict[str, Any]:
    message = ["execution_interrupted", {"prompt_id": prompt_id, "node_id": "4", "node_type": "KSampler"}]
    return {"outputs": {}, "status": {"status_str": "error", "completed": False, "messages": [message]}}


def _failure(kind: str, message: str) -> dict[str, Any]:
    data = {"node_id": "1", "node_type": "KSampler", "exception_type": kind, "exception_message": message}
    return {"outputs": {}, "status": {"status_str": "error", "messages": [["execution_error", data]]}}


def _preview(data: dict[str, Any], prompt_id: str) -> bytes:
    """A recorded preview: its head was kept, and its length; the metadata of a real one is written anew."""
    head = bytes.fromhex(data["head_hex"])
    if head.startswith(_WITH_METADATA):
        facts = {"node_id": "4", "prompt_id": prompt_id, "display_node_id": "4", "parent_node_id": None}
        metadata = json.dumps(facts | {"real_node_id": "4", "image_type": "image/jpeg"}).encode()
        head = head[:4] + len(metadata).to_bytes(4, "big") + metadata
    return head.ljust(data["len"], b"\0")


def _read_frame(connection: socket.socket) -> tuple[int, str]:
    """The next frame that a client sends, all of them short ones; a close frame for its end."""
    head = connection.recv(6, socket.MSG_WAITALL)
    if len(head) < 6:
        return _CLOSE, ""
    payload = connection.recv(size, socket.MSG_WAITALL) if (size := head[1] & 0x7F) else b""
    return head[0] & 0xF, bytes(byte ^ head[2 + index % 4] for index, byte in enumerate(payload)).decode("latin-1")


def _frame(opcode: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return struct.pack("!BB", 0x80 | opcode, size) + payload
    return struct.pack("!BBH" if size < 2**16 else "!BBQ", 0x80 | opcode, 126 + (size >= 2**16), size) + payload


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ReplayEngine

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_GET(self) -> None:
        engine, path = self.server, self.path.partition("?")[0]
        engine.seen.append(f"GET {path}")
        if path == "/ws":
            self._websocket()
        elif path == "/system_stats":
            self._answer(200, {"system": {"comfyui_version": "0.3.64"}, "devices": []})
        elif path == "/queue":
            items = [[0, prompt_id, {}, {}, []] for prompt_id in list(engine.running)]
            self._answer(200, {"queue_running": items, "queue_pending": []})
        elif path.startswith("/history/"):
            prompt_id = path.rpartition("/")[2]
            self._answer(200, {prompt_id: engine.history[prompt_id]} if prompt_id in engine.history else {})
        else:
            self._answer(404, "")

    def do_POST(self) -> None:
        engine = self.server
        engine.seen.append(f"POST {self.path}")
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/prompt":
            recording = engine.accept_prompt(body)
            self._answer(recording.status, recording.answer)
            if recording.status == 200:
                threading.Thread(target=engine.play, args=(body, recording), daemon=True).start()
            return
        if self.path == "/free":
            engine.out_of_memory -= engine.out_of_memory > 0
        if self.path == "/interrupt":
            engine.interrupt(body["prompt_id"])
        self._answer(200, "")

    def _answer(self, status: int, content: dict[str, Any] | str) -> None:
        payload = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)
        self.wfile.flush()

    def _websocket(self) -> None:
        engine, client_id = self.server, self.path.partition("clientId=")[2]
        key = self.headers["Sec-WebSocket-Key"].encode() + _HANDSHAKE_KEY
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key).digest()).decode())  # noqa: S324  (RFC 6455)
        engine.sockets[client_id] = self.connection  # before the client knows, so that no message of a run is missed
        self.end_headers()
        engine.send(client_id, {"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 0}}}})
        with suppress(OSError):
            while (frame := _read_frame(self.connection))[0] != _CLOSE:
                if frame[0] == _TEXT:
                    engine.told.append(frame[1])
                elif frame[0] == _PING and engine.answers_pings:
                    self.connection.sendall(_frame(_PONG, frame[1].encode("latin-1")))
            self.connection.sendall(_frame(_CLOSE, b""))
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing: the tests speak for themselves."""


@contextmanager
def serving(engine: ReplayEngine) -> Iterator[ReplayEngine]:
    """The engine, answering in a thread until the block ends."""
    thread = threading.Thread(target=engine.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield engine
    finally:
        engine.shutdown()
        engine.server_close()
        thread.join()


def main() -> None:
    """Be an engine process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--hold-once", type=Path, help="the first process that finds this file missing holds its run")
    parser.add_argument("--deaf", action="store_true")
    parser.add_argument("--out-of-memory", type=int, default=0)
    parser.add_argument("--fail-once", type=Path, help="the first process that finds this file fails with its text")
    parser.add_argument("--memory-mb", type=int, default=0, help="how much to hold")
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--with-child", action="store_true", help="as a wrapper does: the engine is a child")
    options = parser.parse_args()
    if options.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.with_child:
        argv = [part for part in sys.argv if part != "--with-child"]
        sys.exit(subprocess.call([sys.executable, *argv]))
    engine = ReplayEngine(port=options.port)
    engine.deaf, engine.out_of_memory = -options.deaf, options.out_of_memory
    if options.hold_once and not options.hold_once.exists():
        options.hold_once.write_text(str(os.getpid()))
        engine.hold_at = 6
    if options.fail_once and options.fail_once.exists():
        engine.fails_with = options.fail_once.read_text()
        options.fail_once.unlink()
    held = b"x" * (options.memory_mb * 1024**2)
    sys.stderr.write(f"holding {len(held)} bytes\n")
    sys.stderr.write(f"listening on {engine.port}\n")
    engine.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main()
