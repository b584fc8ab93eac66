"""What a delivery asks the function for, whatever dialect it came in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Dialect = Literal["aws:s3", "minio:s3", "ceph:s3", "eventbridge", "other"]


@dataclass(frozen=True, slots=True)
class JobRequested:
    """`dev.comfyfn.job.requested`: run a job. `source` and `id` together are the job's identity.

    Attributes:
        source: Of the event.
        id: Of the event.
        data: As the sender gave it, not checked; see `schemas/job.requested.json`.
    """

    source: str
    id: str
    data: Any


@dataclass(frozen=True, slots=True)
class JobEnded:
    """`dev.comfyfn.job.completed` or `dev.comfyfn.job.failed`: a job has its manifest.

    Attributes:
        source: Of the event.
        id: Of the event.
        data: As the sender gave it, not checked; see `schemas/job.completed.json` and `schemas/job.failed.json`.
    """

    source: str
    id: str
    data: Any


@dataclass(frozen=True, slots=True)
class ObjectCreated:
    """An object was written, by any kind of upload or copy. Bucket and key are the sender's claim: check them.

    At least one of version_id, sequencer and etag is not empty.

    Attributes:
        bucket: Not empty, no control characters.
        key: Decoded, not empty, no control characters, at most 1,024 bytes of UTF-8. It may hold `..`.
        version_id: "" if absent, and for the `null` version, which every upload of the key replaces.
        sequencer: As the sender wrote it; "" if absent.
        etag: Without quotes; "" if absent. That of a multipart upload ends in the number of its parts.
        size_bytes: None if the notice doesn't say.
        dialect: Who wrote the record.
        literal_key: The key before it was decoded, where it differs and the sender is unknown (`other`): what the
            object is called if there is none called `key`. "" otherwise.
    """

    bucket: str
    key: str
    version_id: str
    sequencer: str
    etag: str
    size_bytes: int | None
    dialect: Dialect
    literal_key: str = ""

    @property
    def identity(self) -> tuple[str, str, str]:
        """Bucket, key and what tells this upload from others of the key: version id, else sequencer, else ETag.

        The same upload has the same identity in every dialect. Sequencers are hexadecimal numbers that AWS compares
        after padding with zeros on the left, so neither these zeros nor the case of the digits counts.
        """
        return self.bucket, self.key, self.version_id or self.sequencer.lower().lstrip("0") or self.etag


@dataclass(frozen=True, slots=True)
class Tick:
    """`dev.knative.sources.ping`: time for what is done regularly.

    Attributes:
        source: Of the event.
        id: Of the event.
    """

    source: str
    id: str


Trigger = JobRequested | JobEnded | ObjectCreated | Tick


@dataclass(frozen=True, slots=True)
class Delivery:
    """All that one request asks for.

    Attributes:
        triggers: In the order of the message. Empty: the sender is told that all is well (test event, delete, another
            type of event) and nothing is done.
        replies: Whether the answer may be a reply event: the request is a single CloudEvent with a single trigger. The
            triggers of any other request become asynchronous jobs and the answer is empty.
        unconfirmed_topic: ARN of the SNS topic that asks for a confirmation of its subscription, which an operator has
            to give; "" otherwise. Nothing here visits a link that somebody sent.
    """

    triggers: tuple[Trigger, ...]
    replies: bool
    unconfirmed_topic: str = ""
