"""Which NFS mounts the model directory can be shared on."""

from __future__ import annotations

from pathlib import Path

import pytest

from function.models.mounts import list_mounts, nfs_problem

MOUNT = "rw,relatime,vers=4.2,namlen=255,{more}hard,proto=tcp,timeo=600,sec=sys,local_lock={locks},addr=10.0.0.2"
NO_CACHE = "acregmin=0,acregmax=0,acdirmin=0,acdirmax=0,"
LOCKS, LATE = "locks do not reach the server", "is seen late"


def mounts(more: str = "", locks: str = "none", at: str = "/models") -> str:
    """Three mounts, of which one is NFS, as Linux 6.1 lists them."""
    options = MOUNT.format(more=more, locks=locks)
    return f"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:45 / {at} rw,relatime shared:20 - nfs4 server:/models {options}
41 40 0:46 / {at}/local rw shared:21 - tmpfs tmpfs rw,size=1024k
"""


@pytest.mark.parametrize(
    ("directory", "table", "problem"),
    [
        ("/models", mounts(), LATE),
        ("/models/deep/er", mounts("acregmin=0,"), LATE),
        ("/models", mounts(NO_CACHE), ""),
        ("/models", mounts("noac,"), ""),
        ("/models/x", mounts(NO_CACHE, locks="all"), LOCKS),
        ("/models", mounts(NO_CACHE, locks="flock"), LOCKS),
        ("/models/local", mounts(), ""),
        ("/modelsx", mounts(), ""),
        ("/my models", mounts(at="/my\\040models"), LATE),
        ("/models", "", ""),
    ],
)
def test_a_mount_that_hides_what_other_machines_do_is_named(directory: str, table: str, problem: str) -> None:
    """With what to mount it with; a local file system below or beside it is none of that."""
    found = nfs_problem(Path(directory), table)
    assert problem in found
    assert bool(found) == bool(problem)


def test_the_table_of_this_machine_can_be_read(tmp_path: Path) -> None:
    """Tests do not run on NFS."""
    assert nfs_problem(tmp_path, list_mounts()) == ""
