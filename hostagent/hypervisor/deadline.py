"""A deadline on calls that have none: each runs on a thread of its own kind, and a late one is left behind."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hostagent.errors import OutcomeUnknown

T = TypeVar("T")


@dataclass
class _Call:
    work: Callable[[], Any]
    done: threading.Event = field(default_factory=threading.Event)
    value: Any = None
    error: BaseException | None = None


class Worker:
    """Runs calls one after the other; after a late one it must be thrown away, since its thread may hang for ever."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="hostagent call", daemon=True).start()

    def call(self, doing: str, work: Callable[[], T], within_seconds: float) -> T:
        """The work's value or error; OutcomeUnknown when it is late."""
        call = _Call(work)
        self._calls.put(call)
        if not call.done.wait(within_seconds):
            self._calls.put(None)
            raise OutcomeUnknown(
                doing,
                expected=f"an answer within {within_seconds:g} s",
                found="none",
            )
        if call.error is not None:
            raise call.error
        value: T = call.value
        return value

    def end(self) -> None:
        """Let the thread go."""
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call.value = call.work()
            except BaseException as error:  # it belongs to whoever waits
                call.error = error
            call.done.set()
