"""How the results of a job are handed over beside being stored: converted, uploaded, told of. Pure.

The words are those of comfyui-api's requests, which is where senders ask for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Mapping

    from function.credentials import UrlCredential

EVENT = "event"
WEBHOOK_V2 = "webhook_v2"
LEGACY_WEBHOOK = "webhook"

_S3 = "s3://"
_CONVERTIBLE = frozenset({"png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "avif"})


@dataclass(frozen=True, slots=True)
class Conversion:
    """What image outputs are turned into.

    Attributes:
        format: `png`, `jpeg`, `jpg` or `webp`; the extension of the files.
        options: As a request has them, every default filled in.
    """

    format: str
    options: dict[str, Any] = field(default_factory=dict)

    def name_of(self, name: str) -> str:
        """The name of a converted file; one that is no image stays what it is, name and all."""
        stem, dot, extension = name.rpartition(".")
        return f"{stem}.{self.format}" if dot and extension.lower() in _CONVERTIBLE else name

    def applies_to(self, name: str) -> bool:
        """Whether a file of this name is converted."""
        return name.rpartition(".")[2].lower() in _CONVERTIBLE


@dataclass(frozen=True, slots=True)
class UploadTarget:
    """Where the outputs are uploaded, beside whatever is stored below RESULTS_URL.

    Attributes:
        url_prefix: What their URLs begin with, `s3://bucket/any-prefix` or `https://host/folder/`; an output's name
            follows as it is.
        credentials: What came with the request for it; never recorded.
    """

    url_prefix: str
    credentials: tuple[UrlCredential, ...] = field(default=(), repr=False)

    def url_of(self, name: str) -> str:
        """The URL of an output; percent-encoded for http, literal for S3, as its clients name objects."""
        return self.url_prefix + (name if self.is_s3 else quote(name))

    @property
    def is_s3(self) -> bool:
        """Whether it is a bucket, and no HTTP server."""
        return self.url_prefix.startswith(_S3)


@dataclass(frozen=True, slots=True)
class WebhookTarget:
    """Who is told of a job's end.

    Attributes:
        url: Where it is sent.
        form: `event` (the job's completed or failed event), `webhook_v2` or `webhook` (comfyui-api's two).
    """

    url: str
    form: str = EVENT


def parse_handover(record: Mapping[str, Any]) -> dict[str, Any]:
    """The members of a job's record that are of this module, as they were before they were JSON."""
    convert_output, upload = record["convert_output"], record["upload"]
    return {
        "convert_output": Conversion(**convert_output) if convert_output else None,
        "upload": UploadTarget(upload["url_prefix"]) if upload else None,
        "webhooks": tuple(WebhookTarget(**webhook) for webhook in record["webhooks"]),
    }
