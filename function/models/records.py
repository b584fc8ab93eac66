"""Records: what is known of a file that the cache brought or is bringing, as JSON beside the models."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from hashlib import sha256

from function.workflow import check_relative

_KNOWN_BOOTS = 16


@dataclass(frozen=True, slots=True)
class Record:
    """A file that the cache brought or is bringing.

    Attributes:
        key: Where it lies below the directory: `<folder>/<filename>`.
        etag: Identity of its content, as its source gave it.
        size_bytes: Length of the whole file.
        source: URL of the object it is a copy of, without credentials.
        crc64nvme: CRC64NVME of the whole file, base64 as S3 writes it; "" until all of it has arrived.
        boot_ids: Boots under which the file is known to be whole: it was written or checked under them. Files are not
            synced to disk, so after a crash of the machine the disk may lack some of their bytes. Machines that share
            a directory each add their own.
        pinned: Kept by the operator: never evicted to make room.
        private: Whether it came with credentials of a workflow's sender: only who can read the source may use it.
    """

    key: str
    etag: str
    size_bytes: int
    source: str = ""
    crc64nvme: str = ""
    boot_ids: tuple[str, ...] = ()
    pinned: bool = False
    private: bool = False

    @property
    def filename(self) -> str:
        """Its name inside its folder."""
        return self.key.partition("/")[2]

    @property
    def complete(self) -> bool:
        """Whether all of it has arrived."""
        return bool(self.crc64nvme)

    def is_same_content(self, other: Record) -> bool:
        """Whether both are the same file of the same source."""
        return (self.key, self.source, self.etag) == (other.key, other.source, other.etag)


def with_boot(boot_ids: tuple[str, ...], boot_id: str) -> tuple[str, ...]:
    """The newest boots, one more among them."""
    return (*boot_ids, boot_id)[-_KNOWN_BOOTS:]


def name_of(key: str) -> str:
    """Name under which everything about a key is filed."""
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def part_name_of(record: Record) -> str:
    """Name of a file's part: the same in every process for the same content, so that any of them can go on with it."""
    content = sha256(f"{record.source}\n{record.etag}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f".{name_of(record.key)}.{content}"


def to_json(record: Record) -> bytes:
    """The record as it is stored."""
    return json.dumps(asdict(record)).encode()


def parse_record(data: bytes, *, name: str) -> Record:
    """Read a record; nothing in it is believed before it is checked.

    Args:
        data: What is stored.
        name: What it is stored under.

    Raises:
        ValueError: It is no record, or not of the key that its name says.
        InputRefusedError: Its key is no plain relative path.
    """
    members = json.loads(data)
    if not isinstance(members, dict):
        raise ValueError("it is no object")  # noqa: TRY004  (of JSON, in which a wrong type is a wrong value)
    try:
        record = Record(**members | {"boot_ids": tuple(members["boot_ids"])})
    except (TypeError, KeyError) as error:
        raise ValueError(f"a member is missing or unknown: {error}") from None
    if not _has_right_types(record):
        raise ValueError("a member has the wrong type")
    if name_of(record.key) != name:
        raise ValueError("it is not named after its key")
    check_relative(record.key, what="key")
    return record


def _has_right_types(record: Record) -> bool:
    texts: tuple[object, ...] = (record.key, record.etag, record.source, record.crc64nvme, *record.boot_ids)
    flags: tuple[object, ...] = (record.pinned, record.private)
    size_bytes: object = record.size_bytes
    return (
        all(isinstance(text, str) for text in texts)
        and type(size_bytes) is int
        and size_bytes >= 0
        and all(isinstance(flag, bool) for flag in flags)
    )
