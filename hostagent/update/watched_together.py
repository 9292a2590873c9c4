"""One guard for guests that stand still side by side: each says when it runs, none speaks for another."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, field

from hostagent.errors import HostagentError
from hostagent.hypervisor.driver_lock import DriverLock
from hostagent.update.subject import Watcher


@dataclass
class WatchedTogether:
    """Tells the guard of the first moment by which any of them is to run."""

    watcher: Watcher
    _until: dict[int, float] = field(default_factory=dict)  # of those that stand still
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def one(self) -> Watcher:
        """The watcher of a single guest."""
        return _One(self)

    def stands_still(self, one: int, until: float) -> None:
        """Raises as the watcher does."""
        with self._turn:
            self._until[one] = until
            self.watcher.pausing(min(self._until.values()))

    def runs(self, one: int) -> None:
        """Others may stand still yet."""
        with self._turn:
            if self._until.pop(one, None) is None:
                return
            if self._until:
                with suppress(HostagentError):  # it runs: a guard that died meanwhile changes nothing
                    self.watcher.pausing(min(self._until.values()))
            else:
                self.watcher.running()


@dataclass(frozen=True)
class _One:
    """What a guest's steps talk to."""

    together: WatchedTogether

    def ready(self) -> None:
        self.together.watcher.ready()

    def pausing(self, until: float) -> None:
        self.together.stands_still(id(self), until)

    def running(self) -> None:
        self.together.runs(id(self))

    def hold(self, lock: DriverLock) -> None:
        self.together.watcher.hold(lock)
