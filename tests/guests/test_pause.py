"""The pause that is reported is the one that the guest lived through."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.bench.guest_spec import GuestSpec
from tests.bench.host import Host
from tests.bench.lab import Lab
from tests.bench.peer import Felt, Peer
from tests.guests.watched import Watched

TICK_NS = 10_000_000
IDLE_SECONDS = 3
SETTLE_SECONDS = 1.5
"""The guest's clock is compared over a second on either side of the pause."""


@dataclass(frozen=True)
class Passage:
    """One handover, and the same guest just before it."""

    idle: Felt
    felt: Felt
    pause_seconds: float
    source: str


@pytest.fixture(scope="module")
def guest(host: Host, peer: Peer) -> Iterator[Watched]:
    guest = Watched(host, peer, GuestSpec("pause", fill_mib=64))
    with host.guest(guest.spec):
        guest.proof.wait_booted()
        yield guest


@pytest.fixture(scope="module", params=["up", "back"])
def passage(guest: Watched, lab: Lab, request: pytest.FixtureRequest) -> Passage:
    guest.forget_gaps()
    time.sleep(IDLE_SECONDS)
    idle = guest.felt()
    guest.forget_gaps()
    update = lab.update(lab.newer if request.param == "up" else lab.system)
    time.sleep(SETTLE_SECONDS)
    felt = guest.felt()
    measured = update.guests[guest.spec.uuid].measured
    passage = Passage(idle, felt, float(str(measured["pause_seconds"])), str(measured["pause_source"]))
    print(
        f"\n{request.param}: pause {passage.pause_seconds * 1000:.1f} ms, felt {felt.stood_still_ns / 1e6:.1f} ms,"
        f" longest gap {felt.longest_ns / 1e6:.1f} ms, idle p99 {idle.p99_ns / 1e6:.1f} ms"
    )
    return passage


def test_reported_pause_is_the_one_that_was_felt(passage: Passage) -> None:
    """Within two ticks, which is how finely the guest looks, and what it also feels when nothing happens."""
    apart = abs(passage.pause_seconds * 1e9 - passage.felt.stood_still_ns)
    assert apart <= 2 * TICK_NS + passage.idle.p99_ns


def test_pause_is_measured_by_qemu(passage: Passage) -> None:
    assert passage.source == "qemu"


def test_pause_was_felt_once(passage: Passage) -> None:
    """The idle guest feels none: what is measured is the pause, and not the machine's other work."""
    assert passage.felt.stood_still_ns > passage.idle.stood_still_ns
    assert passage.felt.longest_ns >= passage.felt.stood_still_ns
