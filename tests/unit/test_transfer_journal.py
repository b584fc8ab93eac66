from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING

import pytest

from function.transfer.checksums import combine, crc64nvme, to_base64
from function.transfer.fetching import Fetch, journal_of
from function.transfer.journal import Header, Journal, crcs_in_order, discard, read_boot_id, read_journal, resumable

if TYPE_CHECKING:
    from pathlib import Path

HEADER = Header(etag="e1", size_bytes=25, part_bytes=10, boot_id="b1")


@pytest.fixture
def wanted(tmp_path: Path) -> Fetch:
    """A file to bring, of which a part of the right length lies there."""
    part = tmp_path / "model.part"
    part.write_bytes(bytes(25))
    return Fetch("s3://bucket", "model", "e1", 25, part)


def write(wanted: Fetch, header: Header = HEADER) -> None:
    """A journal with the parts 0 and 2."""
    with Journal(journal_of(wanted.part), header, {0: 11}) as journal:
        journal.finish(2, 33)


def test_reads_what_it_wrote(wanted: Fetch) -> None:
    """Header and finished parts are read back, those it began with included."""
    write(wanted)
    assert resumable(wanted) == (HEADER, {0: 11, 2: 33})


def test_parts_cover_the_content() -> None:
    """The last part is as long as what is left; an empty content has none."""
    assert [(HEADER.start_of(part), HEADER.length_of(part)) for part in HEADER.parts] == [(0, 10), (10, 10), (20, 5)]
    assert list(Header("e", 0, 10, "b").parts) == []


def test_torn_last_line_is_a_missing_part(wanted: Fetch) -> None:
    """A line cut off by the death of the process doesn't count, and the next journal doesn't write behind it."""
    write(wanted)
    journal = journal_of(wanted.part)
    journal.write_bytes(journal.read_bytes()[:-3])
    found = resumable(wanted)
    assert found == (HEADER, {0: 11})
    with Journal(journal, *found) as again:
        again.finish(1, 22)
    assert read_journal(journal) == (HEADER, {0: 11, 1: 22})


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"{}\n", b"not json\n", b"[1]\n", b"\xff\n", b'{"etag":"e1","size_bytes":25,"part_bytes":10}\n'],
    ids=repr,
)
def test_unreadable_journal_is_none(wanted: Fetch, content: bytes) -> None:
    """A journal of garbage is as good as none."""
    journal_of(wanted.part).write_bytes(content)
    assert resumable(wanted) is None


def test_other_content_is_not_resumed(wanted: Fetch) -> None:
    """A journal of another ETag or length belongs to other bytes."""
    for header in (Header("e2", 25, 10, "b1"), Header("e1", 24, 10, "b1")):
        write(wanted, header)
        assert resumable(wanted) is None


def test_journal_without_its_part_is_not_resumed(wanted: Fetch) -> None:
    """A part that is gone or has another length has none of the bytes the journal speaks of."""
    write(wanted)
    os.truncate(wanted.part, 24)
    assert resumable(wanted) is None
    wanted.part.unlink()
    assert resumable(wanted) is None


def test_discard_removes_both(wanted: Fetch) -> None:
    """Part and journal are gone afterwards, also when they were before."""
    write(wanted)
    discard(wanted.part)
    discard(wanted.part)
    assert list(wanted.part.parent.iterdir()) == []


def test_crcs_of_parts_are_the_crc_of_the_whole() -> None:
    """The CRCs of parts, in the order of the parts, combine to the one of the content, however they were computed."""
    content = os.urandom(25)
    crcs = {part: crc64nvme(content[part * 10 : part * 10 + 10]) for part in (2, 0, 1)}
    assert combine(crcs_in_order(HEADER, crcs)) == crc64nvme(content)


def test_checksum_is_written_as_s3_does() -> None:
    """The standard's check value, in base64 of eight bytes."""
    assert to_base64(crc64nvme(b"123456789")) == base64.b64encode(bytes.fromhex("ae8b14860a799888")).decode()


def test_boot_id_is_a_word() -> None:
    """The kernel's boot id is one line without its end."""
    assert len(read_boot_id().split()) == 1


def test_a_hidden_boot_id_makes_a_boot_of_its_own(tmp_path: Path) -> None:
    """A sandbox without the kernel's file works; nothing that another process wrote is trusted unchecked."""
    hidden = read_boot_id(tmp_path / "none")
    assert hidden == read_boot_id(tmp_path / "none")
    assert hidden not in {read_boot_id(), read_boot_id(tmp_path / "other")}
