"""A file that nobody opens until we say so: fanotify(7), with FAN_OPEN_PERM.

Whoever opens it waits in open(2). When we end, however that happens, the kernel lets everybody through. We must not
open it ourselves meanwhile: what is in it is read through the descriptor that comes with each opening.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

# linux/fanotify.h
_FAN_CLASS_CONTENT, _FAN_NONBLOCK, _FAN_CLOEXEC = 0x04, 0x02, 0x01
_FAN_MARK_ADD, _FAN_MARK_DONT_FOLLOW, _FAN_OPEN_PERM = 0x01, 0x04, 0x00010000
_FAN_ALLOW, _FAN_DENY = 1, 2
_VERSION = 3
_EVENT = struct.Struct("=IBBHQii")  # event_len, vers, reserved, metadata_len, mask, fd, pid
_ANSWER = struct.Struct("=iI")
_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Opening:
    """Somebody waits to open the file: a process, as our pid namespace numbers it, and a descriptor to read it by."""

    pid: int
    fd: int


class FileGate:
    """`with FileGate(path) as gate:`; OSError for a file that is not there, or where the kernel has no such thing."""

    def __init__(self, path: Path) -> None:
        how = _FAN_CLASS_CONTENT | _FAN_NONBLOCK | _FAN_CLOEXEC
        self._group = _checked(_libc.fanotify_init(how, os.O_RDONLY | os.O_CLOEXEC))
        mask, name = ctypes.c_uint64(_FAN_OPEN_PERM), os.fsencode(path)
        try:
            _checked(_libc.fanotify_mark(self._group, _FAN_MARK_ADD | _FAN_MARK_DONT_FOLLOW, mask, _AT_FDCWD, name))
        except OSError:
            os.close(self._group)
            raise

    def openings(self, stop: int) -> list[Opening] | None:
        """Wait until somebody opens it; None once `stop` can be read from. Each has to be answered."""
        ready, _, _ = select.select([self._group, stop], [], [])
        if self._group not in ready:
            return None
        told, found = b"", list[Opening]()
        with suppress(BlockingIOError):  # whoever wanted to open it has been killed
            told = os.read(self._group, 4096)
        while told:
            length, version, _, _, _, fd, pid = _EVENT.unpack_from(told)
            assert version == _VERSION, version  # noqa: S101 - the kernel's, since 2.6.37
            if fd >= 0:  # else the kernel says that there were too many at once, and lets them through
                found.append(Opening(pid, fd))
            told = told[length:]
        return found

    def answer(self, opening: Opening, *, allow: bool) -> None:
        """Let it have the file, or have its open(2) fail with EPERM; done when it is not there any more."""
        try:
            os.write(self._group, _ANSWER.pack(opening.fd, _FAN_ALLOW if allow else _FAN_DENY))
        except FileNotFoundError:
            pass
        finally:
            os.close(opening.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let everybody through; done when it is closed already."""
        group, self._group = self._group, -1
        if group >= 0:
            os.close(group)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
