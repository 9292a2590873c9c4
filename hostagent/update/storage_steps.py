"""The steps of a live migration that copies disks: their images on the peer are made, and go when nobody needs them.

libvirt copies into what is there under the name, whatever it is. So each image is made by a call that fails when there
is something already, and is noted as ours before anything is put in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hostagent.durable import fsync
from hostagent.errors import Failed, HostagentError
from hostagent.facts import Disk, Guest, Peer
from hostagent.planning.storage_checks import disks_to_copy
from hostagent.update.copied_disks import CopiedDisk, as_it_is, as_it_was_left, why_not_onto
from hostagent.update.guest_migration import GuestMigration


def copies_of(swap: GuestMigration, guest: Guest, peer: Peer, disks: Sequence[Disk]) -> tuple[CopiedDisk, ...]:
    """The disks that are copied, as they are now."""
    try:
        return tuple(as_it_is(disk) for disk in disks_to_copy(guest, peer, disks))
    except OSError as error:
        raise Failed(f"{swap.name}: preparing its migration", found=str(error), hint="plan again") from error


# -- on the peer --------------------------------------------------------------------------------------------------


def place(swap: GuestMigration) -> None:
    """Make an image for each disk, where there is nothing."""
    peer = swap.host(swap.peer)
    for disk in swap.notes.copies:
        if disk.path in swap.notes.made:
            continue
        peer.make_image(disk.image)
        try:
            swap.note(made=(*swap.notes.made, disk.path))
        except HostagentError:  # nobody would know later that it is ours
            with suppress(HostagentError):
                peer.remove_image(disk.image.path)
            raise


def is_placed(swap: GuestMigration) -> bool:
    peer = swap.host(swap.peer)
    for disk in swap.notes.copies:
        found = peer.image(Path(disk.path))
        if disk.path not in swap.notes.made or found is None or not found.is_like(disk.image):
            return False
    return True


def displace(swap: GuestMigration) -> None:
    """Take away what was made, for a guest that has not left."""
    if swap.saved is None:
        return
    notes, peer = swap.notes, swap.host(swap.peer)
    paths = [disk.path for disk in notes.copies]
    try:
        if swap.peer in swap.silent:
            raise Failed(f"asking {swap.peer}", found="it does not answer")
        swap.remove_copies()
        unsure = [path for path in paths if path not in notes.made and peer.image(Path(path)) is not None]
    except HostagentError as error:
        if paths:
            left = f"copies of its disks may be left on {swap.peer}, which are of no use: {', '.join(paths)}"
            swap.say_undone(f"{left} ({error})")
        return
    if unsure:
        swap.say_undone(f"{', '.join(unsure)} on {swap.peer} may have been begun for it: look whose that is")


def clear_peer(swap: GuestMigration) -> None:
    """It is back, with all that it has written on this host's disks: the copies have had their time."""
    for disk in swap.notes.copies:
        fsync(Path(disk.path))
    swap.remove_copies()
    swap.tell_left_disks("", [])
    swap.cleared = True


def is_clear(swap: GuestMigration) -> bool:
    """In each process anew: that tells what is left."""
    return swap.cleared


# -- on this host -------------------------------------------------------------------------------------------------


def note_as_left(swap: GuestMigration) -> None:
    """Before it comes back, what it comes back onto must be as it is now."""
    if swap.notes.copies and not swap.notes.left:
        with suppress(OSError):
            swap.note_if_possible(left=tuple(as_it_was_left(disk) for disk in swap.notes.copies))


def begin_overwriting(swap: GuestMigration) -> None:
    """From here on its files here are neither what it left nor what it has; Failed unless they are its own."""
    notes = swap.notes
    if not notes.copies:
        return
    paths = {disk.path for disk in notes.copies}
    found = [why_not_onto(disk, notes.left, begun=notes.overwriting) for disk in notes.copies]
    found += [
        f"{path} is used by {guest.name}"
        for guest in swap.ports.libvirt.host().guests
        if guest.uuid != swap.uuid
        for path in sorted(paths.intersection(guest.definition.host_files))
    ]
    if why := [reason for reason in found if reason]:
        doing = f"{swap.name}: copying its disks back"
        raise Failed(doing, expected="the files that it left, as it left them", found="; ".join(why))
    if not notes.overwriting:
        swap.note(overwriting=True)
