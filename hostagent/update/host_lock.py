"""One update at a time on a host: a lock, and in its file who has it and since when.

What stands there may be read before whoever has just taken the lock has written it; whoever gives it up takes it out.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hostagent.errors import Refused
from hostagent.hypervisor import ProcessId
from hostagent.hypervisor.surroundings import identify
from hostagent.locks import OpenFileLock

GUARDING = "recovering after an updater that died"  # what a guard does that has taken over
_RECORD_LIMIT = 4096


@dataclass(frozen=True)
class Holder:
    """Who has it: a process, which may have died and left it to its guard."""

    process: ProcessId
    doing: str
    since: float  # Unix time

    @property
    def is_guard(self) -> bool:
        """Whether it sees to what somebody else has left: nobody may stop it."""
        return self.doing == GUARDING

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC)
        return f"'{self.doing}' by process {self.process.pid} since {since:%Y-%m-%d %H:%M:%S} UTC"


@dataclass
class HostLock:
    """Held by whoever changes something on this host, and by its guard."""

    lock: OpenFileLock
    taken: bool = False  # by us, and named in its file

    @classmethod
    def at(cls, path: Path, fd: int | None = None) -> HostLock:
        """The lock of the host; a guard passes the open file that it shares."""
        return cls(OpenFileLock(path, fd))

    def take(self, doing: str, now: float) -> None:
        """Take it and say who has it; Refused, with who and since when, if somebody else does."""
        if not self.lock.acquire():
            raise Refused(
                doing,
                expected="no other update on this host",
                found=self._described(),
                hint="wait for it; see: hostagent status",
            )
        fd = self.lock.fd
        assert fd is not None  # noqa: S101 - acquire() opened it
        self.taken = True
        with suppress(OSError):  # only words: a full disk keeps nobody from recovering
            me = identify(os.getpid())
            who = {"pid": me.pid, "start_ticks": me.start_ticks, "doing": doing, "since": now}
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(who).encode(), 0)

    def held_by(self) -> str:
        """Who has it and since when, "" when nobody does; only looks."""
        return "" if self.lock.is_free() else self._described()

    def is_free(self) -> bool:
        """Whether nobody has it."""
        return self.lock.is_free()

    def holder(self) -> Holder | None:
        """Who has it; None when nobody does, or has not said yet."""
        return None if self.lock.is_free() else _read(self.lock.path)

    @property
    def fd(self) -> int:
        """The open file, to be shared with a guard."""
        assert self.lock.fd is not None  # noqa: S101 - it was taken
        return self.lock.fd

    def release(self) -> None:
        """Give it up; what stands in its file was ours, and is true no more."""
        if self.taken and self.lock.fd is not None:
            with suppress(OSError):
                os.ftruncate(self.lock.fd, 0)
        self.taken = False
        self.lock.release()

    def _described(self) -> str:
        holder = _read(self.lock.path)
        return str(holder) if holder is not None else "another one, just beginning"


def _read(path: Path) -> Holder | None:
    try:
        who = json.loads(path.read_bytes()[:_RECORD_LIMIT])
        holder = Holder(
            ProcessId(int(who["pid"]), int(who.get("start_ticks", 0))), str(who["doing"]), float(who["since"])
        )
        str(holder)  # a moment that no calendar has
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return holder if holder.process.pid > 0 else None
