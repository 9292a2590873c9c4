"""A tap that two QEMUs share for a while is for the guest what it was before, also when the handover is undone."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

import pytest

from hostagent.hypervisor import descriptors
from hostagent.update.journal import Outcome, UpdateRecord
from tests.bench.guest_spec import GuestSpec
from tests.bench.host import Host
from tests.bench.lab import Lab
from tests.bench.peer import Peer
from tests.guests.watched import Watched

SETTLE_SECONDS = 1.5
GUESTS = (
    GuestSpec("merging", 1, 256),
    GuestSpec("not merging", 2, 256, "pc", vcpus=2, mergeable_buffers=False),
)
WAYS = ("up", "undone after the start", "undone after the load", "back")


@dataclass(frozen=True)
class Tap:
    """What a guest's network card has on the host."""

    name: str
    header_length: int
    offloads: int


def tap_of(guest: Watched) -> Tap:
    """As the guest's QEMU holds it open."""
    target = ElementTree.fromstring(guest.domain.XMLDesc()).find("devices/interface/target")
    assert target is not None
    name = target.get("dev", "")
    for fd in range(256):
        try:
            tap = descriptors.copy_descriptor(guest.pid, fd)
        except OSError:
            continue
        try:
            if descriptors.tap_name(tap) == name:
                return Tap(name, descriptors.tap_header_length(tap), descriptors.tap_offloads(tap))
        except OSError:
            continue  # not a tap
        finally:
            os.close(tap)
    raise AssertionError(f"{guest.spec.name}: its QEMU has no {name}")


class CancelAfter:
    """Asks to stop as soon as this step has begun; it is heeded before the next one."""

    def __init__(self, step: str) -> None:
        self.step, self.begun = step, False

    def tell(self, _key: str, step: str, _doing: str) -> None:
        self.begun |= step == self.step

    def cancelled(self) -> bool:
        return self.begun


@dataclass(frozen=True)
class Passage:
    """Both guests through one handover, or most of one."""

    way: str
    update: UpdateRecord
    guests: tuple[Watched, ...]
    before: tuple[Tap, ...]
    after: tuple[Tap, ...]


@pytest.fixture(scope="module")
def guests(host: Host, peer: Peer) -> Iterator[tuple[Watched, ...]]:
    first, second = (Watched(host, peer, spec) for spec in GUESTS)
    with host.guest(first.spec), host.guest(second.spec):
        first.proof.wait_booted()
        second.proof.wait_booted()
        yield first, second


@pytest.fixture(scope="module", params=WAYS)
def passage(guests: tuple[Watched, ...], lab: Lab, request: pytest.FixtureRequest) -> Passage:
    before = tuple(tap_of(guest) for guest in guests)
    for guest in guests:
        guest.forget_gaps()
    update = WAY[request.param](lab)
    time.sleep(SETTLE_SECONDS)
    for guest in guests:
        felt = guest.felt()
        print(f"\n{request.param}, {guest.spec.name}: {felt.lost} of {felt.lost + felt.ticks} packets lost", end="")
    return Passage(request.param, update, guests, before, tuple(tap_of(guest) for guest in guests))


def _undone_after(step: str) -> Callable[[Lab], UpdateRecord]:
    def update(lab: Lab) -> UpdateRecord:
        cancel = CancelAfter(step)
        return lab.update(lab.system, tell=cancel.tell, cancelled=cancel.cancelled)

    return update


WAY: dict[str, Callable[[Lab], UpdateRecord]] = {
    "up": lambda lab: lab.update(lab.newer),
    "undone after the start": _undone_after("start"),
    "undone after the load": _undone_after("switch"),
    "back": lambda lab: lab.update(lab.system),
}


def test_handover_ended_as_meant(passage: Passage) -> None:
    wanted = Outcome.ROLLED_BACK if passage.way.startswith("undone") else Outcome.UPDATED
    assert {guest.outcome for guest in passage.update.guests.values()} == {wanted}


def test_tap_is_as_before(passage: Passage) -> None:
    assert passage.after == passage.before


def test_header_has_the_length_that_the_guest_expects(passage: Passage) -> None:
    """12 bytes with virtio 1, whatever else was agreed upon (virtio specification, 5.1.6)."""
    assert {tap.header_length for tap in passage.after} == {12}


def test_traffic_goes_both_ways_afterwards(passage: Passage) -> None:
    earlier = [guest.proof.report().tcp for guest in passage.guests]
    time.sleep(0.5)
    for guest, before in zip(passage.guests, earlier, strict=True):
        now = guest.proof.check()
        assert now.good
        assert (now.tcp.sent > before.sent, now.tcp.acked > before.acked) == (True, True)


def test_tap_was_not_replaced(passage: Passage) -> None:
    assert [tap.name for tap in passage.after] == [tap.name for tap in passage.before]
