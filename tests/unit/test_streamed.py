"""JSON documents with files in them."""

from __future__ import annotations

import json
from base64 import b64encode

import pytest

from function.streamed import DocumentWithFiles

SIZES = [[], [0], [1], [2, 3], [393_215, 393_216, 393_217, 1_000_000]]


@pytest.mark.parametrize("sizes", SIZES)
def test_a_document_in_pieces_is_the_document(sizes: list[int]) -> None:
    """Joined, the pieces are the JSON of the same members in the same order, as long as was said before."""
    files = [bytes(range(256)) * (size // 256) + bytes(size % 256) for size in sizes]
    before, after = {"id": "ä", "prompt": {"1": {}}}, {"filenames": ["a"], "stats": {}}
    document = DocumentWithFiles(before, "images", files, after)
    whole = b"".join(document)
    wanted = before | {"images": [b64encode(data).decode() for data in files]} | after
    assert whole == json.dumps(wanted, ensure_ascii=False).encode()
    assert len(whole) == len(document)


def test_no_piece_is_large() -> None:
    """A file of any length leaves in pieces of a bounded length: nothing holds all of its base64."""
    document = DocumentWithFiles({"id": ""}, "images", [bytes(5_000_000)], {"filenames": []})
    assert max(len(piece) for piece in document) < 1_100_000


def test_a_small_document_is_one_piece() -> None:
    """A small answer leaves at once, in one packet."""
    assert len(list(DocumentWithFiles({"id": ""}, "images", [b"abc", b"d"], {"filenames": []}))) == 1


def test_files_can_be_members_of_objects() -> None:
    """As the images API of OpenAI has them."""
    document = DocumentWithFiles({"created": 1}, "data", [b"abc", b"d"], {}, wrapped="b64_json")
    whole = b"".join(document)
    assert json.loads(whole) == {"created": 1, "data": [{"b64_json": "YWJj"}, {"b64_json": "ZA=="}]}
    assert len(whole) == len(document)
