"""Opening and closing an update in the journal."""

from __future__ import annotations

from collections.abc import Sequence

from hostagent.plan import Method
from hostagent.update.batch import Batch, Member, write_end
from hostagent.update.journal import Entry, Kind, Outcome, UpdateRecord, fold
from hostagent.update.order import OrderKind, UpdateOrder
from hostagent.update.saga import Engine
from hostagent.update.swap import GuestSwap, HostSwap, Ports

# The worst that happened to a guest is what happened to the update.
_WORST_FIRST = (Outcome.NEEDS_OPERATOR, Outcome.LOST, Outcome.ROLLED_BACK, Outcome.GONE, Outcome.UPDATED)


def begin(ports: Ports, engine: Engine, update_id: str, order: UpdateOrder) -> Batch:
    """The update's first rows, in one commit, and the batch that carries it."""
    rows = [Entry(Kind.GUEST_BEGUN, guest.uuid, body={"name": guest.name}) for guest in order.guests]
    ports.journal.append(update_id, Entry(Kind.UPDATE_BEGUN, body=order.body()), *rows)
    members = [Member(swap_of(ports, update_id, order, guest.uuid, guest.name)) for guest in order.guests]
    return Batch(engine, HostSwap(ports, update_id, tuple(member.swap for member in members)), members)


def swap_of(ports: Ports, update_id: str, order: UpdateOrder, uuid: str, name: str) -> GuestSwap:
    """The subject for one guest of an order."""
    method = next((guest.method for guest in order.guests if guest.uuid == uuid), Method.IN_PLACE)
    return GuestSwap(
        ports,
        update_id,
        uuid,
        name,
        order.to,
        order.budget_seconds,
        copies=method is Method.IN_PLACE_COPY,
        adopts_definition=order.adopt_definition,
        rehearsal=order.kind is OrderKind.REHEARSAL,
    )


def end_update(ports: Ports, update_id: str, members: Sequence[Member]) -> Outcome:
    """Close the update, unless a person has to act first: then `hostagent recover` finds it open."""
    outcomes = {member.outcome for member in members}
    worst = next((outcome for outcome in _WORST_FIRST if outcome in outcomes), Outcome.UPDATED)
    if worst is not Outcome.NEEDS_OPERATOR:
        reason = next((member.reason for member in members if member.outcome is worst), "")
        body = {"outcome": worst, "reason": reason}
        write_end(ports.journal, update_id, Entry(Kind.UPDATE_ENDED, body=body))
    return worst


def record_of(ports: Ports, update_id: str) -> UpdateRecord:
    """The update as the journal has it now."""
    return next(update for update in fold(ports.journal.rows()) if update.id == update_id)
