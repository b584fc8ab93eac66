"""`s3://bucket/prefix`: any S3 server, through boto3.

Endpoint, region and credentials are boto3's business (AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, roles).
With an endpoint of its own boto3 addresses buckets by path, which every S3 server takes.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from contextlib import closing, contextmanager
from datetime import UTC, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeVar

import boto3.session
import botocore.session
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, IncompleteReadError, ResponseStreamingError

from function.errors import InputRefusedError, StorageUnavailableError
from function.storage.objects import MAX_KEY_BYTES, Listing, ObjectInfo, SizedReader, check_key, is_key
from function.storage.s3_errors import error_of_answer, error_of_failure
from function.storage.s3_range import S3Stream, check_etag, check_range, check_start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from pathlib import Path

    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef, ListObjectsV2OutputTypeDef, PutObjectOutputTypeDef

    from function.storage.objects import OnBytes, RangeStream, Readable

_MIB = 1024 * 1024
_CHUNK_BYTES = _MIB
_WHOLE_BYTES = 16 * _MIB  # below it one PUT is cheaper than a multipart upload
_PART_BYTES = 32 * _MIB
_UPLOAD_PART_BYTES = 5 * _MIB  # the smallest that S3 takes: seven of them are in memory while an upload runs
_PARTS_AT_ONCE = 4
_PAUSES_SECONDS = (0.1, 0.2, 0.4, 0.8)
_WRITER = "comfyfn-writer"
# Where botocore looks for the region. Of itself it doesn't read AWS_REGION, which newer SDKs do and our manifests set:
# it would sign links for us-east-1, and a bucket of another region refuses them.
_REGION = ("region", ["AWS_DEFAULT_REGION", "AWS_REGION"], None, None)
_BROKEN_BODY = (ResponseStreamingError, IncompleteReadError)  # raised only while a body is read

_T = TypeVar("_T")


def make_client(
    *,
    endpoint_url: str | None = None,
    access_key_id: str | None = None,
    secret_access_key: str | None = None,
    session_token: str | None = None,
    region: str | None = None,
    stall_seconds: float = 30,
    attempts: int = 3,
) -> S3Client:
    """A client of its own session (boto3's shared one is not safe to use from threads).

    What is not given comes from the environment. Bodies carry a checksum; on plain http they would be hashed a second
    time for the signature, which costs more than the transfer.
    """
    config = Config(
        connect_timeout=5,
        read_timeout=stall_seconds,
        max_pool_connections=32,
        retries={"mode": "standard", "total_max_attempts": attempts},
        s3={"payload_signing_enabled": False},
        signature_version="s3v4",  # presigned URLs would still get version 2, which new servers refuse
    )
    session = botocore.session.Session(session_vars={"region": _REGION})
    return boto3.session.Session(botocore_session=session).client(
        "s3",
        config=config,
        endpoint_url=endpoint_url,
        aws_access_key_id=access_key_id,
        aws_secret_access_key=secret_access_key,
        aws_session_token=session_token,
        region_name=region,
    )


class S3Store:
    """The objects of one bucket below a prefix.

    Args:
        url: `s3://bucket` or `s3://bucket/prefix`, taken literally.
        make_client: Called once in each process that uses the store: connections don't survive a fork.
        part_bytes: Size of one range of a download.
        sleep: Waits between attempts.
    """

    def __init__(
        self,
        url: str,
        *,
        make_client: Callable[[], S3Client] = make_client,
        part_bytes: int = _PART_BYTES,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url
        self._bucket, _, prefix = url.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._make_client = make_client
        self._part_bytes = part_bytes
        self._sleep = sleep
        self._lock = threading.Lock()
        self._made: tuple[int, S3Client] | None = None

    def object_url(self, key: str) -> str:
        """`s3://bucket/prefix/key`."""
        return f"s3://{self._bucket}/{self._full(key)}"

    def head(self, key: str) -> ObjectInfo:
        """Describe one object.

        An answer to HEAD has no body, so that a missing bucket looks like a missing object.
        """
        with self._translated(key):
            answer = self._client().head_object(Bucket=self._bucket, Key=self._full(key), ChecksumMode="ENABLED")
        return _parse_head(key, answer)

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """Read one small object whole."""
        with self._translated(key):
            data = self._retried(lambda: self._get_once(key, max_bytes))
        if len(data) > max_bytes:
            raise StorageUnavailableError(f"{self.object_url(key)}: larger than {max_bytes} bytes")
        return data

    def get_range(self, key: str, start: int, length: int, *, etag: str) -> bytes:
        """Read part of the content with this ETag."""
        chunks: list[bytes] = []
        with self._translated(key):
            self._fetch(key, start, length, etag=etag, consume=chunks.append)
        return b"".join(chunks)

    @contextmanager
    def open_range(self, key: str, start: int, length: int, *, etag: str) -> Iterator[RangeStream]:
        """A stream of part of the content, from one GET."""
        with self._translated(key):
            answer = self._client().get_object(
                Bucket=self._bucket,
                Key=self._full(key),
                Range=f"bytes={start}-{start + length - 1}",
                IfMatch=f'"{etag}"',
            )
        with closing(S3Stream(answer["Body"], self.object_url(key), length)) as stream:
            check_range(answer, start, length, etag=etag, url=self.object_url(key))
            yield stream

    def download(self, key: str, path: Path, *, etag: str, on_bytes: OnBytes | None = None) -> None:
        """Write the content with this ETag to `path`, range by range, each resumed where it breaks off."""
        with path.open("wb") as file, self._translated(key):

            def write(chunk: bytes) -> None:
                file.write(chunk)
                if on_bytes:
                    on_bytes(len(chunk))

            size_bytes = self._size_of(key, etag)
            for start in range(0, size_bytes, self._part_bytes):
                self._fetch(key, start, min(self._part_bytes, size_bytes - start), etag=etag, consume=write)
            if file.tell() != size_bytes:
                raise StorageUnavailableError(f"{self.object_url(key)}: {file.tell()} of {size_bytes} bytes arrived")

    def put(self, key: str, data: bytes, *, media_type: str = "application/octet-stream") -> ObjectInfo:
        """Write one small object."""
        with self._translated(key):
            answer = self._client().put_object(
                Bucket=self._bucket, Key=self._full(key), Body=data, ContentType=media_type
            )
        return _parse_put(key, answer, len(data), media_type)

    def create(self, key: str, data: bytes, *, media_type: str = "application/json") -> bool:
        """Write one small object unless the key exists."""
        writer = uuid.uuid4().hex
        with self._translated(key):
            for tried, pause_seconds in enumerate(_PAUSES_SECONDS):
                created = self._create_once(key, data, media_type, writer)
                if created is not None:
                    return created or (tried > 0 and self._is_writer(key, writer))
                self._sleep(pause_seconds)
        raise StorageUnavailableError(f"{self.object_url(key)}: concurrent writes kept colliding: try later")

    def upload(self, key: str, source: Readable, *, size_bytes: int, media_type: str) -> ObjectInfo:
        """Write one object of up to 48 GiB; from 16 MiB on in parts, four at a time, in 40 MB of memory."""
        reader = SizedReader(source, size_bytes=size_bytes)
        if size_bytes < _WHOLE_BYTES:
            return self.put(key, reader.read(), media_type=media_type)
        with self._translated(key):
            self._client().upload_fileobj(
                reader,  # type: ignore[arg-type]  # only read is asked of it
                self._bucket,
                self._full(key),
                ExtraArgs={"ContentType": media_type},
                Config=_transfer_config(),
            )
        return self.head(key)

    def list_objects(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Objects in the order of their keys, a page of a thousand at a time."""
        after = self._prefix + start_after if start_after else ""
        with self._translated():
            paginator = self._client().get_paginator("list_objects_v2")
            for page in paginator.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix, StartAfter=after):
                yield from self._parse_page(page)

    def list_page(self, prefix: str = "", *, start_after: str = "", limit: int = 1000) -> Listing:
        """The first of them, with the store's time."""
        after = self._prefix + start_after if start_after else ""
        began = time.monotonic()
        with self._translated():
            page = self._client().list_objects_v2(
                Bucket=self._bucket, Prefix=self._prefix + prefix, StartAfter=after, MaxKeys=limit
            )
        took = timedelta(seconds=time.monotonic() - began)  # an answer is dated when it is sent
        return Listing(tuple(self._parse_page(page)), _date_of(page) - took, complete=not page["IsTruncated"])

    def delete(self, key: str) -> None:
        """Remove one object; on a versioned bucket its versions stay."""
        with self._translated(key):
            self._client().delete_object(Bucket=self._bucket, Key=self._full(key))

    def presign(self, key: str, *, expires_seconds: int) -> str:
        """A URL that reads the object; signed here, without asking the server."""
        with self._translated(key):
            return self._client().generate_presigned_url(
                "get_object", Params={"Bucket": self._bucket, "Key": self._full(key)}, ExpiresIn=expires_seconds
            )

    def close(self) -> None:
        """Close this process's connections; the store can still be used."""
        with self._lock:
            if self._made and self._made[0] == os.getpid():
                self._made[1].close()
            self._made = None

    def _client(self) -> S3Client:
        with self._lock:
            if self._made is None or self._made[0] != os.getpid():
                self._made = (os.getpid(), self._connect())
            return self._made[1]

    def _connect(self) -> S3Client:
        try:
            return self._make_client()
        except ValueError as error:  # how botocore refuses an endpoint that is no URL
            raise error_of_failure("ValueError", self.url) from error

    def _full(self, key: str) -> str:
        full = self._prefix + check_key(key)
        if len(full.encode()) > MAX_KEY_BYTES:
            raise InputRefusedError(f"a key below {self.url} is longer than {MAX_KEY_BYTES} bytes with the prefix")
        return full

    def _parse_page(self, page: ListObjectsV2OutputTypeDef) -> Iterator[ObjectInfo]:
        for item in page.get("Contents", ()):
            key = item["Key"].removeprefix(self._prefix)
            if is_key(key):
                modified_at = item["LastModified"].astimezone(UTC)
                yield ObjectInfo(key, item["Size"], item["ETag"].strip('"'), modified_at)

    def _size_of(self, key: str, etag: str) -> int:
        head = self._client().head_object(Bucket=self._bucket, Key=self._full(key), IfMatch=f'"{etag}"')
        check_etag(head["ETag"], etag, self.object_url(key))
        return head["ContentLength"]

    def _get_once(self, key: str, max_bytes: int) -> bytes:
        answer = self._client().get_object(Bucket=self._bucket, Key=self._full(key))
        with closing(answer["Body"]) as body:  # its own context manager gives the raw response, which checks no length
            return body.read() if answer["ContentLength"] <= max_bytes else body.read(max_bytes + 1)

    def _create_once(self, key: str, data: bytes, media_type: str, writer: str) -> bool | None:
        """Whether this writer wrote the object; None when a concurrent write, perhaps its own, left it open."""
        try:
            self._client().put_object(
                Bucket=self._bucket,
                Key=self._full(key),
                Body=data,
                ContentType=media_type,
                IfNoneMatch="*",
                Metadata={_WRITER: writer},
            )
        except ClientError as error:
            if _code_of(error) == "ConditionalRequestConflict":
                return None
            if _code_of(error) != "PreconditionFailed":
                raise
            return _was_resent(error) and self._is_writer(key, writer)
        return True

    def _is_writer(self, key: str, writer: str) -> bool:
        """Whether the object comes from this very call: its first attempt may have won with its answer lost."""
        head = self._client().head_object(Bucket=self._bucket, Key=self._full(key))
        return head["Metadata"].get(_WRITER) == writer

    def _fetch(self, key: str, start: int, length: int, *, etag: str, consume: Callable[[bytes], object]) -> None:
        """Read one range; botocore repeats requests, but not what breaks off in the middle of a body."""
        done = 0

        def attempt() -> None:
            nonlocal done
            for chunk in self._chunks(key, start + done, length - done, etag):
                consume(chunk)
                done += len(chunk)

        self._retried(attempt)

    def _chunks(self, key: str, start: int, length: int, etag: str) -> Iterator[bytes]:
        if length <= 0:
            return
        try:
            answer = self._client().get_object(
                Bucket=self._bucket,
                Key=self._full(key),
                Range=f"bytes={start}-{start + length - 1}",
                IfMatch=f'"{etag}"',
            )
        except ClientError as error:
            if _code_of(error) == "InvalidRange":  # it begins at or after the end
                return
            raise
        with closing(answer["Body"]) as body:
            check_start(answer, start, etag=etag, url=self.object_url(key))
            yield from body.iter_chunks(_CHUNK_BYTES)

    def _retried(self, attempt: Callable[[], _T]) -> _T:
        for pause_seconds in _PAUSES_SECONDS:
            try:
                return attempt()
            except _BROKEN_BODY:
                self._sleep(pause_seconds)
        return attempt()

    @contextmanager
    def _translated(self, key: str = "") -> Iterator[None]:
        """The one place where boto3's errors become ours."""
        url = self.object_url(key) if key else self.url
        try:
            yield
        except ClientError as error:
            raise error_of_answer(_code_of(error), url, status=_status_of(error)) from error
        except BotoCoreError as error:
            raise error_of_failure(type(error).__name__, url) from error


def _code_of(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code") or ""  # None where the answer has an empty one


def _status_of(error: ClientError) -> int:
    return error.response["ResponseMetadata"].get("HTTPStatusCode", 0)


def _was_resent(error: ClientError) -> bool:
    return error.response["ResponseMetadata"].get("RetryAttempts", 0) > 0


def _transfer_config() -> TransferConfig:
    config = TransferConfig(
        multipart_threshold=1,  # the choice is made; it would read this much ahead to make it again
        multipart_chunksize=_UPLOAD_PART_BYTES,
        max_concurrency=_PARTS_AT_ONCE,
        preferred_transfer_client="classic",  # the other one ignores AWS_ENDPOINT_URL
    )
    config.max_in_memory_upload_chunks = _PARTS_AT_ONCE
    return config


def _parse_head(key: str, answer: HeadObjectOutputTypeDef) -> ObjectInfo:
    return ObjectInfo(
        key=key,
        size_bytes=answer["ContentLength"],
        etag=answer["ETag"].strip('"'),
        modified_at=answer["LastModified"].astimezone(UTC),
        media_type=answer.get("ContentType", ""),
        version_id=answer.get("VersionId"),
        crc64nvme=answer.get("ChecksumCRC64NVME", "") if answer.get("ChecksumType") != "COMPOSITE" else "",
    )


def _date_of(answer: PutObjectOutputTypeDef | ListObjectsV2OutputTypeDef) -> datetime:
    """An answer's Date: the clock that Last-Modified is of."""
    return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])


def _parse_put(key: str, answer: PutObjectOutputTypeDef, size_bytes: int, media_type: str) -> ObjectInfo:
    return ObjectInfo(
        key=key,
        size_bytes=size_bytes,
        etag=answer["ETag"].strip('"'),
        modified_at=_date_of(answer),
        media_type=media_type,
        version_id=answer.get("VersionId"),
    )
