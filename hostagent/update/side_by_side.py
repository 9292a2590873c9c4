"""Work on several guests at the same time, each on a thread of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from hostagent.update.subject import Ports

M = TypeVar("M")
R = TypeVar("R")


def side_by_side(ports: Ports, members: Sequence[M], work: Callable[[M], R], name: str) -> Iterator[tuple[M, R]]:
    """Each, and what came of it; as many at the same time as there are cores, or as `side_by_side` says.

    One after the other they are worked on as they are asked for, so that whoever stops asking stops the work.
    """
    workers = min(ports.config.update.side_by_side or os.cpu_count() or 1, len(members))
    if workers <= 1:
        yield from ((member, work(member)) for member in members)
        return

    def on_a_thread(member: M) -> R:
        try:
            return work(member)
        finally:
            ports.libvirt.disconnect()  # this thread's own
            for host in ports.hosts.values():
                host.disconnect()

    with ThreadPoolExecutor(workers, thread_name_prefix=name) as pool:
        results = list(pool.map(on_a_thread, members))
    yield from zip(members, results, strict=True)
