"""Jobs by the id that their client gave them: comfyui-api's clients know no other, whichever pod they ask."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from function.job import Job
    from function.storage.objects import ObjectStore


def note_label(store: ObjectStore, job: Job) -> None:
    """Make a recorded job findable by its label, if it has one."""
    if job.label:
        store.create(_key(job.label, job.job_id), b"{}")


def labelled(store: ObjectStore, label: str) -> list[str]:
    """Ids of the jobs with this label, the newest first; one that is gone may be among them."""
    found = sorted(store.list_page(_key(label, "")).objects, key=lambda info: info.modified_at, reverse=True)
    return [info.key.rpartition("/")[2] for info in found]


def forget_label(store: ObjectStore, job: Job) -> None:
    """The job is gone."""
    if job.label:
        store.delete(_key(job.label, job.job_id))


def _key(label: str, job_id: str) -> str:
    """A label is any text of a caller's, so it is hashed."""
    return f"labels/{sha256(label.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}/{job_id}"
