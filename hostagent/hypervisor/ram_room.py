"""How much room there is for RAM in files: on their file system, in the host's memory, below a guest's own limit."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from hostagent.facts import RamRoom
from hostagent.hypervisor import surroundings
from hostagent.hypervisor.surroundings import PROC

_NO_LIMIT_V1 = 1 << 60  # version 1 says "no limit" by a number near 2**63, rounded to pages


def ram_room(folder: Path) -> RamRoom | None:
    """What is left below libvirt's memory_backing_dir; None when it is not there."""
    try:
        size, device = os.statvfs(folder), folder.stat().st_dev
    except OSError:
        return None
    # A guest's file grows as the guest touches its RAM: all of it counts from the beginning.
    promised = sum(dict(_files(folder, device)).values())
    return RamRoom(
        filesystem=_filesystem(folder),
        unpromised=size.f_blocks * size.f_frsize - promised,
        available=int(psutil.virtual_memory().available),
    )


def _files(folder: Path, device: int) -> Iterator[tuple[int, int]]:
    """Inode and size of every file below it; a pin is another name of one."""
    for path in folder.rglob("*"):
        with suppress(OSError):  # removed meanwhile
            found = path.lstat()
            if stat.S_ISREG(found.st_mode) and found.st_dev == device:
                yield found.st_ino, found.st_size


def _filesystem(folder: Path) -> str:
    inside = [part for part in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(part.mountpoint)]
    # The longest one is nearest; of two at one place the later one is seen.
    return max(enumerate(inside), key=lambda item: (len(item[1].mountpoint), item[0]))[1].fstype if inside else ""


def memory_room(pid: int) -> int | None:
    """What the cgroups of a process let it use beyond what they use now, bytes; None when nothing limits it."""
    try:
        groups = surroundings.cgroups(PROC / str(pid) / "cgroup")
    except OSError:
        return None
    rooms = [room for controllers, where in groups for room in _rooms(controllers, where)]
    return min(rooms, default=None)


def _rooms(controllers: str, where: str) -> Iterator[int]:
    """Of one cgroup and those around it."""
    if controllers and "memory" not in controllers.split(","):
        return
    folder = surroundings.cgroup_folder(controllers, where)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
    while folder is not None and (folder / "cgroup.procs").exists():
        limit, used = (_number(folder / name) for name in names)
        if limit is not None and used is not None and limit < _NO_LIMIT_V1:
            yield max(0, limit - used)
        folder = folder.parent


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
