"""The transfer process: reads what to fetch from its standard input, and ends with it.

The other end of that pipe is open in one process only. When that process dies, even by SIGKILL, the kernel closes it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from function.config import read_settings
from function.credentials import account_of
from function.storage import open_store
from function.storage.origins import fetch_rules, open_origin
from function.transfer import wire
from function.transfer.journal import PART_BYTES
from function.transfer.reader import RangedFetcher

if TYPE_CHECKING:
    from typing import BinaryIO

    from function.credentials import UrlCredential
    from function.storage.origins import Origin
    from function.transfer.fetching import Fetcher
    from function.transfer.wire import Message


class _Stopped(Exception):  # noqa: N818  (asked for, no error)
    """The function no longer wants this file."""


class _Service:
    """Fetches in flight, each in a thread."""

    def __init__(self, fetcher: Fetcher, output: BinaryIO) -> None:
        self._fetcher = fetcher
        self._output = output
        self._lock = threading.Lock()
        self._stopped: set[int] = set()

    def start(self, number: int, message: Message) -> None:
        """Begin a fetch."""
        threading.Thread(target=self._run, args=(number, message), name=f"fetch-{number}", daemon=True).start()

    def stop(self, number: int) -> None:
        """End a fetch at its next report."""
        self._stopped.add(number)

    def _run(self, number: int, message: Message) -> None:
        try:
            answer: Message = {"crc64nvme": self._fetch(number, message)}
        except _Stopped:
            answer = {"error": {"kind": "StorageUnavailableError", "message": "stopped"}}
        except Exception as error:  # noqa: BLE001  (the edge of the process: the other side gets it)
            answer = {"error": wire.to_error(error)}
        self._stopped.discard(number)
        self._send({"fetch": number, **answer})

    def _fetch(self, number: int, message: Message) -> str:
        done = 0

        def report(count: int) -> None:
            nonlocal done
            done += count
            if number in self._stopped:
                raise _Stopped
            if count:
                self._send({"fetch": number, "done_bytes": done})

        return self._fetcher.fetch(wire.parse_wanted(message), on_bytes=report).crc64nvme

    def _send(self, message: Message) -> None:
        with self._lock:
            self._output.write(wire.encode(message))
            self._output.flush()


def _take_stdout() -> BinaryIO:
    """Standard output for answers alone: whatever else is printed goes to standard error."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return output


def main(*, part_bytes: int = PART_BYTES, stall_seconds: float = 10.0) -> None:
    """Serve until standard input ends.

    Args:
        part_bytes: See `RangedFetcher`.
        stall_seconds: After how long without a byte a connection is given up.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the function decides
    settings = read_settings(os.environ)
    open_plainly = partial(open_store, stall_seconds=stall_seconds, attempts=1)  # the fetcher repeats, and knows why
    rules = replace(fetch_rules(settings), read_seconds=stall_seconds)

    def open_for(url: str, *credentials: UrlCredential) -> Origin:
        return open_origin(
            url,
            rules=replace(rules, credentials=credentials + rules.credentials),
            account=account_of(credentials) if url.startswith("s3:") else None,
            open_store=open_plainly,
        )

    fetcher = RangedFetcher(open_store=open_for, part_bytes=part_bytes)
    service = _Service(fetcher, _take_stdout())
    open_plainly(settings.models_url)  # imports boto3 if it is a bucket, before the first file is wanted
    for line in sys.stdin.buffer:
        message = wire.parse(line)
        if "wanted" in message:
            service.start(message["fetch"], message["wanted"])
        elif "stop" in message:
            service.stop(message["stop"])
        else:
            fetcher.busy = message["busy"]
    os._exit(0)  # at once: what the threads have written is noted in the journals
