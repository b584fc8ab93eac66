"""Asynchronous jobs on their way to who runs them.

A dispatch is one `dev.comfyfn.job.requested` that names a recorded job. A broker takes it at once and delivers it
itself. A function answers when the job has ended; that request is held open meanwhile, because an open request is what
Knative scales by and what keeps a pod alive.
"""

from __future__ import annotations

import logging
import threading
import uuid
from contextvars import copy_context
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from queue import SimpleQueue
from typing import TYPE_CHECKING

import urllib3

from events import JOB_COMPLETED, JOB_FAILED, JOB_REQUESTED, MalformedEventError, parse_cloudevent, to_structured
from function.errors import ComfyfnError
from function.jobs.ended import SOURCE
from function.jobs.holders import HELD_SECONDS
from function.jobs.manifest import to_timestamp, utc_now
from function.logs import current_request_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from function.jobs.holders import Holders
    from function.jobs.records import JobRecords

_log = logging.getLogger("comfyfn.jobs")

_REQUESTS = 64  # held at a time; further jobs wait for one of them, noted as held all the same
_CONNECT_SECONDS = 10.0
_LONGEST_PAUSE_SECONDS = 30.0
_STOP_SECONDS = 5.0
_TAKEN_OVER = frozenset({HTTPStatus.ACCEPTED, HTTPStatus.NO_CONTENT})
_ENDS = frozenset({JOB_COMPLETED, JOB_FAILED})


class Dispatcher:
    """Sends recorded jobs to one URL, each until it has ended or somebody else answers for it.

    Args:
        url: A broker, or a function.
        records: Where the jobs are recorded.
        holders: Where it is noted which of them are held.
        token: What the URL is sent as a bearer token; "" for none.
        answer_seconds: How long a function may take to answer.
        on_ended: Called with the id of a job that has ended, to tell who asked to be told and close it.
    """

    def __init__(
        self,
        url: str,
        records: JobRecords,
        holders: Holders,
        *,
        answer_seconds: float,
        on_ended: Callable[[str], None],
        token: str = "",
    ) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._records = records
        self._holders = holders
        self._answer_seconds = answer_seconds
        self._on_ended = on_ended
        self._http = urllib3.PoolManager(
            maxsize=_REQUESTS, retries=False, timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=answer_seconds)
        )
        self._waiting: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._senders = 0
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._held: set[str] = set()
        self._telling = threading.Lock()
        self._keeper = threading.Thread(target=self._keep, name="dispatch-keeper", daemon=True)

    def start(self) -> None:
        """Begin to tell others at intervals what is held."""
        self._keeper.start()

    def stop(self) -> None:
        """Let go of everything: the jobs stay open in storage, for the next sweep of any pod."""
        with self._lock:
            self._stopped.set()
            for _ in range(self._senders):
                self._waiting.put(None)
        self._http.clear()
        if self._keeper.is_alive():
            self._keeper.join(_STOP_SECONDS)

    def dispatch(self, job_id: str, *, webhooks: bool = True) -> None:
        """See to it that a job is run; returns at once. A job that is held already stays as it is.

        Args:
            job_id: The job.
            webhooks: Whether it may have any; without, its end only closes it.
        """
        with self._lock:
            if self._stopped.is_set() or job_id in self._held:
                return
            self._held.add(job_id)
            on_ended = self._on_ended if webhooks else self._records.close
            context = copy_context()  # with the id of the request that asked
            self._waiting.put(partial(context.run, self._see_through, job_id, on_ended))
            if self._senders < _REQUESTS:
                self._senders += 1
                threading.Thread(target=self._send_all, name="dispatch", daemon=True).start()

    def answer_by(self) -> str:
        """By when a job that somebody takes on now has ended, ISO 8601 in UTC."""
        return to_timestamp(utc_now() + timedelta(seconds=self._answer_seconds))

    def holds(self, job_id: str) -> bool:
        """Whether this process is at it."""
        return job_id in self._held

    def free(self, job_ids: list[str]) -> list[str]:
        """Which of these nobody holds, here or in another process.

        Raises:
            StorageUnavailableError: Storage does not answer.
        """
        others = [job_id for job_id in job_ids if not self.holds(job_id)]
        held = self._holders.held() if others else frozenset[str]()
        return [job_id for job_id in others if job_id not in held]

    def tell(self) -> None:
        """Tell others now what is held, and not only at the next interval.

        Raises:
            StorageUnavailableError: Storage does not answer.
        """
        with self._telling:
            self._holders.note(() if self._stopped.is_set() else tuple(self._held))

    def _send_all(self) -> None:
        """In a thread that no exit of the process waits for: an answer may take as long as a job does."""
        while see_through := self._waiting.get():
            see_through()

    def _see_through(self, job_id: str, on_ended: Callable[[str], None]) -> None:
        try:
            pause_seconds = 0.5
            while not self._stopped.is_set() and not self._is_settled(job_id, on_ended):
                self._stopped.wait(pause_seconds)
                pause_seconds = min(_LONGEST_PAUSE_SECONDS, pause_seconds * 2)
        except ComfyfnError as error:  # of storage: the job is still open there
            _log.warning("job %s: %s", job_id, error.message)
        finally:
            self._held.discard(job_id)

    def _is_settled(self, job_id: str, on_ended: Callable[[str], None]) -> bool:
        """Send the job once; whether there is no more to do here."""
        answer = self._send(job_id)
        if answer and answer.status in _TAKEN_OVER:
            self._records.open(job_id, not_before=self.answer_by())
            return True
        settled = (answer and _is_end_of(job_id, answer)) or self._is_over(job_id)
        if settled:
            on_ended(job_id)
        return settled

    def _is_over(self, job_id: str) -> bool:
        """Whether the job's records say that it has ended, or that its retention has."""
        state = self._records.state(job_id)
        return state.finished or state.created_at is None

    def _send(self, job_id: str) -> urllib3.BaseHTTPResponse | None:
        """The answer of DISPATCH_URL; None if there was none."""
        headers, body = to_structured(
            JOB_REQUESTED,
            id=f"{job_id}.{uuid.uuid4().hex}",
            source=SOURCE,
            subject=job_id,
            time=to_timestamp(utc_now()),
            data={"job_id": job_id},
        )
        try:
            answer = self._http.request("POST", self._url, body=body, headers=headers | self._headers | _request_id())
        except urllib3.exceptions.HTTPError as error:
            _log.warning("job %s: DISPATCH_URL does not answer (%s); it is sent again", job_id, type(error).__name__)
            return None
        if answer.status >= HTTPStatus.BAD_REQUEST:
            _log.info("job %s: DISPATCH_URL answered HTTP %d; it is sent again", job_id, answer.status)
        return answer

    def _keep(self) -> None:
        """Until the end, and then once more: what was held is free for others."""
        stopped = False
        while not stopped:
            stopped = self._stopped.wait(HELD_SECONDS)
            try:
                self.tell()
            except ComfyfnError as error:
                _log.warning("which jobs are held here can't be noted: %s", error.message)


def _request_id() -> dict[str, str]:
    """The id of the request that asked for the job, so that it is in the log lines of whoever runs it."""
    request_id = current_request_id()
    return {"X-Request-Id": request_id} if request_id else {}


def _is_end_of(job_id: str, answer: urllib3.BaseHTTPResponse) -> bool:
    """Whether an answer is the event of this job's end; any other may be anybody's, and the records are asked."""
    try:
        event = parse_cloudevent(dict(answer.headers), answer.data)
    except MalformedEventError:
        return False
    return event.type in _ENDS and event.source == SOURCE and event.subject == job_id
