"""On a new kernel: an update that went over to it with its guests held goes on where the journal says.

Nothing of the old kernel's processes is there any more. Guests' RAM is in files on persistent memory, what was saved of
them on the disk. A host that was restarted in any other way has neither: see KernelComponent, which can tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hostagent.errors import HostagentError
from hostagent.hypervisor import ProcessId
from hostagent.update import files
from hostagent.update.guest_hold import GuestHold, HoldNotes
from hostagent.update.guest_reboot import GuestReboot
from hostagent.update.held import tell_hook
from hostagent.update.host_hold import step_name
from hostagent.update.journal import Entry, Kind, Outcome, UpdateRecord
from hostagent.update.order import UpdateOrder
from hostagent.update.subject import AnyGuest, Pin, Ports

NOBODY = ProcessId(0, 0)
"""No process has that pid: what ran before ended with its kernel."""
_LANDED = "landed"
_BOOTED_AFTER = "booted_after_seconds"


def has_landed(ports: Ports, update: UpdateRecord, boot_id: str) -> bool:
    """Whether this kernel is the one that the update started; its first boot, for guests have run on since then.

    Only once the update had begun to: a kernel that is ready to be started is also what somebody's reboot starts
    (kexec-tools does), and guests that were held or not, or had gone on as before, ended with that. Raises
    NeedsOperator where that cannot be told.
    """
    if update.boot_id == boot_id or update.host_notes.get(_LANDED, boot_id) != boot_id:
        return False
    try:
        swaps = [name for name in UpdateOrder.of(update).swaps if step_name(name) in update.host.open]
    except HostagentError:
        return False  # an order that cannot be read
    return any(ports.components[name].is_for_good() for name in swaps if name in ports.components)


def booted_after(update: UpdateRecord) -> float | None:
    """How long the new kernel's boot took until hostagent ran, seconds; None where none was swapped."""
    found = update.host_notes.get(_BOOTED_AFTER)
    return float(found) if isinstance(found, int | float) else None


def tell_hook_again(ports: Ports, update: UpdateRecord, boot_id: str) -> None:
    """What the hook knew went with the old kernel: before libvirt's daemon starts, which may start guests itself.

    Once: from then on guests are let go of, one by one.
    """
    if _LANDED in update.host_notes:
        return
    keep_others_out(ports, update)
    # The monotonic clock began with the kernel.
    ports.journal.append(update.id, Entry(Kind.NOTED, body={_LANDED: boot_id, _BOOTED_AFTER: ports.monotonic()}))


def keep_others_out(ports: Ports, update: UpdateRecord) -> None:
    """Have libvirt's hook refuse everybody else's start of its held guests."""
    for notes in _held(update):
        tell_hook(notes.held, ports.config.paths.held)


def land(guest: AnyGuest) -> None:
    """What was noted of the guest as it is under this kernel: again as long as its RAM was not in its place."""
    if guest.saved is None:
        return
    if isinstance(guest, GuestHold):
        _land_held(guest)
    elif isinstance(guest, GuestReboot):
        guest.note_if_possible(ended=0.0)  # the monotonic clock began anew


def _land_held(hold: GuestHold) -> None:
    pins = tuple(_pinned(pin) for pin in hold.notes.pins)
    if (hold.notes.old, hold.notes.pins) != (NOBODY, pins):
        hold.note(old=NOBODY, landed=True, pins=pins)


def _held(update: UpdateRecord) -> Iterator[HoldNotes]:
    left = _have_left(update)
    for guest in update.guests.values():
        open_still = guest.uuid not in left and (guest.outcome is None or guest.outcome is Outcome.NEEDS_OPERATOR)
        if open_still and "prepare" in guest.progress.open and (notes := GuestHold.read_notes(guest.notes)) is not None:
            yield notes


def _have_left(update: UpdateRecord) -> frozenset[str]:
    """Guests that were not held: shut down, or on another host. None where the order cannot be read."""
    try:
        guests = UpdateOrder.of(update).guests
    except HostagentError:
        return frozenset()
    return frozenset(guest.uuid for guest in guests if guest.technique is None)


def _pinned(pin: Pin) -> Pin:
    """A device may have another number now; the file is the same by its inode and its size."""
    found = files.identity(pin.link)
    if found is None or (found.inode, found.size) != (pin.inode, pin.size):
        return pin  # it is not there: the restore will say so
    return replace(pin, device=found.device)
