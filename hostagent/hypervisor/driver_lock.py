"""libvirt's own lock on /run/libvirt/qemu/driver.pid: while we hold it no QEMU driver starts, whoever tries.

libvirt takes it with fcntl(F_SETLK) before it reads any guest's record (src/qemu/qemu_driver.c,
qemuStateInitialize), and exits when it cannot. We take it as an open file description lock (fcntl(2)), which
conflicts with libvirt's and belongs to the open file, not to a process: a guard that has the same open file keeps the
lock when the updater dies, without a gap.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from hostagent.errors import Failed

# linux/fcntl.h; not all Python builds name them
_F_OFD_GETLK, _F_OFD_SETLK = 36, 37
_FLOCK = struct.Struct("hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid on 64-bit Linux


@dataclass
class DriverLock:
    """The lock; `fd` is the open file that holds or held it, shared with the guard."""

    path: Path
    fd: int | None = None

    def acquire(self) -> bool:
        """Take it, or find that we have it; False when somebody else has it."""
        while True:
            if self.fd is None:
                self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            try:
                fcntl.fcntl(self.fd, _F_OFD_SETLK, _lock(fcntl.F_WRLCK))
            except OSError as error:
                if error.errno in {errno.EAGAIN, errno.EACCES}:
                    return False
                raise Failed(f"locking {self.path}", found=str(error)) from error
            if self._is_current():
                return True
            os.close(self.fd)  # a daemon that left removed the file between our open and our lock
            self.fd = None

    def held(self) -> bool:
        """Whether this open file holds the lock now: taking it again succeeds exactly then, or takes it."""
        return self.fd is not None and self._is_current() and self.acquire()

    def release(self) -> None:
        """Give it up, for everybody who shares the open file. The file stays: libvirt may be waiting on it."""
        if self.fd is None:
            return
        fcntl.fcntl(self.fd, _F_OFD_SETLK, _lock(fcntl.F_UNLCK))
        os.close(self.fd)
        self.fd = None

    def holder(self) -> int | None:
        """Pid of the process that holds it; None when nobody does (or only an open file, such as ours)."""
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            answer = fcntl.fcntl(fd, _F_OFD_GETLK, _lock(fcntl.F_WRLCK))
        finally:
            os.close(fd)
        kind, _, _, _, pid = _FLOCK.unpack(answer)
        return None if kind == fcntl.F_UNLCK or pid <= 0 else int(pid)

    def _is_current(self) -> bool:
        if self.fd is None:
            return False
        mine = os.fstat(self.fd)
        try:
            there = self.path.lstat()
        except FileNotFoundError:
            return False
        return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


def _lock(kind: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, 0, 1, 0)
