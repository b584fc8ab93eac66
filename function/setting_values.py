"""What the values of settings look like: text in, value out, or a ValueError that says what is expected; pure."""

from __future__ import annotations

import base64
import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from function.sources import SourceUrl, parse_source_url

if TYPE_CHECKING:
    from collections.abc import Callable

GIB = 1024**3
MIB = 1024**2

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,}=*")  # what a Bearer header can hold (RFC 6750), and nobody guesses


def integer(minimum: int, maximum: int = 2**40) -> Callable[[str], int]:
    """A whole number within limits."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if not minimum <= value <= maximum:
            raise ValueError(f"a whole number from {minimum} to {maximum}")
        return value

    return parse


def binary_units(unit: int) -> Callable[[str], int]:
    """A number of units, such as GiB, as a number of bytes."""

    def parse(text: str) -> int:
        try:
            value = float(text)
        except ValueError:
            value = -1
        if not 0 <= value < 2**40:
            raise ValueError("a number, 0 or more")
        return int(value * unit)

    return parse


def seconds_or_never(text: str) -> float | None:
    """A number of seconds; None for `never`, which comfyui-api writes as -1."""
    if text in ("never", "-1"):
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < 2**40:
        raise ValueError("a number of seconds, 0 or more, or never")
    return value


def choice(*choices: str) -> Callable[[str], str]:
    """One of some words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return text

    return parse


def boolean(text: str) -> bool:
    """`true` or `false`, in any case."""
    return choice("true", "false")(text.lower()) == "true"


def log_level(text: str) -> str:
    """A level of the logging module; `WARN` is `WARNING`."""
    level = text.upper()
    return choice("DEBUG", "INFO", "WARNING", "ERROR")("WARNING" if level == "WARN" else level)


def optional(text: str) -> str | None:
    """The text; None for none."""
    return text or None


def directory(text: str) -> Path | None:
    """An absolute path; None for none."""
    return Path(text).expanduser().absolute() if text else None


def command(text: str) -> tuple[str, ...]:
    """Words as a shell splits them."""
    try:
        return tuple(shlex.split(text))
    except ValueError:
        raise ValueError("a command line with balanced quotes") from None


def patterns(text: str) -> tuple[str, ...]:
    """What a comma list holds."""
    return tuple(pattern for part in text.split(",") if (pattern := part.strip()))


def workflow_file(text: str) -> dict[str, Any] | None:
    """The workflow in a JSON file; None for no file."""
    if not text:
        return None
    try:
        document = json.loads(Path(text).expanduser().read_bytes())
    except OSError as error:
        raise ValueError(f"a file that can be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict) and document:
        return document
    raise ValueError("a JSON file with a workflow in ComfyUI's API format")


def http_url(text: str) -> str:
    """A URL of an HTTP server, without credentials."""
    parts = urlsplit(text)
    if text and (parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.fragment):
        raise ValueError("the http or https URL of a server, without a user name in it")
    return text


def workflow_url(text: str) -> SourceUrl | None:
    """Where a workflow is fetched from; None for nowhere."""
    if not text:
        return None
    try:
        url = parse_source_url(text)
    except ValueError as error:
        raise ValueError(f"an https:// or s3:// URL of a workflow ({error})") from None
    if url.path.endswith("/"):
        raise ValueError("an https:// or s3:// URL of a workflow (it names no file)")
    return url


def webhook_secrets(text: str) -> tuple[bytes, ...]:
    """Secrets of Standard Webhooks, decoded."""
    bare = [part.removeprefix("whsec_") for part in text.replace(",", " ").split()]
    try:
        secrets = tuple(base64.b64decode(part + "=" * (-len(part) % 4), validate=True) for part in bare)
    except ValueError:
        secrets = (b"",)
    if not all(secrets):
        raise ValueError("base64, with or without whsec_ before it; several of them separated by spaces or commas")
    return secrets


def api_tokens(text: str) -> tuple[str, ...]:
    """Tokens of requests; a text that begins like a path names the file that holds them."""
    expected = (
        "tokens of 16 or more letters, digits and ._~+/-, separated by commas or white space, or the path of a file"
        " with such tokens"
    )
    try:
        content = Path(text).expanduser().read_text() if text.startswith(("/", "./", "~")) else text
    except (OSError, ValueError):
        raise ValueError(expected) from None
    tokens = tuple(content.replace(",", " ").split())
    if not all(map(_TOKEN.fullmatch, tokens)) or (text and not tokens):
        raise ValueError(expected)
    return tokens


def origins(text: str) -> tuple[str, ...]:
    """Origins of web pages, as browsers send them; `*` for all."""
    found = tuple(part.rstrip("/").lower() for part in patterns(text))
    for origin in found:
        parts = urlsplit(origin)
        if origin != "*" and not (parts.scheme and parts.netloc and origin == f"{parts.scheme}://{parts.netloc}"):
            raise ValueError("a comma list of origins like https://app.example, or *")
    return found


def model_keys(text: str) -> tuple[str, ...]:
    """Keys of models, such as `checkpoints/sd.safetensors`."""
    keys = tuple(key.strip() for key in text.split(",") if key.strip())
    if any("/" not in key or "://" in key for key in keys):
        raise ValueError("a comma list of model keys like checkpoints/sd.safetensors")
    return keys


def parse_store_url(text: str) -> str:
    """Normalise `s3://bucket/prefix` or `file:///dir`; a relative or plain path is no store.

    Raises:
        ValueError: With what is allowed.
    """
    allowed = "s3://bucket/prefix or file:///directory"
    if not text:
        return ""
    parts = urlsplit(text)
    s3 = parts.scheme == "s3" and parts.netloc and "@" not in parts.netloc
    local = parts.scheme == "file" and not parts.netloc and parts.path.startswith("/")
    if not (s3 or local) or parts.query or parts.fragment:
        raise ValueError(allowed)
    return text.rstrip("/") if parts.path != "/" else text
