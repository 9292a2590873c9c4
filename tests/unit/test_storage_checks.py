"""Where disks would be copied to, and why not."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampled import guest

from hostagent.facts import Disk, Guest, Peer, Place
from hostagent.plan import Reason
from hostagent.planning.storage_checks import disks_to_copy, file_bytes, storage_blockers

PLAIN = guest("q35-plain")
DISK_PATH = "/srv/own/1.qcow2"
IMAGES = "/var/lib/libvirt/images"
MIB = 1 << 20


def with_files(*paths: str) -> Guest:
    return dataclasses.replace(PLAIN, definition=dataclasses.replace(PLAIN.definition, host_files=paths))


ONE = with_files(f"{IMAGES}/vmlinuz", DISK_PATH)
DISK = Disk(ONE.uuid, "vda", DISK_PATH, "qcow2", 64 * MIB)


def peer(**changed: Any) -> Peer:
    here = Peer("b", "qemu+tls://b/system", shared=(IMAGES,), places=(Place(DISK_PATH, 1 << 40),))
    return dataclasses.replace(here, **changed)


def test_a_disk_goes_where_there_is_room_and_nothing_else() -> None:
    assert storage_blockers(ONE, peer(), (DISK,), 0) == ()
    assert disks_to_copy(ONE, peer(), (DISK, dataclasses.replace(DISK, guest="another"))) == (DISK,)


def test_nothing_is_copied_that_nobody_asked_for() -> None:
    (blocker,) = storage_blockers(ONE, peer(), None, 0)
    assert (blocker.reason, blocker.found) == (Reason.STORAGE, f"shared = {IMAGES}")
    assert "--copy-storage" in blocker.hint


def test_what_is_shared_is_not_copied() -> None:
    everywhere = peer(shared=(IMAGES, "/srv"), places=())
    assert storage_blockers(ONE, everywhere, (DISK,), 0) == ()
    assert disks_to_copy(ONE, everywhere, (DISK,)) == ()


def test_what_is_no_disk_has_to_be_shared() -> None:
    one = with_files("/boot/kernel", DISK_PATH)
    (blocker,) = storage_blockers(one, peer(), (DISK,), 0)
    assert "/boot/kernel" in blocker.expected
    assert "--copy-storage" not in blocker.hint


@pytest.mark.parametrize(
    ("place", "found"),
    [
        (Place(DISK_PATH, fault="cannot open directory '/srv/own'"), "cannot open directory"),
        (Place("/another", 1 << 40), "it was not asked"),
        (Place(DISK_PATH, 1 << 40, taken="qcow2 of 64 MiB"), "qcow2 of 64 MiB"),
        (Place(DISK_PATH, 64 * MIB), "64 MiB"),
    ],
)
def test_what_a_place_may_lack(place: Place, found: str) -> None:
    (blocker,) = storage_blockers(ONE, peer(places=(place,)), (DISK,), 0)
    assert blocker.reason is Reason.STORAGE
    assert found in blocker.found
    assert DISK_PATH in blocker.expected


def test_a_disk_that_cannot_be_copied_says_why() -> None:
    (blocker,) = storage_blockers(ONE, peer(), (dataclasses.replace(DISK, fault="a cdrom"),), 0)
    assert blocker.found == "a cdrom"


def test_inside_of_the_libvirts_connection_nothing_is_copied() -> None:
    (blocker,) = storage_blockers(ONE, peer(tunnelled=True), (DISK,), 0)
    assert (blocker.found, blocker.hint) == ("ssh", 'transport = "tls"')
    assert storage_blockers(ONE, peer(tunnelled=True, shared=("/",)), (DISK,), 0) == ()


def test_those_who_go_first_take_room() -> None:
    room = 2 * file_bytes(DISK)
    tight = peer(places=(Place(DISK_PATH, room),))
    assert storage_blockers(ONE, tight, (DISK,), file_bytes(DISK)) == ()
    (blocker,) = storage_blockers(ONE, tight, (DISK,), file_bytes(DISK) + 1)
    assert blocker.found == f"{room >> 20} MiB"


@given(size=st.integers(0, 1 << 45))
def test_a_full_image_fits_where_it_was_let_in(size: int) -> None:
    """A qcow2 of clusters of 64 KiB has 8 bytes of tables and 2 of counts for each, and a header."""
    full = size + 10 * (size >> 16) + 8 * (1 << 16)
    assert file_bytes(dataclasses.replace(DISK, size=size)) >= full
