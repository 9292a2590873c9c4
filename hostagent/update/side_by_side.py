"""Work on several guests at the same time, each on a thread of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import TypeVar

from hostagent.update.subject import Ports

M = TypeVar("M")
R = TypeVar("R")

AT_MOST = 16  # of itself: libvirt's daemon does twenty things at the same time (its max_workers)


def side_by_side(
    ports: Ports, members: Sequence[M], work: Callable[[M], R], name: str, *, a_core: int = 1
) -> Iterator[tuple[M, R]]:
    """Each, and what came of it; as many at the same time as `side_by_side` says, or `a_core` for each core.

    They are begun in their order. One after the other they are worked on as they are asked for, so that whoever stops
    asking stops the work.
    """
    itself = min(a_core * (os.cpu_count() or 1), AT_MOST)
    workers = min(ports.config.update.side_by_side or itself, len(members))
    if workers <= 1:
        yield from ((member, work(member)) for member in members)
        return

    waiting: SimpleQueue[int] = SimpleQueue()
    for place in range(len(members)):
        waiting.put(place)

    def one_after_the_other() -> dict[int, R]:
        done: dict[int, R] = {}
        try:
            while (place := _next(waiting)) is not None:
                done[place] = work(members[place])
        finally:
            ports.libvirt.disconnect()  # this thread's own
            for host in ports.hosts.values():
                host.disconnect()
        return done

    with ThreadPoolExecutor(workers, thread_name_prefix=name) as pool:
        parts = [pool.submit(one_after_the_other) for _ in range(workers)]
    results = {place: result for part in parts for place, result in part.result().items()}
    yield from ((member, results[place]) for place, member in enumerate(members))


def _next(waiting: SimpleQueue[int]) -> int | None:
    try:
        return waiting.get_nowait()
    except Empty:
        return None
