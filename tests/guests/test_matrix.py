"""Guests of many shapes move from QEMU 7.2 to 10.0 and back, together, and prove that nothing of them was lost.

Between them, and with those of the other files, they cover the pairs of RAM size, machine, vCPUs, kind of definition
and kind of receive buffers; some are paused by their owner in one of the updates. Each has a qcow2 disk under constant
fsynced writes, a connection to the host over a bridge with traffic both ways, and a serial console through virtlogd.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack

import libvirt
import pytest

from hostagent.hypervisor.domain_xml import live_differences
from hostagent.update.journal import Outcome
from tests.bench.guest_spec import GuestSpec
from tests.bench.host import Host
from tests.bench.lab import Lab
from tests.bench.peer import Peer
from tests.guests.trips import Leg, Trip, print_figures, travel
from tests.guests.watched import Watched, is_of

WAYS = ("up", "back")
GUESTS = (
    GuestSpec("four", 1, 4096, "q35", vcpus=2, fill_mib=3700, seed=11),
    GuestSpec("four on pc", 2, 4096, "pc", transient=True, mergeable_buffers=False, fill_mib=64, seed=12),
    GuestSpec("two 'quoted' \"twice\".x", 3, 2048, "pc", vcpus=2, transient=True, fill_mib=1700, seed=13),
    GuestSpec("büro-zürich 事務所", 4, 512, "q35", mergeable_buffers=False, fill_mib=300, seed=14),
    GuestSpec("half & <less>, please", 5, 512, "pc", vcpus=2, transient=True, fill_mib=300, seed=15),
)
PAUSED = {"up": {3, 4}, "back": {1, 5}}
"""Which guests their owner has paused while they are moved, by index."""
BOOT_SECONDS = 300
"""Filling the RAM is most of it."""


@pytest.fixture(scope="module")
def trip(host: Host, peer: Peer, lab: Lab) -> Iterator[Trip]:
    with ExitStack() as stack:
        guests = [Watched(host, peer, spec) for spec in GUESTS]
        for guest in guests:
            domain = stack.enter_context(host.guest(guest.spec))
            allocate_ram(host, domain)
        # The small ones are ready long before the large ones: they stand still until all are.
        for guest in sorted(guests, key=lambda guest: guest.spec.fill_mib):
            guest.proof.wait_booted(BOOT_SECONDS)
            guest.domain.suspend()
        for guest in guests:
            guest.domain.resume()
        guests[0].domain.setAutostart(True)
        trip = Trip({}, {}, {})
        for way, to in zip(WAYS, (lab.newer, lab.system), strict=True):
            travel(trip, way, to, guests, lab, PAUSED[way])
        print_figures(trip)
        yield trip


def allocate_ram(host: Host, domain: libvirt.virDomain) -> None:
    """The tmpfs is quicker with all pages at once than with one at a time, as the guest fills its RAM."""
    for path in host.ram_files(domain):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)


@pytest.fixture(params=[(way, spec) for way in WAYS for spec in GUESTS], ids=lambda at: f"{at[0]}-{at[1].index}")
def leg(trip: Trip, request: pytest.FixtureRequest) -> Leg:
    way, spec = request.param
    return trip.legs[way, spec.index]


@pytest.fixture(params=WAYS)
def way(trip: Trip, request: pytest.FixtureRequest) -> str:
    return request.param


def test_guest_was_updated(leg: Leg) -> None:
    assert (leg.record.outcome, leg.record.reason) == (Outcome.UPDATED, "")


def test_exactly_one_qemu_runs_it_and_it_is_the_new_one(leg: Leg) -> None:
    (old,), (new,) = leg.before.qemus, leg.after.qemus
    assert new != old
    assert is_of(leg.after.exe, leg.to.emulator)
    assert not is_of(leg.before.exe, leg.to.emulator)


def test_it_is_the_same_boot(leg: Leg) -> None:
    reports = [look.report for look in (leg.before, leg.after, leg.later) if look.report]
    assert {report.boot_id for report in reports} == {leg.checked.boot_id}
    assert [report.monotonic_ns for report in reports] == sorted(report.monotonic_ns for report in reports)


def test_every_page_is_right(leg: Leg) -> None:
    assert leg.checked.ram.pages == leg.spec.fill_mib * 256
    assert leg.checked.ram.good


def test_ram_is_the_file_from_before(leg: Leg) -> None:
    ((_, _, size),) = leg.before.ram
    assert size == leg.spec.memory_mib << 20
    assert leg.after.ram == leg.later.ram == leg.before.ram


def test_ram_was_not_sent(leg: Leg) -> None:
    assert leg.record.measured["moved_bytes"] < leg.spec.memory_mib << 20 >> 7


def test_disk_log_has_no_gap_and_no_repeat(leg: Leg) -> None:
    assert leg.checked.disk.good
    assert leg.checked.disk.last > leg.before.console[-1] > 0  # five records a console line: it wrote all the time


def test_disk_is_still_written(leg: Leg) -> None:
    assert leg.later.report.disk.last > (leg.after.report or leg.later.report).disk.last - 1
    assert leg.checked.disk.last > leg.later.report.disk.last


def test_connection_is_the_one_from_before(leg: Leg) -> None:
    assert leg.checked.tcp.good  # by the guest, it has connected once
    assert leg.later.connections == leg.before.connections


def test_traffic_goes_both_ways_afterwards(leg: Leg) -> None:
    """What is sent goes out, what is acknowledged came back: all that was on its way as it was looked at, too."""
    assert leg.checked.tcp.sent > leg.later.report.tcp.sent
    assert leg.checked.tcp.acked >= leg.later.report.tcp.sent


def test_console_log_goes_on_without_a_gap(leg: Leg) -> None:
    assert leg.later.console == tuple(range(1, len(leg.later.console) + 1))
    assert leg.later.console[: len(leg.after.console)] == leg.after.console
    assert len(leg.later.console) > len(leg.after.console)
    assert leg.console == tuple(range(1, len(leg.console) + 1))
    assert leg.later.report.console_lines <= len(leg.console) <= leg.checked.console_lines + 1


def test_clock_is_right(leg: Leg) -> None:
    """By the stamps in the guest's ticks, against what was reported and what was promised."""
    measured = leg.record.measured
    if leg.paused:
        assert measured["clock_reason"] == "paused"
        return
    bound = measured["clock_synced_bound_seconds"]
    seen = -leg.later.felt.wall_behind_ns / 1e9
    assert abs(seen - measured["clock_synced_seconds"]) <= bound + 0.010
    if measured["clock_reason"] != "ahead":  # it was before: nobody sets a clock back
        assert measured["clock_outcome"] in {"in-sync", "corrected"}
        assert abs(seen) <= max(0.010, 2 * bound) + bound + 0.010


def test_owner_finds_it_as_it_was_left(leg: Leg) -> None:
    assert leg.after.state == leg.before.state
    paused = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER)
    assert (leg.after.state == paused) is leg.paused


def test_paused_guest_did_not_run(leg: Leg) -> None:
    """By its own clock, which goes on whenever it runs; and nothing was heard of it."""
    if leg.paused:
        assert 0 < leg.ran_ns <= leg.could_run_ns * 1.01
        assert leg.after.felt.ticks == leg.before.felt.ticks


def test_libvirt_shows_the_same_guest(leg: Leg) -> None:
    assert leg.after.domain_id == leg.before.domain_id
    assert leg.after.persistent_xml == leg.before.persistent_xml
    assert leg.after.autostart == leg.before.autostart
    assert live_differences(leg.before.live_xml, leg.after.live_xml) == ()


def test_nothing_is_left_on_the_host(trip: Trip, way: str) -> None:
    assert trip.left[way] == frozenset()


def test_journal_is_closed(trip: Trip, way: str) -> None:
    assert trip.closed[way]
