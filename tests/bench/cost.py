"""What a process takes of its host: processor time with that of its ended children, memory, files, threads."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import _lru_cache_wrapper

import psutil

MIB = 1 << 20


@dataclass(frozen=True)
class Taken:
    """At one moment."""

    at: float  # monotonic
    processor: float  # seconds, since it began
    resident: int  # bytes
    own: int  # bytes of them that no other process shares
    files: int
    threads: int

    @classmethod
    def by(cls, pid: int) -> Taken:
        process = psutil.Process(pid)
        times, memory = process.cpu_times(), process.memory_full_info()
        return cls(
            time.monotonic(),
            times.user + times.system + times.children_user + times.children_system,
            memory.rss,
            memory.uss,
            process.num_fds(),
            process.num_threads(),
        )

    def __str__(self) -> str:
        sizes = f"{self.resident / MIB:.1f} MiB, {self.own / MIB:.1f} MiB of its own"
        return f"{sizes}, {self.files} files, {self.threads} threads"


def forget_caches() -> None:
    """Empty every cache of this process that has a size: until it has that it grows, and is no growth."""
    for found in gc.get_objects():
        if isinstance(found, _lru_cache_wrapper):
            found.cache_clear()
    gc.collect()


def share(before: Taken, after: Taken) -> float:
    """Of one processor, in between, percent."""
    return 100 * (after.processor - before.processor) / (after.at - before.at)


def over(pid: int, seconds: float) -> tuple[float, Taken]:
    """What it takes of a processor over so many seconds, percent, and what it takes at their end."""
    before = Taken.by(pid)
    time.sleep(seconds)
    after = Taken.by(pid)
    return share(before, after), after


def wait(condition: Callable[[], bool], what: str, limit: float = 120.0) -> None:
    """Until it holds; AssertionError after so many seconds."""
    ends = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < ends, f"expected {what} within {limit:g} s"
        time.sleep(0.1)


def how_busy() -> str:
    """The machine's size, and what others ask of it."""
    one, _, fifteen = psutil.getloadavg()
    size = psutil.virtual_memory().total >> 30
    return f"{psutil.cpu_count()} processors, {size} GiB; load {one:.1f}, over 15 minutes {fifteen:.1f}"
