"""Whether a network mount shows the processes of one machine what those of another do, as the cache needs."""

from __future__ import annotations

from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")


def list_mounts() -> str:
    """The mounts that this process sees, in the form of proc(5); none where the system has no such file."""
    return _MOUNTS.read_text() if _MOUNTS.exists() else ""


def nfs_problem(directory: Path, mounts: str) -> str:
    """What keeps a directory on NFS from being shared between machines, and the remedy; "" if nothing does.

    Args:
        directory: Absolute.
        mounts: From `list_mounts`: a mount point in field 5, after a hyphen the type, source and options.
    """
    kind, options = _mount_of(directory, mounts)
    if not kind.startswith("nfs"):
        return ""
    if options.get("local_lock", "none") != "none":
        return "locks do not reach the server: mount it without nolock and local_lock"
    if "noac" not in options and any(options.get(name) != "0" for name in ("acregmin", "acdirmin")):
        return "what other machines do is seen late: mount it with actimeo=0"
    return ""


def _mount_of(directory: Path, mounts: str) -> tuple[str, dict[str, str]]:
    """Type and options of the file system that a directory is on."""
    found: dict[Path, tuple[str, str]] = {}
    for line in mounts.splitlines():
        place, _, source = line.partition(" - ")
        kind, _, options = source.partition(" ")
        found[Path(place.split(" ")[4].replace("\\040", " "))] = kind, options.rpartition(" ")[2]
    kind, options = next((found[path] for path in (directory, *directory.parents) if path in found), ("", ""))
    pairs = (option.partition("=") for option in options.split(","))
    return kind, {name: value for name, _, value in pairs}
