"""A broker that keeps to Knative's data plane contract.

It takes events with 202 and delivers each to one subscriber until the answer is final: again after no answer, 404, 408,
409, 429 and 5xx, with backoff, up to a number of times; any other answer but 2xx, and the last failure, go to the dead
letters. A 2xx with a CloudEvent is a reply, which comes back as an event of its own; 202 and an empty body are none;
anything else in a body is a failure, as the multi-tenant broker has it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self

import urllib3

from events import parse_cloudevent
from tests.support.redelivery import is_retried

if TYPE_CHECKING:
    from collections.abc import Mapping

_NO_ANSWER = 0
_BAD_REPLY = 502
_LONGEST_BACKOFF_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Message:
    """One event on its way."""

    headers: Mapping[str, str]
    body: bytes


class Broker:
    """A broker on a free port of 127.0.0.1 with one trigger, which lets everything through.

    Args:
        subscriber: URL.
        at_once: Deliveries at the same time.
        retries: Deliveries after the first.
        backoff_seconds: Before the first of them; doubled each time, up to two seconds.

    Attributes:
        replies: The bodies of all replies, by the event's id.
        dead_letters: What was given up, with the last status.
        statuses: How often the subscriber answered what; 0: it did not.
    """

    def __init__(self, subscriber: str, *, at_once: int = 6, retries: int = 40, backoff_seconds: float = 0.1) -> None:
        self.replies: dict[str, list[bytes]] = {}
        self.dead_letters: list[tuple[Message, int]] = []
        self.statuses: Counter[int] = Counter()
        self._subscriber = subscriber
        self._retries = retries
        self._backoff_seconds = backoff_seconds
        self._http = urllib3.PoolManager(maxsize=at_once, retries=False, timeout=120)
        self._queue: queue.Queue[Message | None] = queue.Queue()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Ingress)
        self._server.broker = self  # type: ignore[attr-defined]
        self._threads = [threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})]
        self._threads += [threading.Thread(target=self._deliver_all) for _ in range(at_once)]
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        """Start to take and deliver."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop; what is queued is lost."""
        self._server.shutdown()
        with self._queue.mutex:
            self._queue.queue.clear()
        for _thread in self._threads[1:]:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._server.server_close()
        self._http.clear()

    def publish(self, headers: Mapping[str, str], body: bytes) -> None:
        """Take an event."""
        self._queue.put(Message(headers, body))

    def _deliver_all(self) -> None:
        while message := self._queue.get():
            status = self._deliver(message)
            if not 200 <= status < 300:
                self.dead_letters.append((message, status))

    def _deliver(self, message: Message) -> int:
        """Deliver until the answer is final; its status."""
        for attempt in range(self._retries + 1):
            status = self._send(message)
            if status != _NO_ANSWER and not is_retried(status):
                break
            time.sleep(min(_LONGEST_BACKOFF_SECONDS, self._backoff_seconds * 2**attempt))
        return status

    def _send(self, message: Message) -> int:
        headers = {**message.headers, "Prefer": "reply"}
        try:
            answer = self._http.request("POST", self._subscriber, body=message.body, headers=headers, redirect=False)
        except urllib3.exceptions.HTTPError:
            status = _NO_ANSWER
        else:
            status = self._judge(answer)
        with self._lock:
            self.statuses[status] += 1
        return status

    def _judge(self, answer: urllib3.BaseHTTPResponse) -> int:
        """The status, after its reply was taken."""
        if not 200 <= answer.status < 300 or not answer.data:
            return answer.status
        kind = answer.headers.get("Content-Type", "")
        if answer.status == 202 or not kind.startswith("application/cloudevents+json"):
            return _BAD_REPLY
        event = parse_cloudevent(dict(answer.headers), answer.data)
        with self._lock:
            self.replies.setdefault(event.id, []).append(answer.data)
        self.publish({"Content-Type": kind}, answer.data)
        return answer.status


class _Ingress(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 5

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        kept = {name: value for name, value in self.headers.items() if name.lower() == "content-type"}
        kept |= {name: value for name, value in self.headers.items() if name.lower().startswith("ce-")}
        self.server.broker.publish(kept, body)  # type: ignore[attr-defined]
        self.send_response(202)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class's name)
        """Nobody reads it."""
