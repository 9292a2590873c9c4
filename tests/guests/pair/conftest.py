"""Two guests for everything that is looked at closely; between them they have what handovers treat differently."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.bench.guest_spec import GuestSpec
from tests.bench.host import Host
from tests.bench.lab import Lab
from tests.bench.peer import Peer
from tests.guests.pair import passages
from tests.guests.pair.passages import Crossing
from tests.guests.watched import Watched

PLAIN = GuestSpec("plain", 1, fill_mib=64)
PLACED = GuestSpec("placed", 2, 512, "pc", vcpus=2, placed=True, mergeable_buffers=False, fill_mib=64)


@pytest.fixture(scope="package")
def pair(host: Host, peer: Peer) -> Iterator[tuple[Watched, ...]]:
    plain, placed = (Watched(host, peer, spec) for spec in (PLAIN, PLACED))
    with host.guest(PLAIN), host.guest(PLACED):
        plain.proof.wait_booted()
        placed.proof.wait_booted()
        set_apart(placed.pid)
        yield plain, placed


def set_apart(pid: int) -> None:
    """Give a process what no process has by itself: what is equal by default proves nothing."""
    folder = Path("/proc") / str(pid)
    (folder / "oom_score_adj").write_text("17")
    (folder / "coredump_filter").write_text("0x31")
    for thread in (int(task.name) for task in (folder / "task").iterdir()):
        with suppress(ProcessLookupError, FileNotFoundError):  # a worker that has ended since
            os.setpriority(os.PRIO_PROCESS, thread, -1)
            if (folder / "task" / str(thread) / "comm").read_text().startswith("IO iothread1"):
                os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))


@pytest.fixture(scope="package")
def crossings(pair: tuple[Watched, ...], lab: Lab) -> dict[tuple[str, str], Crossing]:
    found = {
        (way, crossing.guest.spec.name): crossing
        for way in passages.UPDATES
        for crossing in passages.make(way, lab, pair)
    }
    print_figures(found)
    return found


def print_figures(crossings: dict[tuple[str, str], Crossing]) -> None:
    print(f"\n{'guest':8}{'handover':20}pause ms  felt ms  longest gap ms  idle p99 ms  packets lost")
    for (way, name), crossing in crossings.items():
        felt, pause = crossing.felt, crossing.record.measured.get("pause_seconds")
        print(
            f"{name:8}{way:20}"
            + ("        " if pause is None else f"{pause * 1000:8.1f}")
            + f"{felt.stood_still_ns / 1e6:9.1f} {felt.longest_ns / 1e6:15.1f} {crossing.idle.p99_ns / 1e6:12.1f}"
            + f"{felt.lost:7} of {felt.ticks + felt.lost}"
        )


def _each(*ways: str) -> list[tuple[str, str]]:
    return [(way, spec.name) for way in ways for spec in (PLAIN, PLACED)]


@pytest.fixture(params=_each(*passages.UPDATES), ids="-".join)
def crossing(crossings: dict[tuple[str, str], Crossing], request: pytest.FixtureRequest) -> Crossing:
    """Each guest in each handover."""
    return crossings[request.param]


@pytest.fixture(params=_each("up", "undone-loaded", "back"), ids="-".join)
def stopped(crossings: dict[tuple[str, str], Crossing], request: pytest.FixtureRequest) -> Crossing:
    """Only those handovers in which the guest stood still."""
    return crossings[request.param]
