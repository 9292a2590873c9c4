"""What the agent takes on a host with many small guests: python -m tests.bench.load_real [GUESTS [SECONDS [UPDATES]]]

At rest for so many seconds, with a look at the host each minute; while all guests are updated at once; and then over
so many updates of one guest, there and back, of which nothing may be left behind: no file, no descriptor, no thread, no
memory. Inside the bench.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from hostagent import wiring
from hostagent.facts import QemuTree
from hostagent.update.journal import Outcome
from tests.bench.command import hostagent
from tests.bench.cost import MIB, Taken, how_busy, over, share, wait
from tests.bench.guest_spec import GuestSpec
from tests.bench.host import Host
from tests.bench.lab import Lab

GUESTS, SECONDS, UPDATES = 20, 300.0, 50
PAUSE_SECONDS = 1.5  # after an update: the agent looks a second after an event
GROWN_MIB = 4.0  # that is no growth yet: what Python keeps for later
_FOLDERS = ("/run/libvirt", "/run/hostagent", "/var/lib/hostagent", "/var/lib/libvirt", "/etc/libvirt", "/tmp")


@contextmanager
def agent(log: Path) -> Iterator[int]:
    """The service with the lab's settings, as systemd starts it; its pid."""
    with log.open("w") as said:
        process = psutil.Popen([sys.executable, "-m", "hostagent.cli", "agent"], stdout=said, stderr=said)
    try:
        wait(lambda: "event=ready" in log.read_text(), "the agent to be ready")
        yield process.pid
    finally:
        process.terminate()
        process.wait(60)


def files() -> frozenset[str]:
    """What there is in folders that updates write to, but for the journal's own, which come and go."""
    found = (path for folder in _FOLDERS for path in Path(folder).rglob("*"))
    return frozenset(str(path) for path in found if not path.name.startswith("journal.sqlite"))


def looks_cost(lab: Lab) -> None:
    """What a look costs, here: the first one, and later ones."""
    looks = wiring.Looks(lab.config)
    for name in ("the first look", "the second", "the third"):
        began, processor = time.perf_counter(), time.process_time()
        looks.look()
        took, own = time.perf_counter() - began, time.process_time() - processor
        print(f"  {name:<28}{own * 1000:8.1f} ms of a processor, {took * 1000:.0f} ms", flush=True)


def update(lab: Lab, to: QemuTree, names: list[str] | None) -> None:
    for record in lab.update(to, names, budget_seconds=120.0).guests.values():
        assert record.outcome is Outcome.UPDATED, record


def grow(lab: Lab, pid: int, name: str, updates: int) -> None:
    """Update a guest again and again, as a person does; AssertionError when something is left of it."""

    def once(number: int) -> None:
        to = (lab.newer, lab.system)[number % 2].name
        run = hostagent("update", "qemu", "--to", to, "--guest", name, "--budget", "2m", "--yes")
        assert run.returncode == 0, run
        time.sleep(PAUSE_SECONDS)

    for number in range(4):  # what is made once is made now
        once(number)
    there, begun = files(), Taken.by(pid)
    for number in range(updates):
        once(number)
        if number % 10 == 9:
            print(f"  after {number + 1:3} updates, the agent: {Taken.by(pid)}", flush=True)
    time.sleep(5)
    after = Taken.by(pid)
    assert after.files <= begun.files, (begun, after)
    assert after.threads <= begun.threads, (begun, after)
    assert (after.own - begun.own) / MIB < GROWN_MIB, (begun, after)
    left = files() - there
    assert not left, sorted(left)


def main() -> int:
    given = [*sys.argv[1:], *[""] * 3]
    guests, seconds, updates = int(given[0] or GUESTS), float(given[1] or SECONDS), int(given[2] or UPDATES)
    specs = [GuestSpec(f"web{n}", index=n, memory_mib=128, pace=20) for n in range(1, guests + 1)]
    with Host() as host, tempfile.TemporaryDirectory(prefix="load") as folder:
        lab = Lab.set_up()
        print(f"{guests} guests of {specs[0].memory_mib} MiB on {how_busy()}", flush=True)
        for spec in specs:
            host.boot(spec)
        looks_cost(lab)
        log = Path(folder) / "agent.log"
        with agent(log) as pid:
            over(pid, 20.0)  # its first look, and what it learns once
            taken, now = over(pid, max(1.0, seconds))
            print(f"  at rest for {seconds:.0f} s           {taken:8.3f} % of a processor; {now}", flush=True)
            before, begun = Taken.by(pid), time.monotonic()
            update(lab, lab.newer, None)
            after, took = Taken.by(pid), time.monotonic() - begun
            print(f"  while all are updated ({took:.0f} s)   {share(before, after):8.3f} %; {after}", flush=True)
            update(lab, lab.system, None)
            if updates:
                grow(lab, pid, specs[0].name, updates)
                print(f"  nothing is left of {updates} updates", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
