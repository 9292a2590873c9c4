"""Whether a peer sees the files of a guest, or can be given copies of its disks; pure.

Copied is only what somebody asked to have copied, and only into a file that is made for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hostagent.facts import Disk, Guest, Peer
from hostagent.plan import Blocker, Reason

_TABLES = 1 << 20  # what an empty qcow2 has of these, with room to spare; a full one has a thousandth of its size


def file_bytes(disk: Disk) -> int:
    """What a copy of it may take."""
    return disk.size + (disk.size >> 10) + _TABLES


def disks_to_copy(guest: Guest, peer: Peer, disks: Sequence[Disk]) -> tuple[Disk, ...]:
    """Those of the guest that the peer does not see."""
    return tuple(disk for disk in disks if disk.guest == guest.uuid and not peer.shares(disk.path))


def storage_blockers(guest: Guest, peer: Peer, disks: Sequence[Disk] | None, promised: int) -> tuple[Blocker, ...]:
    """Every reason of its files why it cannot go there.

    disks: as they are, of it and of others; None: nothing is copied. promised: bytes that copies of others will take.
    """
    unseen = [path for path in guest.definition.host_files if not peer.shares(path)]
    if disks is None:
        return tuple(_not_shared(path, peer, "shared of its [[peer]], if it is; or --copy-storage") for path in unseen)
    copied = disks_to_copy(guest, peer, disks)
    known = {disk.path for disk in copied}
    others = tuple(_not_shared(path, peer, "shared of its [[peer]], if it is") for path in unseen if path not in known)
    faults = tuple(_faulty(disk, peer) for disk in copied if disk.fault)
    if others or faults or not copied:
        return others + faults
    return tuple(_against(copied, peer, promised))


def _not_shared(path: str, peer: Peer, hint: str) -> Blocker:
    found = ", ".join(peer.shared) or "none"
    return Blocker(Reason.STORAGE, f"{path} in a directory that is shared with {peer.name}", f"shared = {found}", hint)


def _faulty(disk: Disk, peer: Peer) -> Blocker:
    expected = f"{disk.path} to be a disk that can be copied to {peer.name}"
    return Blocker(Reason.STORAGE, expected, disk.fault, "docs/migration.md")


def _against(copied: Sequence[Disk], peer: Peer, promised: int) -> Iterator[Blocker]:
    if peer.tunnelled:
        expected = f"a transport to {peer.name} by which QEMU copies disks"
        yield Blocker(Reason.STORAGE, expected, "ssh", 'transport = "tls"')
        return
    places = {place.path: place for place in peer.places}
    needs = promised + sum(map(file_bytes, copied))
    for disk in copied:
        place = places.get(disk.path)
        if place is None or place.fault:
            found = place.fault if place is not None else "it was not asked"
            yield Blocker(Reason.STORAGE, f"a place for {disk.path} on {peer.name}", found, f"make it on {peer.name}")
        elif place.taken:
            expected = f"nothing at {disk.path} on {peer.name}: no file is written over"
            yield Blocker(Reason.STORAGE, expected, place.taken, "look whose it is; if it is nobody's, move it away")
        elif needs > place.room:
            expected = f"{needs >> 20} MiB for disks on {peer.name}, at {disk.path}"
            yield Blocker(Reason.STORAGE, expected, f"{place.room >> 20} MiB")
