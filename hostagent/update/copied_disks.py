"""Disks that are copied to a peer with their guest: what is noted of them, and what decides whose a file is.

A file of the peer's is removed only if it was made for the guest by this very update, and while the guest is not there.
A file of this host's is written over only by the guest coming back to it, and only if it is the one that the guest has
left, as it has left it.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hostagent.errors import Failed
from hostagent.facts import Disk
from hostagent.hypervisor.migration_verbs import Image, MigratingHost


@dataclass(frozen=True)
class CopiedDisk:
    """A disk, with its file as it is on this host before the guest leaves."""

    target: str
    path: str
    format: str
    size: int  # that the guest sees
    device: int
    inode: int
    owner: int
    group: int
    mode: int

    @property
    def image(self) -> Image:
        """What is made for it on the peer: with the same owner, by number."""
        return Image(Path(self.path), self.format, self.size, self.owner, self.group, self.mode)


@dataclass(frozen=True)
class LeftFile:
    """A file of this host's as the guest has left it."""

    path: str
    bytes: int
    mtime_ns: int


def as_it_is(disk: Disk) -> CopiedDisk:
    """The disk of a guest that is here; OSError when its file is gone."""
    found = Path(disk.path).lstat()
    return CopiedDisk(
        target=disk.target,
        path=disk.path,
        format=disk.format,
        size=disk.size,
        device=found.st_dev,
        inode=found.st_ino,
        owner=found.st_uid,
        group=found.st_gid,
        mode=stat.S_IMODE(found.st_mode),
    )


def as_it_was_left(disk: CopiedDisk) -> LeftFile:
    """Its file, once no QEMU has it any more; OSError when it is gone."""
    found = Path(disk.path).lstat()
    return LeftFile(disk.path, found.st_size, found.st_mtime_ns)


def why_not_onto(disk: CopiedDisk, left: Sequence[LeftFile], *, begun: bool) -> str:
    """Why the guest may not be written back over its file here; "" when it may. begun: that was begun already.

    A host that was started anew may number its devices otherwise: then only an untouched file is known again.
    """
    try:
        found = Path(disk.path).lstat()
    except OSError as error:
        return str(error)
    if not stat.S_ISREG(found.st_mode) or found.st_ino != disk.inode:
        return f"{disk.path} is another file than the one that it left"
    was = next((one for one in left if one.path == disk.path), None)
    untouched = was is not None and (found.st_size, found.st_mtime_ns) == (was.bytes, was.mtime_ns)
    if was is not None and not untouched and not begun:
        return f"somebody has written to {disk.path} since it left"
    if found.st_dev != disk.device and not untouched:
        return f"{disk.path} is on another device than the one that it left"
    return ""


def remove_made(host: MigratingHost, uuid: str, made: Sequence[str]) -> None:
    """Remove the images that were made for a guest; Failed when the host knows the guest, which then needs them."""
    if not made:
        return
    there = host.there(uuid)
    if there is not None:
        raise Failed("removing copies of its disks", expected="the guest not to be there", found=str(there.state))
    for path in made:
        host.remove_image(Path(path))
