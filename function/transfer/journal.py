"""What has come of an object so far: a file of lines beside the part, which outlives the process that wrote it.

The first line says of which content; each further line is one finished part with its CRC. A line is written after the
bytes it speaks of, so after the death of a process the journal is never ahead of the part. After a crash of the whole
machine it may be: nothing is synced to the disk. The kernel's boot id tells, and parts are then read again.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Self

from function.transfer.fetching import journal_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from function.transfer.fetching import Fetch

PART_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Header:
    """The first line.

    Attributes:
        etag: The content that is collected.
        size_bytes: Its length.
        part_bytes: Length of every part but the last.
        boot_id: The machine's boot in which the parts were written.
    """

    etag: str
    size_bytes: int
    part_bytes: int
    boot_id: str

    @property
    def parts(self) -> range:
        """The parts' numbers."""
        return range(-(-self.size_bytes // self.part_bytes))

    def start_of(self, part: int) -> int:
        """Where a part begins."""
        return part * self.part_bytes

    def length_of(self, part: int) -> int:
        """Length of a part."""
        return min(self.part_bytes, self.size_bytes - self.start_of(part))


class Journal:
    """The journal of one part file, open for writing.

    Attributes:
        header: Its first line.
        crcs: CRC of each finished part, by its number.
    """

    def __init__(self, path: Path, header: Header, crcs: dict[int, int]) -> None:
        self.header = header
        self.crcs = crcs
        lines = [asdict(header), *(_to_line(part, crc) for part, crc in crcs.items())]
        fresh = path.with_name(f"{path.name}.new")
        fresh.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        fresh.replace(path)
        self._file = path.open("ab", buffering=0)

    def __enter__(self) -> Self:
        """The journal closes with the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def finish(self, part: int, crc: int) -> None:
        """Note that a part is written; one write of one short line, which the kernel does not mix with others."""
        self.crcs[part] = crc
        self._file.write(f"{json.dumps(_to_line(part, crc))}\n".encode())


def read_journal(path: Path) -> tuple[Header, dict[int, int]] | None:
    """A journal's header and parts; None when there is none or it can't be read.

    A last line without its end was being written when the process died: its part counts as missing.
    """
    try:
        lines = path.read_text().split("\n")[:-1]
        header = Header(**json.loads(lines[0]))
        parts = [json.loads(line) for line in lines[1:]]
        return header, {int(entry["part"]): int(entry["crc"]) for entry in parts if entry["part"] in header.parts}
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None


def resumable(wanted: Fetch) -> tuple[Header, dict[int, int]] | None:
    """What an earlier fetch of the same content left; None when there is nothing to go on with."""
    found = read_journal(journal_of(wanted.part))
    if found is None or (found[0].etag, found[0].size_bytes) != (wanted.etag, wanted.size_bytes):
        return None
    try:
        return found if wanted.part.stat().st_size == wanted.size_bytes else None
    except FileNotFoundError:
        return None


def discard(part: Path) -> None:
    """Remove part and journal.

    They are removed and not emptied: a process that was told to end may still write to them.
    """
    journal_of(part).unlink(missing_ok=True)
    part.unlink(missing_ok=True)


@cache
def read_boot_id(path: Path = Path("/proc/sys/kernel/random/boot_id")) -> str:
    """A name of this boot of the machine's kernel, the same in every container.

    A sandbox may hide it. Then every process counts as a boot of its own, and checks what others have written.
    """
    try:
        return path.read_text().strip()
    except OSError:
        return f"hidden-{uuid.uuid4().hex}"


def crcs_in_order(header: Header, crcs: dict[int, int]) -> Iterable[tuple[int, int]]:
    """CRC and length of every part, as `checksums.combine` takes them."""
    return ((crcs[part], header.length_of(part)) for part in header.parts)


def _to_line(part: int, crc: int) -> dict[str, int]:
    return {"part": part, "crc": crc}
