"""What the agent takes beside many guests, and over a day's updates, without any guest.

Called as python -m tests.bench.load_fake [GUESTS [SECONDS [UPDATES]]]; 0 leaves a part out.

The host of the first part is made up (made_up_agent.py): guests of every kind, at rest, and while the journal gets what
updates of twenty at a time write. In the second a thousand whole updates go over the fake host, one after the other in
one process, beside the agent, which looks every second, and is scraped after each: nothing may be left of them, neither
here nor there, but rows in the journal. Needs no guest, and nothing of the machine's.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import psutil

from bench import metrics
from hostagent import wiring
from hostagent.plan import GuestPlan, Method, Plan, Technique, Verdict
from hostagent.update.host import update_qemu
from hostagent.update.host_lock import HostLock
from hostagent.update.journal import Outcome
from hostagent.update.subject import Ports
from tests.bench.cost import MIB, Taken, forget_caches, how_busy, over, share, wait
from tests.bench.made_up_agent import settings
from tests.crash import shapes
from tests.crash.rig import Rig, Scenario, rig

GUESTS, SECONDS, UPDATES = 200, 300.0, 1000
COMMIT_SECONDS = 0.005  # between two commits of an update: twenty guests in some two seconds
GROWN_MIB = 6.0  # that is no growth yet: what Python and sqlite keep for later
_SCRAPES = 20


@contextmanager
def agent(folder: Path, guests: int, look_seconds: float) -> Iterator[int]:
    """The service beside so many made-up guests; its pid."""
    log = folder / "agent.log"
    words = [sys.executable, "-m", "tests.bench.made_up_agent", str(folder), str(guests), str(look_seconds)]
    with log.open("w") as said:
        process = psutil.Popen(words, stdout=said, stderr=subprocess.STDOUT)
    try:
        wait(lambda: "event=ready" in log.read_text(), "the agent to be ready")
        yield process.pid
    finally:
        process.terminate()
        process.wait(60)


def scrapes(folder: Path, count: int = 1) -> list[float]:
    """How long so many scrapes took, ms."""

    async def ask() -> list[float]:
        found = []
        connector = aiohttp.UnixConnector(str(settings(folder, 60.0).agent.socket))
        async with aiohttp.ClientSession(connector=connector) as session:
            for _ in range(count):
                began = time.perf_counter()
                async with session.get("http://agent/metrics") as answer:
                    assert answer.status == 200, await answer.text()
                    await answer.read()
                found.append((time.perf_counter() - began) * 1000)
        return found

    return asyncio.run(ask())


def shown(milliseconds: list[float]) -> str:
    return f"a scrape {statistics.median(milliseconds):.1f} ms, at most {max(milliseconds):.1f} ms"


def measure(folder: Path, guests: int, seconds: float) -> None:
    """Print what the agent takes at rest, and while guests are updated."""
    config = settings(folder, 60.0)
    journal = wiring.journal_of(config)
    host = metrics.Host(journal, guests)
    while host.rows < metrics.ROWS:
        host.update()
    print(f"{guests} made-up guests, {host.rows} rows, on {how_busy()}", flush=True)
    with agent(folder, guests, 60.0) as pid:
        over(pid, 15.0)
        print(f"  begun                        {Taken.by(pid)}", flush=True)
        taken, now = over(pid, seconds)
        print(f"  at rest for {seconds:.0f} s            {taken:7.3f} % of a processor; {now}", flush=True)
        print(f"                               {shown(scrapes(folder, _SCRAPES))}", flush=True)
        lock = HostLock.at(wiring.host_lock_path(config))
        lock.take("update qemu", time.time())
        before, took = Taken.by(pid), []
        for number in range(guests // metrics.GUESTS_AT_ONCE):
            for entries in host.entries():
                host.append(*entries)
                time.sleep(COMMIT_SECONDS)
            took += scrapes(folder, 2) if number % 2 else []
        after = Taken.by(pid)
        lock.release()
        print(
            f"  while all are updated ({after.at - before.at:.0f} s) {share(before, after):7.3f} %; {after}", flush=True
        )
        print(f"                               {shown(took)}", flush=True)
    journal.close()


def once(made: Rig, number: int) -> None:
    """An update of all its guests, there or back."""
    to = (shapes.NEW, shapes.OLD)[number % 2]

    def work(ports: Ports) -> None:
        host = ports.libvirt.host()
        guests = tuple(
            GuestPlan(
                *(guest.name, guest.uuid, Verdict.UPDATE, Method.IN_PLACE, Technique.HANDOVER),
                *(guest.qemu, (), 30.0),
            )
            for guest in host.guests
        )
        plan = Plan("qemu", to, guests, ())
        ended = update_qemu(ports, host, plan, update_id=f"d{number}", tell=lambda *_: None, cancelled=lambda: False)
        assert {guest.outcome for guest in ended.guests.values()} == {Outcome.UPDATED}, ended

    said = made.run(work)
    assert not said, said
    with made.host.world.change() as state:  # the fake remembers whoever ended, which is no growth of hostagent's
        state.processes = {pid: process for pid, process in state.processes.items() if process.alive}


def files(folder: Path) -> frozenset[str]:
    """All but those of the journal, which grows."""
    return frozenset(str(path) for path in folder.rglob("*") if not path.name.startswith("journal.sqlite"))


def grow(updates: int) -> None:
    """A day's updates; AssertionError when something is left of them."""
    me, first = psutil.Process().pid, max(16, updates // 10)  # by then caches are as full as they get
    with rig(Scenario()) as made, agent(made.root, 20, look_seconds=1.0) as pid:
        print(f"{updates} updates of {len(made.uuids)} guests on the fake, on {how_busy()}", flush=True)
        for number in range(updates + 1):
            if number == first:
                forget_caches()
                there, begun, own = files(made.root), Taken.by(pid), Taken.by(me)
            if number % max(1, updates // 10) == 0:
                print(f"  after {number:4} updates, the agent: {Taken.by(pid)}", flush=True)
                print(f"                      the updater: {Taken.by(me)}", flush=True)
            once(made, number)
            scrapes(made.root)
        forget_caches()
        for who, before, after in (("agent", begun, Taken.by(pid)), ("updater", own, Taken.by(me))):
            assert after.files <= before.files, (who, before, after)
            assert after.threads <= before.threads, (who, before, after)
            assert (after.own - before.own) / MIB < GROWN_MIB, (who, before, after)
        left = files(made.root) - there
        assert not left, sorted(left)
        print(f"  nothing is left of {updates} updates but rows: {share(begun, Taken.by(pid)):.1f} % of a processor")


def main() -> int:
    given = [*sys.argv[1:], *[""] * 3]
    guests, seconds, updates = int(given[0] or GUESTS), float(given[1] or SECONDS), int(given[2] or UPDATES)
    with tempfile.TemporaryDirectory(prefix="load", dir="/dev/shm") as folder:
        if guests:
            measure(Path(folder), guests, seconds)
    if updates:
        grow(updates)
    return 0


if __name__ == "__main__":
    sys.exit(main())
