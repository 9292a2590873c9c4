"""Telling systemd how the service does: sd_notify(3), without its library."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from hostagent.printable import one_line

_STATUS_LIMIT = 200  # characters; systemctl status shows one line


@dataclass(frozen=True)
class Notify:
    """A socket of systemd's, or nobody. Whoever does not listen, or listens no more, is no reason to stop."""

    address: str = ""
    watchdog_seconds: float | None = None  # within which it wants to hear that all is well; None: it does not

    @classmethod
    def of(cls, environ: Mapping[str, str], pid: int) -> Notify:
        """As systemd has said in the environment of the process `pid`."""
        usec, whose = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        wanted = usec.isascii() and usec.isdigit() and int(usec) > 0 and whose in ("", str(pid))
        return cls(environ.get("NOTIFY_SOCKET", ""), int(usec) / 1e6 if wanted else None)

    @classmethod
    def of_this_process(cls) -> Notify:
        """As systemd has said to us."""
        return cls.of(os.environ, os.getpid())

    def ready(self) -> None:
        """It has begun to serve."""
        self._tell("READY=1")

    def status(self, words: str) -> None:
        """A line for `systemctl status`."""
        self._tell(f"STATUS={one_line(words)[:_STATUS_LIMIT]}")

    def alive(self) -> None:
        """All is well; to be said more often than every `watchdog_seconds`."""
        self._tell("WATCHDOG=1")

    def still_starting(self, seconds: float) -> None:
        """It gets ready for that much longer."""
        self._tell(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def stopping(self) -> None:
        """It has begun to end."""
        self._tell("STOPPING=1")

    def _tell(self, words: str) -> None:
        if not self.address:
            return
        name = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.setblocking(False)
            channel.sendto(words.encode("utf-8", "replace"), name)
