"""One update at a time on a host: a lock, and in its file who has it and since when."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hostagent.errors import Refused
from hostagent.locks import OpenFileLock


@dataclass
class HostLock:
    """Held by whoever changes something on this host, and by its guard."""

    lock: OpenFileLock

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
                found=_described(self.lock.path),
                hint="wait for it; see: hostagent status",
            )
        fd = self.lock.fd
        assert fd is not None  # noqa: S101 - acquire() opened it
        who = {"pid": os.getpid(), "doing": doing, "since": now}
        with suppress(OSError):  # only words: a full disk keeps nobody from recovering
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(who).encode(), 0)

    def held_by(self) -> str:
        """Who has it and since when, "" when nobody does; only looks."""
        return "" if self.lock.is_free() else _described(self.lock.path)

    @property
    def fd(self) -> int:
        """The open file, to be shared with a guard."""
        assert self.lock.fd is not None  # noqa: S101 - it was taken
        return self.lock.fd

    def release(self) -> None:
        """Give it up."""
        self.lock.release()


def _described(path: Path) -> str:
    try:
        who = json.loads(path.read_text()[:4096])
        since = datetime.fromtimestamp(float(who["since"]), UTC)
        return f"'{who['doing']}' by process {int(who['pid'])} since {since:%Y-%m-%d %H:%M:%S} UTC"
    except (OSError, ValueError, KeyError, TypeError):
        return "another one, just beginning"
