"""Keys, streams, media types and the opening of stores."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from function.errors import InputRefusedError, SettingsError
from function.storage import open_store
from function.storage.local import LocalStore
from function.storage.objects import MAX_KEY_BYTES, SizedReader, check_key, is_key, media_type_of
from function.storage.s3 import S3Store

if TYPE_CHECKING:
    from pathlib import Path


def test_key_limits_count_bytes() -> None:
    """A key may have as many UTF-8 bytes as S3 allows, and not one more."""
    longest = "\u00e4" * (MAX_KEY_BYTES // 2)
    assert check_key(longest) == longest
    assert not is_key(longest + "x")


def test_s3_counts_the_prefix() -> None:
    """The prefix counts towards the length of a key in a bucket."""
    store = S3Store("s3://bucket/prefix")
    longest = "x" * (MAX_KEY_BYTES - len("prefix/"))
    assert store.object_url(longest) == f"s3://bucket/prefix/{longest}"
    with pytest.raises(InputRefusedError, match="with the prefix"):
        store.object_url(longest + "x")


def test_refusal_is_one_short_line() -> None:
    """The refusal of a hostile key neither breaks the line nor repeats all of it."""
    with pytest.raises(InputRefusedError) as caught:
        check_key("\x1b[31m\n\u202e" + "x" * 5000)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 250


def test_sized_reader() -> None:
    """Exactly the wanted bytes are read, in whatever pieces."""
    reader = SizedReader(io.BytesIO(b"0123456789"), size_bytes=7)
    assert [reader.read(3), reader.read(0), reader.read(), reader.read(3), reader.read()] == [
        b"012",
        b"",
        b"3456",
        b"",
        b"",
    ]


def test_sized_reader_of_a_dribbling_stream() -> None:
    """A source that hands out less than it is asked for, like a socket, is asked again."""

    class Dribble(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 0, 3))

    assert SizedReader(Dribble(b"0123456789"), size_bytes=8).read(7) == b"0123456"


def test_sized_reader_of_a_short_stream() -> None:
    """A stream that ends early says how much is missing."""
    reader = SizedReader(io.BytesIO(b"0123"), size_bytes=7)
    assert reader.read(2) == b"01"
    with pytest.raises(ValueError, match="3 of 7 bytes are missing"):
        reader.read()


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("a/b.png", "image/png"),
        ("a.b/C.WEBP", "image/webp"),
        ("model.safetensors", "application/octet-stream"),
        ("png", "application/octet-stream"),
        ("dir.png/file", "application/octet-stream"),
    ],
)
def test_media_types(name: str, media_type: str) -> None:
    """The media type goes by the extension of the last segment, in either case."""
    assert media_type_of(name) == media_type


def test_open_store_goes_by_the_scheme(tmp_path: Path) -> None:
    """Each scheme opens its store; opening makes nothing."""
    assert isinstance(open_store("s3://bucket/prefix"), S3Store)
    assert isinstance(open_store(f"file://{tmp_path}/none"), LocalStore)
    assert list(tmp_path.iterdir()) == []


def test_open_store_refuses_other_urls() -> None:
    """A URL of another kind is refused with what is allowed."""
    with pytest.raises(SettingsError, match="expected s3://bucket/prefix or file:///directory"):
        open_store("gs://bucket")


def test_a_directory_needs_no_boto3() -> None:
    """Opening a directory doesn't spend the start-up time that boto3 takes to import."""
    script = (
        "import sys; from function.storage import open_store; open_store('file:///x'); print('boto3' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", script]).strip() == b"False"
