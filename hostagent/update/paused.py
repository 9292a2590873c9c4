"""Which guests stand still for an update, and since when, from the journal alone: also when its updater has died.

As far as the journal knows: one that goes on but whose updater could not write that down is still among them.
"""

from __future__ import annotations

from collections.abc import Mapping

from hostagent.errors import NeedsOperator
from hostagent.plan import Technique
from hostagent.update.journal import GuestRecord, Outcome, UpdateRecord
from hostagent.update.order import OrderKind, UpdateOrder

SWITCH_STEP = "switch"  # of a handover, in which the guest is stopped
PAUSE_STEP = "pause"  # of a hold, in which it is told to stand still, at the moment that is noted
PAUSED_AT = "began_at"
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
    techniques = {guest.uuid: guest.technique for guest in order.guests}
    found = {record.name: _since(update, record, techniques.get(uuid)) for uuid, record in update.guests.items()}
    return {name: since for name, since in found.items() if since is not None}


def _since(update: UpdateRecord, record: GuestRecord, technique: Technique | None) -> float | None:
    """None: as far as anybody knows it runs, or is not ours to resume."""
    done = record.outcome not in (None, Outcome.NEEDS_OPERATOR) or RESUMES in record.progress.done
    if done or technique is None:
        return None
    if technique is Technique.HOLD:
        noted = record.notes.get(PAUSED_AT)
        return noted if PAUSE_STEP in record.progress.open and isinstance(noted, float) and noted > 0 else None
    if SWITCH_STEP not in record.progress.open:
        return None
    # Its first beginning: one that a crash made begin twice found the guest standing still.
    return min(at for guest, step, at in update.step_times if (guest, step) == (record.uuid, SWITCH_STEP))
