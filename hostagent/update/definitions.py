"""The persistent definitions of guests whose RAM was copied into a file: their next boot gives them such RAM too."""

from __future__ import annotations

from collections.abc import Sequence

from hostagent.errors import HostagentError
from hostagent.update.swap import GuestSwap


def adopt_definitions(swaps: Sequence[GuestSwap]) -> None:
    """Change them, and write down what came of it: a guest is well either way."""
    for swap in swaps:
        if swap.copies and swap.adopts_definition:
            swap.measured({"definition": _adopt(swap)})


def _adopt(swap: GuestSwap) -> str:
    """In a word, or why not."""
    try:
        guest = swap.ports.libvirt.guest(swap.uuid)
        if guest is None or not guest.persistent:
            return "transient"
        return "adopted" if swap.ports.libvirt.adopt_definition(swap.uuid) else "as it should be"
    except HostagentError as error:
        return str(error)
