"""Where the objects of a local store lie on disk.

A key is a path below the root, as it stands: a file dropped into the directory by hand is the object of that name,
and an output is found where its key says. Two things keep that from being the whole rule, and both use the one
reserved directory `.comfyfn` in the root:

- S3 holds the keys `a` and `a/b` side by side, a directory can't. The key that comes second (and any key that begins
  with `.comfyfn/`) lies apart: `a/b` in `.comfyfn/apart/d-a/f-b`, `a` in `.comfyfn/apart/f-a`. The prefixes tell
  directories from files, so nothing collides there.
- Unfinished files and the lock of writers lie in it too, on the same file system and out of every listing.

Symbolic links below the root are not followed: what is reached through one is no object.
"""

from __future__ import annotations

import errno
import heapq
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from function.storage.objects import is_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_OWN = ".comfyfn"
_MAX_NAME_BYTES = 255  # Linux's NAME_MAX: asked for before the disk is, which only notices where the folders exist


@dataclass(frozen=True, slots=True)
class Places:
    """Keys to paths and back, for one root (a resolved absolute path, which need not exist yet)."""

    root: Path

    @property
    def own(self) -> Path:
        """The reserved directory."""
        return self.root / _OWN

    @property
    def apart(self) -> Path:
        """Where objects lie whose plain place is taken."""
        return self.own / "apart"

    def find(self, key: str) -> Path | None:
        """The file that is this object, or None.

        Raises:
            OSError: The directory can't be read, or the name is too long for the file system.
        """
        if any(len(segment.encode()) > _MAX_NAME_BYTES for segment in key.split("/")):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        return next((path for path in (self._plain(key), self._apart(key)) if path and _is_file(path)), None)

    def target(self, key: str) -> Path:
        """Where to write this object; for the holder of the writers' lock, as it depends on what is there."""
        found = self.find(key)
        if found:
            return found
        plain = self._plain(key)
        return plain if plain and self._is_free(plain) else self._apart(key)

    def walk(self, prefix: str, start_after: str) -> Iterator[tuple[str, Path]]:
        """Keys with this prefix and their files, in order.

        Keys are compared as strings: the order of code points is the order of UTF-8 bytes.
        """

        def wanted(folder: str) -> bool:
            may_match = folder.startswith(prefix) or prefix.startswith(folder)
            return may_match and (folder > start_after or start_after.startswith(folder))

        last = start_after
        for key, path in heapq.merge(self._walk(self.root, wanted), self._walk(self.apart, wanted)):
            if key > last and key.startswith(prefix) and is_key(key):
                last = key
                yield key, self.find(key) or path  # in both places: the plain one counts, as everywhere

    def _walk(self, directory: Path, wanted: Callable[[str], bool], folder: str = "") -> Iterator[tuple[str, Path]]:
        for name, path in self._entries(directory):
            key = folder + name
            if not key.endswith("/"):
                yield key, path
            elif wanted(key):
                yield from self._walk(path, wanted, key)

    def _entries(self, directory: Path) -> list[tuple[str, Path]]:
        """Files and folders of one directory, sorted; a folder's name ends in `/`, which puts it where its keys go."""
        marker = len("f-") if directory.is_relative_to(self.apart) else 0
        try:
            with os.scandir(directory) as entries:
                found = [
                    (entry.name[marker:] + "/" * entry.is_dir(follow_symlinks=False), Path(entry.path))
                    for entry in entries
                    if entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)
                ]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(item for item in found if item[1] != self.own)

    def _plain(self, key: str) -> Path | None:
        return None if key.split("/", 1)[0] == _OWN else self.root / key

    def _apart(self, key: str) -> Path:
        *folders, name = key.split("/")
        return self.apart.joinpath(*(f"d-{folder}" for folder in folders), f"f-{name}")

    def _is_free(self, path: Path) -> bool:
        """Whether a file can be made here: no directory or link in its place, no file or link in its way."""
        if os.path.lexists(path):
            return False
        above = next(parent for parent in path.parents if parent == self.root or os.path.lexists(parent))
        return above == self.root or (above.is_dir() and _is_direct(above))


def _is_direct(path: Path) -> bool:
    """Whether no part of the path is a symbolic link; the root is resolved already."""
    return os.path.realpath(path) == str(path)


def _is_file(path: Path) -> bool:
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(mode) and _is_direct(path)
