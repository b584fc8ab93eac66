"""One POST to a receiver: signed, guarded like every request to other people's servers, over within a limit of time."""

from __future__ import annotations

import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from typing import TYPE_CHECKING

from function.errors import InputRefusedError, StorageUnavailableError
from function.jobs.manifest import utc_now
from function.sources import parse_source_url
from function.storage.connecting import Connector, cut
from function.webhooks.signing import signed_headers

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime
    from http.client import HTTPConnection

    from function.sources import SourceUrl
    from function.storage.connecting import ConnectionRules
    from function.webhooks.signing import Message

_MAY_CHANGE = frozenset({408, 409, 425, 429})  # of the 4xx: timeout, conflict, too early, too many requests


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one request.

    Attributes:
        status: The answer's; 0 if none came.
        says: One line for people, with no more of the URL than its origin: the rest may be a secret.
        refused: Whether our own rules forbid the request.
    """

    status: int
    says: str
    refused: bool = False

    @property
    def delivered(self) -> bool:
        """Whether the receiver has taken it."""
        return 200 <= self.status < 300  # noqa: PLR2004  (2xx)

    @property
    def final(self) -> bool:
        """Whether the same request would be refused again."""
        return self.refused or (400 <= self.status < 500 and self.status not in _MAY_CHANGE)  # noqa: PLR2004  (4xx)


class Sender:
    """Sends requests.

    Redirects are not followed, and no answer is read further than its headers.

    Args:
        rules: Whom to connect to.
        secrets: What messages are signed with; see `signed_headers`.
        clock: The time of day.
    """

    def __init__(
        self, rules: ConnectionRules, *, secrets: tuple[bytes, ...] = (), clock: Callable[[], datetime] = utc_now
    ) -> None:
        self._connector = Connector(rules)
        self._secrets = secrets
        self._clock = clock

    def post(self, url: str, message: Message, *, until: float) -> Answer:
        """Send one request.

        Args:
            url: http or https, checked by `parse_source_url` before.
            message: What is sent.
            until: Monotonic seconds; then it is cut off.
        """
        target = parse_source_url(url)
        headers = signed_headers(message, self._secrets, at=self._clock())
        try:
            connection = self._connector.connect(target)
        except (InputRefusedError, StorageUnavailableError) as error:
            return Answer(0, error.message, refused=isinstance(error, InputRefusedError))
        with closing(connection), _cut_off(connection, until - time.monotonic()):
            return _exchange(connection, target, headers, message)


def _exchange(connection: HTTPConnection, target: SourceUrl, headers: Mapping[str, str], message: Message) -> Answer:
    own = {"User-Agent": "comfyfn", "Connection": "close", "Content-Length": str(len(message.body))}
    try:
        body = message.body if isinstance(message.body, bytes) else iter(message.body)
        connection.request("POST", target.target, body=body, headers={**headers, **own})
        with closing(connection.getresponse()) as answer:
            return Answer(answer.status, f"{target.origin}: HTTP {answer.status}")
    except (OSError, HTTPException) as error:
        return Answer(0, f"{target.origin}: no answer ({type(error).__name__})")


@contextmanager
def _cut_off(connection: HTTPConnection, seconds: float) -> Iterator[None]:
    """Shut a connection down after some time: a receiver that sends a byte now and then never times out."""
    connected: socket.socket = connection.sock
    if seconds <= 0:
        cut(connected)
    timer = threading.Timer(max(0.0, seconds), cut, (connected,))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
