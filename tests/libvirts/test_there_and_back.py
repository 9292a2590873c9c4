"""Guests of another libvirt, or of its modular daemon, move from QEMU 7.2 to 10.0 and back; each way is rehearsed.

One has its RAM in a file, the other has ordinary RAM. What is promised beyond that is tested with Debian 12's own
libvirt (tests/guests). Run in the bench with `--libvirt` and `--daemon`, together with tests/contract.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest

from hostagent.hypervisor.domain_xml import live_differences
from hostagent.hypervisor.driver_lock import DriverLock
from hostagent.libvirt_files.memory_backing import with_shared_ram
from hostagent.update.journal import Outcome
from tests.bench.guest_spec import HOST_ADDRESS, GuestSpec, Ram
from tests.bench.host import RAM, Host
from tests.bench.lab import Lab
from tests.bench.peer import Peer
from tests.guests.trips import Leg, Trip, print_figures, travel
from tests.guests.watched import Watched, is_of

pytestmark = pytest.mark.skipif("HOSTAGENT_BENCH" not in os.environ, reason="runs inside the bench")

WAYS = ("up", "back")
GUESTS = (
    GuestSpec("its 'RAM' in a file", 1, 256, vcpus=2, placed=True, fill_mib=64, seed=31),
    GuestSpec("ordinary RAM", 2, 256, "pc", ram=Ram.ANONYMOUS, fill_mib=64, seed=32),
)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as host:
        yield host


@pytest.fixture(scope="module")
def lab(host: Host) -> Lab:
    return Lab.set_up(rehearse=True)


@pytest.fixture(scope="module")
def trip(host: Host, lab: Lab) -> Iterator[Trip]:
    with Peer(HOST_ADDRESS) as peer, ExitStack() as stack:
        guests = [Watched(host, peer, spec) for spec in GUESTS]
        for guest in guests:
            stack.enter_context(host.guest(guest.spec))
        for guest in guests:
            guest.proof.wait_booted()
        trip = Trip({}, {}, {})
        for way, to in zip(WAYS, (lab.newer, lab.system), strict=True):
            travel(trip, way, to, guests, lab)
        print_figures(trip)
        yield trip
    assert list((RAM / "libvirt/qemu").iterdir()) == [], "RAM that libvirt was to clear away with its guest"


@pytest.fixture(params=[(way, spec) for way in WAYS for spec in GUESTS], ids=lambda at: f"{at[0]}-{at[1].ram}")
def leg(trip: Trip, request: pytest.FixtureRequest) -> Leg:
    way, spec = request.param
    return trip.legs[way, spec.index]


def test_libvirt_is_the_one_that_was_asked_for(host: Host, lab: Lab) -> None:
    number = host.connection.getLibVersion()
    assert f"{number // 1_000_000}.{number // 1_000 % 1_000}" == os.environ["HOSTAGENT_BENCH_LIBVIRT"]
    pid = DriverLock(lab.config.paths.libvirt_run / "driver.pid").holder()
    assert pid is not None
    assert psutil.Process(pid).name() == os.environ["HOSTAGENT_BENCH_DAEMON"]


def test_it_was_updated(leg: Leg) -> None:
    assert (leg.record.outcome, leg.record.reason) == (Outcome.UPDATED, "")
    assert len(leg.after.qemus) == 1
    assert is_of(leg.after.exe, leg.to.emulator)


def test_nothing_of_it_is_lost(leg: Leg) -> None:
    before, after = leg.before.report, leg.after.report
    assert before is not None and after is not None
    assert leg.checked.boot_id == before.boot_id
    assert leg.checked.good
    assert leg.checked.ram.pages == leg.spec.fill_mib * 256
    assert leg.checked.disk.last > after.disk.last > before.disk.last
    assert (leg.checked.tcp.reconnects, leg.later.connections) == (0, 1)
    first, last = leg.later.console[0], leg.later.console[-1]
    assert leg.later.console == tuple(range(first, last + 1))
    assert last > leg.before.console[-1]


def test_ram_stays_in_its_file(leg: Leg) -> None:
    assert len(leg.after.ram) == 1
    assert leg.before.ram in (leg.after.ram, frozenset())


def test_libvirt_shows_the_same_guest(leg: Leg) -> None:
    assert (leg.after.domain_id, leg.after.state[0]) == (leg.before.domain_id, leg.before.state[0])
    assert live_differences(with_shared_ram(leg.before.live_xml), leg.after.live_xml) == ()
    assert live_differences(with_shared_ram(leg.before.persistent_xml), leg.after.persistent_xml) == ()


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_left_on_the_host(trip: Trip, way: str) -> None:
    ram = str(RAM / "libvirt/qemu")
    assert [name for name in trip.left[way] if not name.startswith(ram)] == []
    assert trip.closed[way]
