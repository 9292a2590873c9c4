"""Why a guest cannot be held: saved without its RAM and restored; pure.

libvirt makes the arguments anew as it restores a guest, and carries its own settings over, so that some of what a
handover does not take is none of a hold's business. Only what has been tried is let through.
"""

import shlex
from collections.abc import Callable

from hostagent.facts import Guest, GuestState, Host
from hostagent.plan import Blocker, Reason

# Reasons against a handover that are none against a hold.
TAKEN = frozenset({Reason.SPICE, Reason.CHANGED_SINCE_BOOT, Reason.HOST})

Found = Blocker | None


def hook(host: Host) -> Found:
    """Without it libvirt would give a restored guest other RAM, and let others start one that is held."""
    if host.hold_hook:
        return None
    return Blocker(
        Reason.HOST, "hostagent's hook in libvirt", "none of this version", "hostagent setup, then restart libvirtd"
    )


def runs(guest: Guest) -> Found:
    """libvirt forgets who paused a guest that it restores."""
    if guest.state is not GuestState.PAUSED_BY_OWNER:
        return None
    return Blocker(Reason.STATE, "a guest that runs, for a hold", str(guest.state), "virsh resume, for the update")


def persistent(guest: Guest) -> Found:
    """libvirt forgets a transient guest once it is saved, and with it how it ended."""
    if guest.persistent:
        return None
    return Blocker(Reason.STATE, "a persistent guest, for a hold", "a transient one", "virsh define")


def named_ram(guest: Guest) -> Found:
    """RAM that is in no file goes with its QEMU."""
    if guest.ram_files or not guest.state.active:
        return None
    return Blocker(
        Reason.RAM_ORDINARY,
        "RAM in shared files, for a hold",
        "other RAM",
        f"hostagent guest adopt {shlex.quote(guest.name)}",
    )


def generation(guest: Guest) -> Found:
    """libvirt gives a restored guest another one: the guest would think that it was copied."""
    if not guest.definition.generation_id:
        return None
    return Blocker(Reason.FEATURE, "no <genid>, for a hold", "one", "live-migrate or restart the guest")


GUEST_CHECKS: tuple[Callable[[Guest], Found], ...] = (runs, persistent, named_ram, generation)


def hold_blockers(host: Host, guest: Guest, against_handover: tuple[Blocker, ...]) -> tuple[Blocker, ...]:
    """Every reason why the guest cannot be held; `against_handover`: every reason why it cannot be handed over."""
    own = (hook(host), *(check(guest) for check in GUEST_CHECKS))
    shared = [blocker for blocker in against_handover if blocker.reason not in TAKEN]
    return tuple(dict.fromkeys((*shared, *(found for found in own if found is not None))))
