"""Calls that may take a while, one after the other on a thread, for a loop that must not wait.

Unlike an executor's thread, this one keeps no process from ending.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class Lane:
    """A thread of its own for calls that have deadlines of their own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]]] = queue.SimpleQueue()
        self._began: float | None = None  # monotonic; None while it waits for work
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def do(self, work: Callable[[], T]) -> T:
        """The work's value or error."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls.put((work, done))
        return await done

    def busy_seconds(self) -> float:
        """How long the call lasts that it is at; 0 while it waits for one."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    def _run(self) -> None:
        while True:
            work, done = self._calls.get()
            self._began = time.monotonic()
            value, error = None, None
            try:
                value = work()
            except Exception as caught:  # it belongs to whoever waits
                error = caught
            self._began = None
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                done.get_loop().call_soon_threadsafe(_settle, done, value, error)


def _settle(done: asyncio.Future[Any], value: object, error: Exception | None) -> None:
    if done.done():
        return
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(value)
