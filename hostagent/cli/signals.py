"""Signals that ask to stop: during an update they are only remembered, and heeded where that is safe."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """A signal asked to stop, and nothing was begun that would have to say how it ended."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


class Signals:
    """The first signal that came while they were held; later ones change nothing."""

    def __init__(self) -> None:
        self.first: int | None = None
        self._before: Mapping[int, Any] = {}
        self._ours: Mapping[int, Callable[[int, FrameType | None], None]] = {
            **dict.fromkeys(STOPPING, self._remember),
            signal.SIGTSTP: _stand_firm,
        }

    def cancelled(self) -> bool:
        """Whether somebody asked to stop."""
        return self.first is not None

    def check(self) -> None:
        """Raises Stopped when somebody asked to stop."""
        if self.first is not None:
            raise Stopped(self.first)

    @contextmanager
    def held(self) -> Iterator[Signals]:
        """Remember signals instead of ending by them; what was ignored (nohup) stays so."""
        heeded = [number for number in self._ours if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._ours[number]) for number in heeded}
        try:
            yield self
        finally:
            self._put_back()

    @contextmanager
    def ordinary(self) -> Iterator[None]:
        """End by them again for a while, as when a person is being asked."""
        self.check()
        self._put_back()
        try:
            yield
        finally:
            for number in self._before:
                signal.signal(number, self._ours[number])

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self.first is None:
            self.first = number


def _stand_firm(_number: int, _frame: FrameType | None) -> None:
    """Ctrl-Z while a guest stands still, or libvirt's daemon is away, would leave it so for as long as nobody looks."""
