"""Guests whose RAM has no name: how they are planned, and what room a second copy needs."""

import pytest
import sampled
from sampled import TREE, guest, host, within

from hostagent.facts import QemuTree, RamRoom, Version
from hostagent.plan import Method, Reason, Verdict
from hostagent.planning.planner import plan_qemu

NEW = QemuTree("10.0", Version(10, 0, 2), "1:10.0.2", "/opt/qemu-system-x86_64")
SIZE = 256 << 20
PLENTY = 64 << 30


def reasons(room: RamRoom | None, **changed: object) -> list[tuple[Reason, str, str]]:
    plan = plan_qemu(host(guests=(guest("anonymous", **changed),), ram_room=room), NEW, None, policies=within(30.0))
    return [(item.reason, item.expected, item.found) for item in plan.guests[0].blockers]


@pytest.mark.parametrize("name", ["anonymous", "memfd"])
def test_it_is_copied_once(name: str) -> None:
    (planned,) = plan_qemu(host(guests=(guest(name),)), NEW, None, policies=within(30.0)).guests
    assert (planned.verdict, planned.method, planned.copied_bytes) == (Verdict.UPDATE, Method.IN_PLACE_COPY, SIZE)


def test_ram_in_files_is_kept() -> None:
    (planned,) = plan_qemu(host(), NEW, None, policies=within(30.0)).guests
    assert (planned.method, planned.copied_bytes) == (Method.IN_PLACE, 0)


def test_room_is_for_each_guest_after_the_other() -> None:
    guests = (guest("anonymous"), guest("memfd"))
    room = RamRoom("tmpfs", unpromised=SIZE + (8 << 20), available=PLENTY)
    first, second = plan_qemu(host(guests=guests, ram_room=room), NEW, None, policies=within(30.0)).guests
    assert (first.verdict, second.verdict) == (Verdict.UPDATE, Verdict.BLOCKED)
    (blocker,) = second.blockers
    assert (blocker.reason, blocker.found) == (Reason.RAM_ROOM, "8 MiB")
    assert blocker.expected == "256 MiB on the tmpfs /var/lib/libvirt/qemu/ram for a second copy of its RAM"


def test_the_host_s_memory_is_looked_at() -> None:
    assert reasons(RamRoom("tmpfs", PLENTY, available=SIZE)) == [
        (Reason.RAM_ROOM, "256 MiB of the host's memory for a second copy of its RAM", "256 MiB")
    ]


def test_both_copies_count_in_its_cgroup() -> None:
    assert reasons(RamRoom("tmpfs", PLENTY, PLENTY), memory_room=SIZE) == [
        (Reason.RAM_ROOM, "256 MiB below its cgroup's limit for a second copy of its RAM", "256 MiB")
    ]
    assert reasons(RamRoom("tmpfs", PLENTY, PLENTY), memory_room=4 * SIZE) == []


def test_a_disk_is_no_place_for_ram() -> None:
    expected = (Reason.RAM_ROOM, "RAM files on a tmpfs")
    assert reasons(RamRoom("ext4", PLENTY, PLENTY)) == [(*expected, "/var/lib/libvirt/qemu/ram on ext4")]
    assert reasons(None) == [(*expected, "no folder /var/lib/libvirt/qemu/ram")]


def test_one_that_is_there_already_needs_no_room() -> None:
    (planned,) = plan_qemu(
        host(guests=(guest("anonymous", qemu=TREE),), ram_room=None), sampled.TREE, None, policies=within(30.0)
    ).guests
    assert planned.verdict is Verdict.UP_TO_DATE
