"""How long a scrape takes, and what an exporter's memory does: python -m bench.metrics [ROWS].

Each answer is measured on the wall and in processor time: on a machine that does other things only the latter counts.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from hostagent.facts import Component, Freshness, GuestState, QemuTree, Version
from hostagent.metrics.exposition import Exposition, Names
from hostagent.observed import Observed, SeenBlockers
from hostagent.plan import Method, Reason
from hostagent.update.handover import GUEST_STEPS
from hostagent.update.journal import Entry, Kind, Outcome, SqliteJournal
from hostagent.update.journal_tail import JournalTail
from hostagent.update.order import OrderedGuest, OrderKind, UpdateOrder

ROWS = 10_000
GUESTS_AT_ONCE = 20
ANSWERS = 25
DAY_OF_UPDATES = 1000
QEMU = QemuTree("system", Version(10, 0, 2), "1:10.0.2", "/usr/bin/qemu-system-x86_64")


@dataclass
class Host:
    """A journal that updates of made-up guests fill."""

    journal: SqliteJournal
    guests: int
    updates: int = 0
    rows: int = 0

    def update(self) -> None:
        """One more, of the guests whose turn it is."""
        for entries in self.entries():
            self.append(*entries)

    def append(self, *entries: Entry) -> None:
        self.journal.append(f"u{self.updates}", *entries)
        self.rows += len(entries)

    def entries(self) -> Iterator[tuple[Entry, ...]]:
        """Its rows, commit by commit, with other lengths and offsets each time."""
        self.updates += 1
        begin = self.updates * GUESTS_AT_ONCE
        numbers = {(begin + at) % self.guests for at in range(GUESTS_AT_ONCE)}
        guests = [
            OrderedGuest(uuid=f"{number:08}", name=f"web{number}", before=QEMU, budget_seconds=30.0)
            for number in sorted(numbers)
        ]
        order = UpdateOrder(kind=OrderKind.UPDATE, to=QEMU, guests=tuple(guests), pid=1)
        begun = (Entry(Kind.GUEST_BEGUN, guest.uuid, body={"name": guest.name}) for guest in guests)
        yield Entry(Kind.UPDATE_BEGUN, body=order.body()), *begun
        for guest in guests:
            yield from self._guest(guest.uuid)
        yield (Entry(Kind.UPDATE_ENDED, body={"outcome": Outcome.UPDATED, "reason": ""}),)

    def _guest(self, uuid: str) -> Iterator[tuple[Entry, ...]]:
        finished: tuple[Entry, ...] = ()
        for step in GUEST_STEPS:
            yield *finished, Entry(Kind.STEP_BEGUN, uuid, step.name)
            finished = (Entry(Kind.STEP_DONE, uuid, step.name),)
        off = self.rows / 1e7
        measured = {"pause_seconds": 0.02 + off, "pause_source": "qemu"}
        for when in ("before", "after", "synced"):
            measured |= {f"clock_{when}_seconds": off, f"clock_{when}_bound_seconds": off}
        yield *finished, Entry(Kind.MEASURED, uuid, body=measured)
        yield (Entry(Kind.GUEST_ENDED, uuid, body={"outcome": Outcome.UPDATED, "reason": "", "kind": ""}),)


def observed(guests: int) -> Observed:
    """A look at a host of which every guest may only be updated in place."""
    blockers = (
        SeenBlockers(f"web{number}", method, Reason.POLICY, 1)
        for number in range(guests)
        for method in (Method.LIVE_MIGRATE, Method.REBOOT)
    )
    return Observed(
        at=time.time(),
        hostname="host1",
        update_domain="",
        guests={state: guests if state is GuestState.RUNNING else 0 for state in GuestState},
        outdated={"qemu": guests, "kernel": 0},
        components=(Component("qemu", "1:7.2", "1:10.0.2", Freshness.OUTDATED),),
        blockers=tuple(blockers),
    )


def answers(scrape: Callable[[], object], before: Callable[[], object]) -> str:
    """Median and longest of several answers, `before` each of which something happens."""
    wall: list[float] = []
    cpu: list[float] = []
    for _ in range(ANSWERS):
        before()
        began, began_cpu = time.perf_counter(), time.process_time()
        scrape()
        wall.append((time.perf_counter() - began) * 1000)
        cpu.append((time.process_time() - began_cpu) * 1000)
    return f"{_shown(wall)}   processor {_shown(cpu)}"


def _shown(milliseconds: list[float]) -> str:
    return f"{median(milliseconds):7.2f} ms, at most {max(milliseconds):7.2f} ms"


def measure(folder: Path, rows: int, guests: int) -> None:
    """Print what scrapes of a host with so many guests take."""
    journal = SqliteJournal(folder / f"journal-{guests}.sqlite", "boot", time.time)
    host = Host(journal, guests)
    while host.rows < rows:
        host.update()
    seen = observed(guests)
    exposition = Exposition(JournalTail(folder / f"journal-{guests}.sqlite"), Names.SHOWN)
    began = time.perf_counter()
    size = len(exposition.text(seen))
    first = (time.perf_counter() - began) * 1000
    print(f"{guests} guests, {host.rows} rows, {size} characters")
    print(f"  the first answer, which reads it all  {first:7.2f} ms")
    scrape = lambda: exposition.text(seen)  # noqa: E731 - it is one word of what follows
    print(f"  nothing is new                        {answers(scrape, lambda: None)}")
    going_on = host.entries()
    print(f"  a step is new                         {answers(scrape, lambda: host.append(*next(going_on)))}")
    for entries in going_on:
        host.append(*entries)
    print(f"  an update of {min(GUESTS_AT_ONCE, guests):2} guests is new           {answers(scrape, host.update)}")
    journal.close()


def grow(folder: Path, updates: int) -> None:
    """Print what an exporter's memory does over a day's worth of updates, a scrape after each."""
    journal = SqliteJournal(folder / "journal-day.sqlite", "boot", time.time)
    host = Host(journal, GUESTS_AT_ONCE)
    exposition = Exposition(JournalTail(folder / "journal-day.sqlite"), Names.SHOWN)
    me, seen = psutil.Process(), observed(GUESTS_AT_ONCE)
    for tenth in range(11):
        gc.collect()
        rss, files = me.memory_info().rss / 1e6, me.num_fds()
        print(f"  after {host.updates:5} updates ({host.rows:7} rows): {rss:6.1f} MB, {files} files open")
        for _ in range(updates // 10 if tenth < 10 else 0):
            host.update()
            exposition.text(seen)
    journal.close()


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:  # it is the reading that is measured
        for guests in (GUESTS_AT_ONCE, 200):
            measure(Path(folder), rows, guests)
        print("a day of updates")
        grow(Path(folder), DAY_OF_UPDATES)


if __name__ == "__main__":
    main()
