"""Outputs on their way to where the sender of a job wants them: another bucket, or an HTTP server by PUT."""

from __future__ import annotations

import time
from contextlib import closing
from functools import cache, partial
from http.client import HTTPException
from typing import TYPE_CHECKING

from function.credentials import carried, find_credential
from function.errors import InputRefusedError, StorageUnavailableError, UploadFailedError
from function.sources import parse_source_url
from function.storage import open_store
from function.storage.connecting import Connector
from function.storage.objects import SizedReader, TransientStorageError, media_type_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from http.client import HTTPConnection

    from function.credentials import UrlCredential
    from function.engine.results import EngineFile
    from function.handover import UploadTarget
    from function.outputs.files import OutputFolder
    from function.outputs.reading import EngineFileSource
    from function.sources import SourceUrl
    from function.storage.connecting import ConnectionRules
    from function.storage.objects import ObjectStore

_CHUNK_BYTES = 1024**2
_PAUSES_SECONDS = (0.5, 2.0, 8.0)
_MAY_CHANGE = frozenset({408, 425, 429})
_SERVER_ERROR = 500


class Uploader:
    """Uploads outputs; one object is sent at a time, in the memory of a few parts.

    Whether a target is allowed was decided when the job was asked for.

    Args:
        rules: Which HTTP servers to connect to.
        credentials: What requests to some of them carry.
        open_store: Opens a bucket.
        sleep: Waits between tries.
    """

    def __init__(
        self,
        rules: ConnectionRules,
        *,
        credentials: tuple[UrlCredential, ...] = (),
        open_store: Callable[[str], ObjectStore] = open_store,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._connector = Connector(rules)
        self._over_http = rules.allow_private
        self._credentials = credentials
        self._bucket = cache(open_store)  # the buckets are those that OUTPUT_URL_ALLOW names
        self._sleep = sleep

    def send(
        self, target: UploadTarget, folder: OutputFolder, files: Sequence[EngineFile], *, check: Callable[[], None]
    ) -> None:
        """Upload the outputs of a run that ended; all of them are there when this returns.

        A job that is tried again writes the same objects again. What was uploaded before one fails stays.

        Args:
            target: Where to.
            folder: Where the files lie.
            files: All files of the run.
            check: Called before each try; an error that it raises ends them.

        Raises:
            UploadFailedError: One can't be uploaded: refused, or after the last try.
            InputRefusedError, NodeFailedError, EngineUnavailableError: As from `OutputFolder`.
        """
        for name, file in dict(folder.outputs(files)).items():
            self._see_through(target, name, partial(folder.open, file), check)

    def _see_through(
        self, target: UploadTarget, name: str, open_file: Callable[[], EngineFileSource], check: Callable[[], None]
    ) -> None:
        for pause_seconds in (*_PAUSES_SECONDS, None):
            check()
            with closing(open_file()) as source:
                try:
                    return self._send(target, name, source)
                except TransientStorageError as error:
                    if pause_seconds is None:
                        raise _failure(name, error) from error
                except (StorageUnavailableError, InputRefusedError) as error:
                    raise _failure(name, error) from error
                except ValueError as error:  # it became shorter
                    raise UploadFailedError(f"the output {name} changed while it was uploaded") from error
            self._sleep(pause_seconds)
        return None

    def _send(self, target: UploadTarget, name: str, source: EngineFileSource) -> None:
        if target.is_s3:
            bucket, _, prefix = target.url_prefix.removeprefix("s3://").partition("/")
            self._bucket(f"s3://{bucket}").upload(
                prefix + name, source, size_bytes=source.size_bytes, media_type=media_type_of(name)
            )
        else:
            self._put(parse_source_url(target.url_of(name)), name, source, (*target.credentials, *self._credentials))

    def _put(self, url: SourceUrl, name: str, source: EngineFileSource, credentials: tuple[UrlCredential, ...]) -> None:
        target, carries = carried(url, find_credential(credentials, url), over_http=self._over_http, what=url.origin)
        headers = {
            "Content-Type": media_type_of(name),
            "Content-Length": str(source.size_bytes),
            **carries,
            "User-Agent": "comfyfn",
            "Connection": "close",
        }
        with closing(self._connector.connect(url)) as connection:
            status = _exchange(connection, target, headers, _chunks(source), url.origin)
        if status >= _SERVER_ERROR or status in _MAY_CHANGE:
            raise TransientStorageError(f"{url.origin}: HTTP {status}")
        if not 200 <= status < 300:  # noqa: PLR2004  (2xx)
            raise StorageUnavailableError(f"{url.origin}: HTTP {status}")


def _exchange(
    connection: HTTPConnection, target: str, headers: dict[str, str], body: Iterator[bytes], origin: str
) -> int:
    try:
        connection.request("PUT", target, body=body, headers=headers)
        with closing(connection.getresponse()) as answer:
            return answer.status
    except (OSError, HTTPException) as error:
        raise TransientStorageError(f"{origin}: no answer ({type(error).__name__})") from error


def _chunks(source: EngineFileSource) -> Iterator[bytes]:
    reader = SizedReader(source, size_bytes=source.size_bytes)
    while chunk := reader.read(_CHUNK_BYTES):
        yield chunk


def _failure(name: str, error: StorageUnavailableError | InputRefusedError) -> UploadFailedError:
    return UploadFailedError(f"the output {name} can't be uploaded: {error.message}")
