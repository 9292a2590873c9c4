"""Which guests stand still for an update, and since when, from the journal alone: also when its updater has died.

As far as the journal knows: one that goes on but whose updater could not write that down is still among them.
"""

from __future__ import annotations

from collections.abc import Mapping

from hostagent.errors import NeedsOperator
from hostagent.plan import Technique
from hostagent.update.journal import GuestRecord, Outcome, UpdateRecord
from hostagent.update.order import OrderKind, UpdateOrder

# The step that a guest is paused in, and the one that it goes on with.
PAUSES = {Technique.HANDOVER: "switch", Technique.HOLD: "pause"}
RESUMES = "resume"


def paused_in(update: UpdateRecord) -> Mapping[str, float]:
    """Names of guests of an open update, and the Unix time at which their pause began.

    Not those of a rehearsal, nor guests that are shut down for it or are on another host.
    """
    if not update.is_open:
        return {}
    try:
        order = UpdateOrder.of(update)
    except NeedsOperator:  # written by another version
        return {}
    if order.kind is OrderKind.REHEARSAL:
        return {}
    steps = {guest.uuid: PAUSES[guest.technique] for guest in order.guests if guest.technique is not None}
    return {
        record.name: _since(update, record, steps[uuid])
        for uuid, record in update.guests.items()
        if uuid in steps and _stands_still(record, steps[uuid])
    }


def _stands_still(record: GuestRecord, step: str) -> bool:
    if record.outcome not in (None, Outcome.NEEDS_OPERATOR):
        return False
    return step in record.progress.open and RESUMES not in record.progress.done


def _since(update: UpdateRecord, record: GuestRecord, step: str) -> float:
    """The step's first beginning: one that a crash made begin twice found the guest standing still."""
    return min(at for guest, name, at in update.step_times if (guest, name) == (record.uuid, step))
