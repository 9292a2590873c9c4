"""The host was started anew while an update was open, not by the update: what was in its memory is gone.

RAM files and processes are gone, and what was saved of a guest must never be loaded again. Only a guest that migrates
may be elsewhere, whole.
"""

from __future__ import annotations

from contextlib import suppress

from hostagent.errors import HostagentError
from hostagent.hypervisor.peers import HOME
from hostagent.plan import Method, Technique
from hostagent.update.alone_batch import AloneBatch, AloneMember
from hostagent.update.beside import discard_held
from hostagent.update.cleared_batch import ClearedBatch
from hostagent.update.guest_hold import GuestHold
from hostagent.update.guest_migration import GuestMigration
from hostagent.update.holding import discard
from hostagent.update.journal import Entry, Kind, Outcome, UpdateRecord
from hostagent.update.ledger import batches_of, end_update, record_of
from hostagent.update.migration import RETURN
from hostagent.update.order import OrderKind, UpdateOrder
from hostagent.update.rehearsal import sweep_up
from hostagent.update.saga import Engine
from hostagent.update.subject import Ports
from hostagent.update.swap import GuestSwap

_REASON = "the host was restarted while the update was open; guests start with fresh RAM"
_UNLESS_IT_STARTS = "; it was being rebooted: where libvirt does not start it by itself, virsh start {}"
_WAITING = (None, Outcome.NEEDS_OPERATOR)


def close_after_restart(ports: Ports, update: UpdateRecord) -> None:
    """Close the update, but for guests that may be on another host; needs no libvirt."""
    elsewhere, methods = _elsewhere(update), _methods(update)
    ended = [
        Entry(
            Kind.GUEST_ENDED,
            uuid,
            body={
                "outcome": Outcome.LOST,
                "reason": _REASON + (_UNLESS_IT_STARTS.format(uuid) if methods.get(uuid) is Method.REBOOT else ""),
                "kind": "host-restarted",
            },
        )
        for uuid, record in update.guests.items()
        if record.outcome in _WAITING and uuid not in elsewhere
    ]
    with suppress(HostagentError):  # what cannot be read any more keeps nothing open
        _sweep(ports, update)
    if not elsewhere:
        ended.append(Entry(Kind.UPDATE_ENDED, body={"outcome": Outcome.LOST, "reason": _REASON}))
    if ended:
        ports.journal.append(update.id, *ended)


def recover_elsewhere(ports: Ports, engine: Engine, update: UpdateRecord) -> None:
    """Finish or undo what was begun for guests that may be on another host, once the others are closed."""
    update = record_of(ports, update.id)
    if not update.is_open:
        return
    batches = batches_of(ports, engine, update, UpdateOrder.of(update))
    for batch in batches:
        alone = batch.leaving if isinstance(batch, ClearedBatch) else batch
        if isinstance(alone, AloneBatch):
            for member in alone.members:
                if member.active and _was_here(member):
                    _close(member)
            alone.recover()
    end_update(ports, update.id, batches)


def _was_here(member: AloneMember) -> bool:
    """Whether it had not begun to leave, or had come back: then its memory went with this host."""
    return member.tables.carry[0].name not in member.progress.open or RETURN in member.progress.done


def _close(member: AloneMember) -> None:
    with suppress(HostagentError, OSError):  # what is left in a shared directory keeps nothing open
        if RETURN in member.progress.done:
            member.swap.ports.hosts[HOME].put_autostart(member.swap.uuid, on=member.swap.notes.autostart)
            if isinstance(member.swap, GuestMigration):
                member.swap.tell_copies()
        else:
            for step in member.tables.prepare:
                if step.undo is not None:
                    step.undo(member.swap)
    member.end(Outcome.LOST, f"{_REASON}; where libvirt does not start it by itself, virsh start {member.swap.uuid}")
    member.reason_kind = "host-restarted"


def _elsewhere(update: UpdateRecord) -> frozenset[str]:
    """The guests that may be on another host, by uuid."""
    methods = _methods(update)
    return frozenset(
        uuid
        for uuid, record in update.guests.items()
        if methods.get(uuid) is Method.LIVE_MIGRATE and record.outcome in _WAITING and record.progress.open
    )


def _methods(update: UpdateRecord) -> dict[str, Method]:
    try:
        return {guest.uuid: guest.method for guest in UpdateOrder.of(update).guests}
    except HostagentError:  # which keeps nothing open
        return {}


def _sweep(ports: Ports, update: UpdateRecord) -> None:
    order = UpdateOrder.of(update)
    techniques = {guest.uuid: guest.technique for guest in order.guests}
    for uuid, record in update.guests.items():
        technique = techniques.get(uuid)
        if technique is Technique.HOLD:
            if (kept := GuestHold.read_notes(record.notes)) is not None:
                discard(record.name, kept, ports.config.paths.held)
        elif technique is Technique.HANDOVER and (notes := GuestSwap.read_notes(record.notes)) is not None:
            discard_held(notes)
    if order.kind is OrderKind.REHEARSAL:
        sweep_up(ports, order)
