"""A lock on a file that belongs to the open file, not to a process (open file description locks, fcntl(2)).

It conflicts with the ordinary record locks that others take on the same file, and whoever shares the open file shares
the lock: it lasts until the last of them is gone.
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
class OpenFileLock:
    """A write lock on the first byte of a file; `fd` is the open file that holds it, or held it."""

    path: Path
    fd: int | None = None
    mode: int = 0o600

    def acquire(self) -> bool:
        """Take it, or find that we have it; False when somebody else has it."""
        while True:
            try:
                if self.fd is None:
                    self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                    self.fd = os.open(self.path, flags, self.mode)
                fcntl.fcntl(self.fd, _F_OFD_SETLK, _lock(fcntl.F_WRLCK))
            except OSError as error:
                if error.errno in {errno.EAGAIN, errno.EACCES} and self.fd is not None:
                    return False
                raise Failed(f"locking {self.path}", found=error.strerror or str(error)) from error
            if self._is_current():
                return True
            os.close(self.fd)  # the file was removed between our open and our lock
            self.fd = None

    def held(self) -> bool:
        """Whether this open file has the lock; an open file that lost it takes it again if it can."""
        return self.fd is not None and self._is_current() and self.acquire()

    def release(self) -> None:
        """Give it up, for everybody who shares the open file. The file stays: somebody may be waiting on it."""
        if self.fd is None:
            return
        fcntl.fcntl(self.fd, _F_OFD_SETLK, _lock(fcntl.F_UNLCK))
        os.close(self.fd)
        self.fd = None

    def holder(self) -> int | None:
        """Pid of the process that has it; None when nobody has, or an open file such as ours, which has no pid."""
        answer = self._ask()
        return answer if answer is not None and answer > 0 else None

    def is_free(self) -> bool:
        """Whether nobody has it, neither a process nor an open file."""
        return self._ask() is None

    def _ask(self) -> int | None:
        """Whose lock would be in the way: None nobody's, a pid, or -1 for an open file's."""
        try:
            # To ask takes no right to write (linux, fs/locks.c, fcntl_getlk): the agent has none for libvirt's files.
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Failed(f"looking at the lock {self.path}", found=error.strerror or str(error)) from error
        try:
            answer = fcntl.fcntl(fd, _F_OFD_GETLK, _lock(fcntl.F_WRLCK))
        finally:
            os.close(fd)
        kind, _, _, _, pid = _FLOCK.unpack(answer)
        return None if kind == fcntl.F_UNLCK else int(pid)

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
