"""Guests as people have them: RAM that no other process can map is copied into a file while they run, and kept then.

Six guests of mixed kinds go through one update together, up and back; two of them have NUMA nodes, and memory that is
plugged in before each. A large one is moved while it writes to its
RAM all the time, and one that writes faster than anybody copies is left alone.

These guests are emulated. QEMU 7.2 does not know all that an emulated guest writes (update/copying.py), so that it
stands still for what it wrote meanwhile; from 10.0 on it runs until next to nothing is left, as under KVM.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import libvirt
import pytest

from hostagent.facts import RamBacking
from hostagent.hypervisor.domain_xml import live_differences, read_definition
from hostagent.libvirt_files.memory_backing import with_shared_ram
from hostagent.plan import Method
from hostagent.update import copying
from hostagent.update.journal import Outcome, UpdateRecord
from hostagent.update.order import UpdateOrder
from tests.bench.guest_spec import GuestSpec, Ram
from tests.bench.host import Host
from tests.bench.lab import Lab
from tests.bench.peer import Peer
from tests.guests.plugged import plug_memory
from tests.guests.trips import Leg, Trip, print_figures, travel
from tests.guests.watched import LIMIT, Watched, is_of, leavings

WAYS = ("up", "back")
GUESTS = (
    GuestSpec("files", 1, vcpus=2, numa_nodes=2, memory_slots=2, fill_mib=200, seed=21, screen="vga"),
    GuestSpec("files on pc", 2, 256, "pc", transient=True, fill_mib=100, seed=22, screen="cirrus"),
    GuestSpec(
        "ordinary", 3, vcpus=1, vcpus_later=3, numa_nodes=2, memory_slots=2, ram=Ram.ANONYMOUS, fill_mib=200, seed=23
    ),
    GuestSpec("ordinary & paused, on <pc>", 4, 256, "pc", vcpus=2, ram=Ram.ANONYMOUS, fill_mib=100, seed=24),
    GuestSpec("mémfd", 5, 256, vcpus=2, ram=Ram.MEMFD, mergeable_buffers=False, fill_mib=100, seed=25),
    GuestSpec("memfd on pc", 6, 256, "pc", transient=True, ram=Ram.MEMFD, fill_mib=100, seed=26),
)
PAUSED = {"up": {4}, "back": {5}}
DIMM_MIB, MORE_MIB = 128, 256  # plugged in before the way up, and before the way back
SHARED = RamBacking.SHARED_FILE


@pytest.fixture(scope="module")
def trip(host: Host, peer: Peer, lab: Lab) -> Iterator[Trip]:
    with ExitStack() as stack:
        guests = [Watched(host, peer, spec) for spec in GUESTS]
        for guest in guests:
            stack.enter_context(host.guest(guest.spec))
        for guest in guests:
            guest.proof.wait_booted()
        with_slots = [guest for guest in guests if guest.spec.memory_slots]
        trip = Trip({}, {}, {})
        for guest in with_slots:
            plug_memory(guest, DIMM_MIB, node=1)
            guest.proof.fill(guest.spec.fill_mib, guest.spec.seed)  # what is plugged in is used first
            if guest.spec.vcpus_later:
                guest.domain.setVcpusFlags(guest.spec.vcpus + 2, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        travel(trip, "up", lab.newer, guests, lab, PAUSED["up"])
        for guest in with_slots:
            plug_memory(guest, MORE_MIB, node=0)
        travel(trip, "back", lab.system, guests, lab, PAUSED["back"])
        print_figures(trip)
        yield trip


@pytest.fixture(params=[(way, spec) for way in WAYS for spec in GUESTS], ids=lambda at: f"{at[0]}-{at[1].name}")
def leg(trip: Trip, request: pytest.FixtureRequest) -> Leg:
    way, spec = request.param
    return trip.legs[way, spec.index]


def copied(leg: Leg) -> bool:
    """Whether its RAM is to be copied this time."""
    return leg.spec.ram is not Ram.FILE and read_definition(leg.before.live_xml).ram is not SHARED


def test_it_was_updated(leg: Leg) -> None:
    assert (leg.record.outcome, leg.record.reason) == (Outcome.UPDATED, "")
    (old,), (new,) = leg.before.qemus, leg.after.qemus
    assert new != old
    assert is_of(leg.after.exe, leg.to.emulator)


def test_nothing_of_it_was_lost(leg: Leg) -> None:
    assert leg.checked.ram.pages == leg.spec.fill_mib * 256
    assert leg.checked.good
    reports = [look.report for look in (leg.before, leg.after, leg.later) if look.report]
    assert {report.boot_id for report in reports} == {leg.checked.boot_id}
    assert leg.later.console == tuple(range(1, len(leg.later.console) + 1))
    assert len(leg.later.console) > len(leg.before.console)
    assert leg.later.connections == leg.before.connections


def test_ram_is_copied_once_and_kept_from_then_on(leg: Leg) -> None:
    sent, size = leg.record.measured["moved_bytes"], read_definition(leg.before.live_xml).memory
    assert isinstance(sent, int)
    if copied(leg):
        assert sent > leg.spec.fill_mib << 20
        assert leg.before.ram == frozenset()
        assert leg.record.measured["copied_bytes"] >= size  # type: ignore[operator]
    else:
        assert sent < size >> 5
        assert leg.after.ram == leg.before.ram
    assert sum(found for _, _, found in leg.after.ram) == size


def test_libvirt_knows_where_its_ram_is(leg: Leg) -> None:
    assert read_definition(leg.after.live_xml).ram is SHARED
    assert live_differences(with_shared_ram(leg.before.live_xml), leg.after.live_xml) == ()
    assert leg.record.measured["xml_differences"] == []
    if leg.after.persistent_xml:
        assert read_definition(leg.after.persistent_xml).ram is SHARED
        assert live_differences(with_shared_ram(leg.before.persistent_xml), leg.after.persistent_xml) == ()


def test_its_owner_finds_it_as_it_was(leg: Leg) -> None:
    assert leg.after.domain_id == leg.before.domain_id
    (state, reason), before = leg.after.state, leg.before.state
    assert state == before[0]
    if not copied(leg):  # else it stood still with libvirt there, and runs because it was resumed
        assert reason == before[1]


@pytest.mark.parametrize("way", WAYS)
def test_libvirt_s_daemon_was_away_once_for_all(trip: Trip, lab: Lab, way: str) -> None:
    updates = [update for update in lab.updates() if set(update.guests) == {spec.uuid for spec in GUESTS}]
    assert len(updates) == len(WAYS)
    update = updates[WAYS.index(way)]
    assert [step for guest, step, _ in update.step_times if guest == ""] == ["detach", "attach"]
    assert steps_of(update, "copy") == ([3, 4, 5, 6] if way == "up" else [])
    assert methods(update) == [Method.IN_PLACE_COPY if way == "up" and n > 2 else Method.IN_PLACE for n in range(1, 7)]


def steps_of(update: UpdateRecord, wanted: str) -> list[int]:
    indexes = {spec.uuid: spec.index for spec in GUESTS}
    return sorted(indexes[guest] for guest, step, _ in update.step_times if step == wanted)


def methods(update: UpdateRecord) -> list[Method]:
    found = {guest.uuid: guest.method for guest in UpdateOrder.of(update).guests}
    return [found[spec.uuid] for spec in GUESTS]


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_left_on_the_host(trip: Trip, way: str) -> None:
    new_ram = {name for name in trip.left[way] if "/ram/libvirt/qemu/" in name}
    assert trip.left[way] - new_ram == frozenset()
    pieces = ("dimm0", "pc.ram", "pc.ram", "pc.ram", "ram-node0", "ram-node1")
    found = sorted(name.rpartition("/")[2] for name in new_ram if Path(name).is_file())
    assert found == (list(pieces) if way == "up" else [])


def test_plugged_memory_is_in_use(trip: Trip, host: Host) -> None:
    for way in WAYS:
        for index in (1, 3):
            after = trip.legs[way, index].after.live_xml
            sizes = [size.text for size in ElementTree.fromstring(after).iterfind("devices/memory/target/size")]
            plugged = (DIMM_MIB,) if way == "up" else (DIMM_MIB, MORE_MIB)
            assert sizes == [str(mib << 10) for mib in plugged]


# -- a guest that writes ----------------------------------------------------------------------------------------

LARGE = GuestSpec("writes", 7, 2048, "pc-q35-7.2", ram=Ram.ANONYMOUS, fill_mib=1400, seed=27)
FILLED = LARGE.fill_mib << 20
SLOWLY = 150 << 20  # bytes/s
MIB_PER_SECOND = 30


@pytest.fixture(scope="module")
def large(host: Host, peer: Peer, lab: Lab) -> Iterator[Watched]:
    guest = Watched(host, peer, replace(LARGE, emulator=lab.newer.emulator))
    with host.guest(guest.spec):
        guest.proof.wait_booted()
        yield guest


def test_a_guest_that_writes_too_fast_is_left_alone(large: Watched, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word of it in libvirt, and without standing still.

    It is copied slowly: who is faster would otherwise depend on what else the machine does.
    """
    monkeypatch.setattr(copying, "UNLIMITED", SLOWLY)
    large.proof.rewrite(20000)
    before, files = large.look(), leavings()
    record = lab.update(lab.system).guests[LARGE.uuid]
    assert record.outcome is Outcome.ROLLED_BACK
    assert "expected it to write more slowly than is copied" in record.reason
    assert "hostagent guest adopt writes --next-boot" in record.reason
    after = large.look()
    assert "pause_seconds" not in record.measured
    assert (after.qemus, after.live_xml, after.state) == (before.qemus, before.live_xml, before.state)
    assert after.persistent_xml == before.persistent_xml
    assert leavings() == files


def test_a_large_guest_that_writes_all_the_time(large: Watched, lab: Lab) -> None:
    """What it writes while it is copied, and as the rest crosses, is all there; its next update copies nothing."""
    written, ends = large.proof.rewrite(MIB_PER_SECOND).ram.rewritten, time.monotonic() + LIMIT
    for to, method in ((lab.system, Method.IN_PLACE_COPY), (lab.newer, Method.IN_PLACE)):
        update = lab.update(to)
        record = update.guests[LARGE.uuid]
        assert (record.outcome, record.reason) == (Outcome.UPDATED, "")
        assert UpdateOrder.of(update).guests[0].method is method
        sent = record.measured["moved_bytes"]
        assert isinstance(sent, int)
        assert sent > FILLED if method is Method.IN_PLACE_COPY else sent < FILLED >> 7
        wanted = written + (MIB_PER_SECOND << 8)  # more than a second's worth
        while (written := large.proof.report().ram.rewritten) < wanted:
            assert time.monotonic() < ends, f"expected {wanted} writes, found {written}"
    report = large.proof.check()
    assert report.ram.pages == FILLED >> 12
    assert report.good


# -- adopted by itself ------------------------------------------------------------------------------------------


def test_adopted_onto_the_same_qemu_and_from_its_next_boot_on(host: Host, peer: Peer, lab: Lab) -> None:
    spec = GuestSpec("adopted", 8, 256, ram=Ram.MEMFD, fill_mib=64, seed=28)
    guest = Watched(host, peer, spec)
    with host.guest(spec):
        guest.proof.wait_booted()
        before = guest.look()
        record = lab.adopt(spec.name).guests[spec.uuid]
        assert (record.outcome, record.reason) == (Outcome.UPDATED, "")
        after = guest.look()
        assert (after.exe, after.qemus == before.qemus) == (before.exe, False)
        assert len(after.ram) == 1
        assert guest.proof.check().good
        guest.domain.destroy()
        guest.domain.create()
        guest.proof.wait_booted()
        again = guest.look()
        assert len(again.ram) == 1
        assert again.ram != after.ram
        update = lab.update(lab.newer)
        assert UpdateOrder.of(update).guests[0].method is Method.IN_PLACE
        assert update.guests[spec.uuid].outcome is Outcome.UPDATED, update.guests[spec.uuid].reason
