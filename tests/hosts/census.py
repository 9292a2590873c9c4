"""Where guests run, asked of both hosts' libvirts again and again: two of one guest would be one too many."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Self

import libvirt

from tests.bench.link import SIDES, Side
from tests.bench.two_hosts import TwoHosts

PAUSE = 0.02
"""Seconds between two looks at both."""


class Census:
    """`with Census(hosts) as census:` looks on from a thread of its own.

    The hosts cannot be asked in one moment: a guest may have left one and gone on on the other in between. Twice is one
    that ran on a host before and after it did on the other.
    """

    def __init__(self, hosts: TwoHosts) -> None:
        self._hosts = hosts
        self._over = threading.Event()
        self._last: deque[frozenset[str]] = deque(maxlen=3)
        self._thread = threading.Thread(target=self._watch, name="census", daemon=True)
        self._error: Exception | None = None
        self.looks = 0
        self.twice: set[str] = set()
        self.seen: dict[Side, set[str]] = {side: set() for side in SIDES}
        """UUIDs of guests that were seen to run there."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def _watch(self) -> None:
        opened = {side: libvirt.open(self._hosts.uri(side)) for side in SIDES}
        try:
            while not self._over.wait(PAUSE):
                for side, connection in opened.items():
                    self._look(side, connection)
        except libvirt.libvirtError as error:
            self._error = error
        finally:
            for connection in opened.values():
                with suppress(libvirt.libvirtError):
                    connection.close()

    def _look(self, side: Side, connection: libvirt.virConnect) -> None:
        found = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_RUNNING)
        running = frozenset(domain.UUIDString() for domain in found)
        self.looks += 1
        self.seen[side] |= running
        self._last.append(running)
        if len(self._last) == len(SIDES) + 1:  # this host, the other one, this one again
            self.twice |= frozenset.intersection(*self._last)
