"""Which uploaded object runs what.

An object `<template>/...` under UPLOADS_URL runs the template of that name and is its input; an object `*.json` is a
job document and runs as it is. Everything else that a notice may tell of is no business of ours: another bucket,
another prefix, a file that workflows name themselves, and above all what the function itself has stored.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from events import MalformedEventError, parse_json
from function.errors import InputMissingError, InputRefusedError, InvalidRequestError
from function.job import Job, derived_job_id, parse_job_document
from function.storage.objects import ObjectMissingError, is_key
from function.templates.template import fill_template

if TYPE_CHECKING:
    from events import ObjectCreated
    from function.storage.objects import ObjectStore
    from function.templates.store import TemplateStore

MAX_DOCUMENT_BYTES = 16 * 1024**2
_DOCUMENT = ".json"
_LABEL_CHARACTERS = 256


def split_store_url(url: str) -> tuple[str, str]:
    """Bucket and prefix of a store, as notices name them; a directory counts as a bucket of its own name.

    The prefix ends in `/` unless it is empty.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "file":
        return rest.rstrip("/").rpartition("/")[2], ""
    bucket, _, prefix = rest.partition("/")
    return bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else ""


class UploadRules:
    """Turns notices into jobs.

    Args:
        uploads: Where UPLOADS_URL points; notices of other places are ignored.
        results_url: What lies there is ignored too, so that no output can be an input.
        templates: Templates by name.
    """

    def __init__(self, uploads: ObjectStore, *, results_url: str, templates: TemplateStore) -> None:
        self._uploads = uploads
        self._bucket, self._prefix = split_store_url(uploads.url)
        self._results = split_store_url(results_url)
        self._templates = templates

    def find_key(self, created: ObjectCreated) -> str | None:
        """The object's key below UPLOADS_URL, if it is one that may run something.

        Raises:
            StorageUnavailableError: Storage does not answer.
        """
        keys = [below for key in (created.key, created.literal_key) if (below := self._below(created.bucket, key))]
        if len(keys) > 1:
            return next(filter(self._exists, keys), keys[0])
        return keys[0] if keys else None

    def _below(self, bucket: str, key: str) -> str:
        if bucket != self._bucket or not key.startswith(self._prefix) or self._is_result(bucket, key):
            return ""
        below = key.removeprefix(self._prefix)
        return below if is_key(below) else ""

    def _is_result(self, bucket: str, key: str) -> bool:
        results_bucket, results_prefix = self._results
        return bucket == results_bucket and key.startswith(results_prefix)

    def _exists(self, key: str) -> bool:
        try:
            self._uploads.head(key)
        except ObjectMissingError:
            return False
        return True

    def template_name(self, key: str) -> str:
        """The template that a key belongs to: the deepest of its folders that is one; "" if none is.

        Raises:
            StorageUnavailableError: Storage does not answer.
        """
        folders = key.split("/")[:-1]
        names = set(self._templates.names()) if folders else set()
        candidates = ("/".join(folders[:depth]) for depth in range(len(folders), 0, -1))
        return next((name for name in candidates if name in names), "")

    def parse(self, created: ObjectCreated, key: str) -> Job | None:
        """The job that an upload asks for; None if it asks for none.

        Raises:
            InvalidRequestError, TemplateInvalidError, InputMissingError: It asks for one that can't be.
            StorageUnavailableError: Storage does not answer.
        """
        job_id = upload_job_id(created)
        if key.endswith(_DOCUMENT):
            return parse_job_document(_parse_json(self._read(key)), job_id=job_id, templates=self._templates)
        name = self.template_name(key)
        if not name:
            return None
        template = self._templates.get(name)
        if template.upload is None:
            raise InvalidRequestError(
                f"template {name}: no parameter for uploads; give its file an `upload`, the name of an image, mask, "
                "video or audio parameter"
            )
        filled = fill_template(template, {template.upload: key}, job_id=job_id)
        return replace(to_job(created, key), workflow=filled.workflow, preloads=filled.preloads)

    def _read(self, key: str) -> bytes:
        try:
            if self._uploads.head(key).size_bytes > MAX_DOCUMENT_BYTES:
                raise InputRefusedError(f"{self._uploads.object_url(key)}: larger than {MAX_DOCUMENT_BYTES} bytes")
            return self._uploads.get(key, max_bytes=MAX_DOCUMENT_BYTES)
        except ObjectMissingError as error:
            raise InputMissingError(f"no object {self._uploads.object_url(key)}: it was deleted") from error


def _parse_json(data: bytes) -> object:
    try:
        return parse_json(data, "the uploaded object")
    except MalformedEventError as error:
        raise InvalidRequestError(str(error)) from error


def to_job(created: ObjectCreated, key: str) -> Job:
    """The job of an upload, still without a workflow."""
    return Job(upload_job_id(created), workflow={}, label=key[:_LABEL_CHARACTERS])


def upload_job_id(created: ObjectCreated) -> str:
    """The job of an upload: the same upload is the same job, whoever tells of it and how often."""
    return derived_job_id("s3", *created.identity)
