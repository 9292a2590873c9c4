"""Whether a guest's RAM is to be copied into a file, and what is against that; pure."""

from hostagent.arguments.command_line import judged
from hostagent.facts import Guest, Host
from hostagent.plan import Blocker, Reason

_MIB = 2**20
_HEAP = 256 * _MIB  # what a second QEMU takes beside its guest's RAM, generously


def ram_to_copy(guest: Guest) -> int:
    """Bytes of RAM that no other process can map; 0 for a guest whose RAM is in files."""
    return judged(guest.arguments).nameless_bytes if guest.process else 0


def copy_blockers(guest: Guest, ram: int, host: Host, promised: int) -> tuple[Blocker, ...]:
    """What is against a second copy of so many bytes of RAM; `promised` bytes have others of the same update."""
    folder, room = host.memory_backing_dir, host.ram_room
    if room is None or room.filesystem != "tmpfs":
        found = f"{folder} on {room.filesystem or 'nothing known'}" if room else f"no folder {folder}"
        return (Blocker(Reason.RAM_ROOM, "RAM files on a tmpfs", found, "hostagent setup"),)
    blockers: list[Blocker] = []
    if ram > room.unpromised - promised:
        hint = "give it more room (mount -o remount,size=), or update fewer guests at once"
        blockers.append(_no_room(ram, f"on the tmpfs {folder}", room.unpromised - promised, hint))
    if ram + _HEAP > room.available - promised:
        hint = "update fewer guests at once: the first copy is given up as the second takes over"
        blockers.append(_no_room(ram, "of the host's memory", room.available - promised, hint))
    if guest.memory_room is not None and ram + _HEAP > guest.memory_room:
        hint = "raise memory.max of the guest's cgroup, or of one around it, for the update: both copies count there"
        blockers.append(_no_room(ram, "below its cgroup's limit", guest.memory_room, hint))
    return tuple(blockers)


def _no_room(ram: int, where: str, left: int, hint: str) -> Blocker:
    return Blocker(
        Reason.RAM_ROOM,
        f"{ram // _MIB} MiB {where} for a second copy of its RAM",
        f"{max(0, left) // _MIB} MiB",
        hint,
    )
