"""What is sent of a job's end, and to whom: derived from the job and its stored result, the same at every try."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from function.answers import failure_members, safe_id, to_document, to_file_document
from function.handover import EVENT, WEBHOOK_V2
from function.jobs.ended import to_ended_event
from function.outputs.stored import StoredFile
from function.streamed import to_json
from function.webhooks.signing import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from function.handover import WebhookTarget
    from function.job import Job, JobResult
    from function.storage.objects import ObjectStore

_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Letter:
    """One POST that a receiver gets.

    Attributes:
        url: Its URL.
        message: Writes what it says.
    """

    url: str
    message: Callable[[], Message]


class Letters:
    """Writes them.

    Args:
        results: Where RESULTS_URL points: files are read from there while they are sent, and never held whole.
    """

    def __init__(self, results: ObjectStore) -> None:
        self._results = results

    def write(self, job: Job, result: JobResult) -> list[Letter]:
        """Every letter, in an order that follows from the job and its result alone."""
        return [
            Letter(target.url, message) for target in job.webhooks for message in self._messages(job, result, target)
        ]

    def _messages(self, job: Job, result: JobResult, target: WebhookTarget) -> Iterator[Callable[[], Message]]:
        if target.form == EVENT:
            yield partial(_event, result)
        elif target.form == WEBHOOK_V2:
            yield partial(self._webhook_v2, job, result)
        elif not result.error:
            yield from (partial(self._output, job, result, number) for number in range(len(result.outputs)))
        elif all(other.form != WEBHOOK_V2 for other in job.webhooks):  # else that one tells of failures
            yield partial(_failure, job, result)

    def _webhook_v2(self, job: Job, result: JobResult) -> Message:
        kind = "prompt.failed" if result.error else "prompt.complete"
        head = {"type": kind, "timestamp": result.finished_at}
        if result.error:
            return Message(safe_id(job), _JSON, to_json(head | failure_members(job, result)))
        files = [StoredFile(self._results, result, output) for output in result.outputs]
        return Message(safe_id(job), _JSON, to_document(job, result, files, first=head))

    def _output(self, job: Job, result: JobResult, number: int) -> Message:
        output = result.outputs[number]
        file = StoredFile(self._results, result, output)
        body = to_file_document(job, result, output, file)
        return Message(f"{safe_id(job)}-{number}", _JSON, body, signed=False)


def _event(result: JobResult) -> Message:
    """The event of a job's end, as the event's sender gets it in reply."""
    headers, body = to_ended_event(result)
    return Message(result.job_id, headers, body)


def _failure(job: Job, result: JobResult) -> Message:
    members = {"event": "prompt.failed", **failure_members(job, result)}
    return Message(safe_id(job), _JSON, to_json(members), signed=False)
