"""Who may ask: bearer tokens (RFC 6750), where the settings have some."""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import TYPE_CHECKING

from function.errors import UnauthorizedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flask import Request

    from function.config import Settings

_OPEN_ROOMS = frozenset({"status", "metrics", "docs"})
_EVENTS_ROOM = "cloudevents"


def check_access(settings: Settings, request: Request, room: str) -> None:
    """Refuse a request that needs a token and brings none of ours.

    Args:
        settings: Which tokens there are.
        request: Its `Authorization` header counts.
        room: Which room answers it; probes, metrics and the page of the documentation are open.

    Raises:
        UnauthorizedError: It does not say what was wrong with the token.
    """
    if settings.api_tokens and not is_open(settings, room) and not _is_known(_token(request), settings.api_tokens):
        raise UnauthorizedError("a token of API_TOKENS is needed: Authorization: Bearer <token>")


def is_open(settings: Settings, room: str) -> bool:
    """Whether what a room answers needs no token, even if there are some."""
    return room in _OPEN_ROOMS or (room == _EVENTS_ROOM and not settings.events_need_token)


def _token(request: Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _is_known(token: str, known: Sequence[str]) -> bool:
    """Digests are compared, every one: the time it takes tells neither a token's beginning nor its length."""
    digest = sha256(token.encode()).digest()
    matches = [hmac.compare_digest(digest, sha256(other.encode()).digest()) for other in known]
    return any(matches)
