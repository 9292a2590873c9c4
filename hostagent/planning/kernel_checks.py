"""Why the host's kernel cannot be swapped under held guests; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from hostagent.facts import Guest
from hostagent.plan import Blocker, Reason

_HINT = "hostagent setup --kernel-swaps, and reboot the host once"


@dataclass(frozen=True)
class KernelSwap:
    """What of the host decides about it."""

    ram_outlives_in: tuple[str, ...]  # where file systems on persistent memory are mounted, with DAX
    resumes_at_boot: bool  # whether the unit is there that does


def kernel_blockers(swap: KernelSwap) -> tuple[Blocker, ...]:
    """Against it as a whole."""
    if swap.resumes_at_boot:
        return ()
    return (Blocker(Reason.HOST, "a unit that resumes guests as the host boots", "none", _HINT),)


def ram_outlives(guest: Guest, folders: Sequence[str]) -> Blocker | None:
    """RAM in ordinary memory goes with the kernel."""
    gone = [ram.path for ram in guest.ram_files if not any(PurePath(ram.path).is_relative_to(one) for one in folders)]
    if not gone:
        return None
    found = f"{gone[0]}, which goes with the kernel"
    hint = (
        f"{_HINT}; it is there from the guest's next boot on" if not folders else "restart the guest: it is there then"
    )
    return Blocker(Reason.RAM_FILE, "RAM on memory that outlives the kernel", found, hint)
