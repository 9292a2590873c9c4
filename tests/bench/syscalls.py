"""The few system calls for namespaces and mounts that Python 3.11 has no function for."""

import ctypes
import os
from enum import IntFlag
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG = 1
SYS_PIVOT_ROOT = 155  # x86-64
MNT_DETACH = 2


class Mount(IntFlag):
    """Flags of mount(2)."""

    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    REMOUNT = 32
    BIND = 4096
    REC = 16384
    PRIVATE = 1 << 18


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(
    source: str | Path,
    target: Path,
    kind: str = "",
    flags: Mount = Mount(0),  # noqa: B008 - a constant
    options: str = "",
) -> None:
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode()
    )
    _check(result, f"mounting {kind or source} on {target}")


def bind(source: Path, target: Path, flags: Mount = Mount(0)) -> None:  # noqa: B008 - a constant
    """Bind mounts; flags such as RDONLY take a second call, says mount(2)."""
    mount(source, target, flags=Mount.BIND)
    if flags:
        mount(source, target, flags=Mount.BIND | Mount.REMOUNT | flags)


def pivot_root(new: Path) -> None:
    """Makes new the root and lets go of the old one."""
    os.chdir(new)
    _check(_libc.syscall(SYS_PIVOT_ROOT, b".", b"."), f"making {new} the root")
    _check(_libc.umount2(b".", MNT_DETACH), "letting go of the old root")
    os.chdir("/")


def die_with_parent(signal: int) -> None:
    """Has the kernel send us this signal when the process that started us ends."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0), "tying our life to the parent's")
