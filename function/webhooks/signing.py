"""Messages and their Standard Webhooks headers (https://www.standardwebhooks.com, its specification of 2026)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from standardwebhooks import Webhook

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent, the same at every try.

    Attributes:
        id: What a receiver knows duplicates by; without full stops, which separate what is signed.
        headers: Content-Type and such.
        body: UTF-8.
    """

    id: str
    headers: Mapping[str, str]
    body: bytes


def signed_headers(message: Message, secrets: Iterable[bytes], *, at: datetime) -> dict[str, str]:
    """All headers of one try: with one signature for each secret, as long as a receiver may know either.

    Args:
        message: What is sent.
        secrets: The keys of HMAC-SHA256; none: it is not signed.
        at: The time of this try, in UTC.
    """
    text = message.body.decode()
    signatures = [Webhook(secret).sign(message.id, at, text) for secret in secrets]
    headers = {**message.headers, "webhook-id": message.id, "webhook-timestamp": str(int(at.timestamp()))}
    return headers | ({"webhook-signature": " ".join(signatures)} if signatures else {})
