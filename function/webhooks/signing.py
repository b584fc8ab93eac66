"""Messages and their Standard Webhooks headers (https://www.standardwebhooks.com, its specification of 2026).

The signature is computed here, while the body is read piece by piece: the specification's own library wants it whole.
"""

from __future__ import annotations

import base64
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from function.streamed import DocumentWithFiles


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent, the same at every try.

    Attributes:
        id: What a receiver knows duplicates by.
        headers: Content-Type and such.
        body: UTF-8, read anew each time that it is needed.
        signed: Whether it is signed at all: comfyui-api's legacy webhooks are not.
    """

    id: str
    headers: Mapping[str, str]
    body: bytes | DocumentWithFiles
    signed: bool = True

    def pieces(self) -> Iterable[bytes]:
        """The body from its beginning to its end."""
        return [self.body] if isinstance(self.body, bytes) else self.body


def signed_headers(message: Message, secrets: Iterable[bytes], *, at: datetime) -> dict[str, str]:
    """All headers of one try: with one signature for each secret, as long as a receiver may know either.

    Args:
        message: What is sent.
        secrets: The keys of HMAC-SHA256; none: it is not signed.
        at: The time of this try, in UTC.
    """
    timestamp = str(int(at.timestamp()))
    headers = {**message.headers, "webhook-id": message.id, "webhook-timestamp": timestamp}
    signatures = _signatures(message, secrets, timestamp) if message.signed else ()
    return headers | ({"webhook-signature": " ".join(signatures)} if signatures else {})


def _signatures(message: Message, secrets: Iterable[bytes], timestamp: str) -> list[str]:
    begin = f"{message.id}.{timestamp}.".encode()
    digests = [hmac.new(secret, begin, "sha256") for secret in secrets]
    if digests:
        for piece in message.pieces():
            for digest in digests:
                digest.update(piece)
    return [f"v1,{base64.b64encode(digest.digest()).decode()}" for digest in digests]
