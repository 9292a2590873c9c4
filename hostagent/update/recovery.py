"""Finish or undo whatever the journal left open; runs before anything else that changes something."""

from __future__ import annotations

from contextlib import suppress

from hostagent.errors import HostagentError
from hostagent.plan import Method, Technique
from hostagent.update.beside import discard_held
from hostagent.update.guest_hold import GuestHold
from hostagent.update.holding import discard
from hostagent.update.hook_question import forget_question
from hostagent.update.journal import Entry, Kind, Outcome, UpdateRecord, fold
from hostagent.update.landing import has_landed, keep_others_out, land, tell_hook_again
from hostagent.update.ledger import batches_of, end_update, members_of, record_of
from hostagent.update.order import OrderKind, UpdateOrder
from hostagent.update.rehearsal import dismiss, sweep_up
from hostagent.update.saga import Engine, Teller
from hostagent.update.subject import Ports
from hostagent.update.swap import GuestSwap


def open_updates(ports: Ports) -> tuple[UpdateRecord, ...]:
    """The updates that are neither finished nor undone."""
    return tuple(update for update in fold(ports.journal.rows()) if update.is_open)


def recover(ports: Ports, *, boot_id: str, tell: Teller) -> tuple[UpdateRecord, ...]:
    """Close every open update that can be closed; returns those that were open, as they are now.

    The host's lock is held by the caller. An update that stays open needs a person: its guests' reasons say why.
    """
    found = open_updates(ports)
    with suppress(HostagentError):
        forget_question(ports)
    engine = Engine(ports.journal, tell, cancelled=lambda: False)
    for update in found:
        try:
            if update.boot_id == boot_id:
                _recover_update(ports, engine, update)
            elif has_landed(ports, update, boot_id):
                tell_hook_again(ports, update, boot_id)
                _recover_update(ports, engine, update, landed=True)
            elif _migrates(update):
                _end_untouched(ports, update)
                _recover_update(ports, engine, record_of(ports, update.id))  # the other host may have the guests
            else:
                _close_after_restart(ports, update)
        except HostagentError as error:  # it stays open; the next one is not to blame
            tell("", "recover", f"update {update.id}: {error}")
    known = {update.id for update in found}
    return tuple(update for update in fold(ports.journal.rows()) if update.id in known)


def any_has_landed(ports: Ports, *, boot_id: str) -> bool:
    """Whether guests are held over the change to this kernel; raises NeedsOperator where that cannot be told."""
    return any(has_landed(ports, update, boot_id) for update in open_updates(ports))


def get_ready_after_boot(ports: Ports, *, boot_id: str) -> None:
    """What must be so before libvirt's daemon starts, and needs none.

    The hook knows of guests that are still held; those that were held when the host went down in any other way are
    nobody's any more, and start as if nothing had been.
    """
    for update in open_updates(ports):
        try:
            landed = has_landed(ports, update, boot_id)
        except HostagentError:  # a person will have to tell, whom recovery asks
            keep_others_out(ports, update)
            continue
        if landed:
            tell_hook_again(ports, update, boot_id)
        elif update.boot_id != boot_id and not _migrates(update):
            _close_after_restart(ports, update)


def _migrates(update: UpdateRecord) -> bool:
    """Whether its guests go to another host, which is still there when this one was started anew."""
    try:
        return any(guest.method is Method.LIVE_MIGRATE for guest in UpdateOrder.of(update).guests)
    except HostagentError:
        return False


_RESTARTED = "the host was restarted while the update was open; guests start with fresh RAM"


def _recover_update(ports: Ports, engine: Engine, update: UpdateRecord, *, landed: bool = False) -> None:
    order = UpdateOrder.of(update)
    batches = batches_of(ports, engine, update, order)
    if landed:
        for member in members_of(batches):
            if member.active:
                land(member.swap)
    for batch in batches:
        batch.recover()
    if order.kind is OrderKind.REHEARSAL:
        dismiss(ports, order)
        for member in members_of(batches):
            if member.outcome is Outcome.NEEDS_OPERATOR:  # a throw-away guest needs nobody
                member.end(Outcome.ROLLED_BACK, member.reason)
    end_update(ports, update.id, batches)


def _end_untouched(ports: Ports, update: UpdateRecord) -> None:
    """The host was started anew before anything was begun for them."""
    ended = [
        Entry(Kind.GUEST_ENDED, uuid, body={"outcome": Outcome.LOST, "reason": _RESTARTED, "kind": "host-restarted"})
        for uuid, record in update.guests.items()
        if record.outcome is None and not record.progress.open
    ]
    ports.journal.append(update.id, *ended)


def _close_after_restart(ports: Ports, update: UpdateRecord) -> None:
    """The host was started anew: RAM files and processes are gone, and old state must never be loaded again."""
    reason = _RESTARTED
    rebooting = _rebooting(update)
    ended = [
        Entry(
            Kind.GUEST_ENDED,
            uuid,
            body={
                "outcome": Outcome.LOST,
                "reason": f"{reason}{_UNLESS_IT_STARTS.format(uuid) if uuid in rebooting else ''}",
                "kind": "host-restarted",
            },
        )
        for uuid, record in update.guests.items()
        if record.outcome is None or record.outcome is Outcome.NEEDS_OPERATOR
    ]
    with suppress(HostagentError):  # what cannot be read any more keeps nothing open
        _sweep_after_restart(ports, update)
    body = {"outcome": Outcome.LOST, "reason": reason}
    ports.journal.append(update.id, *ended, Entry(Kind.UPDATE_ENDED, body=body))


_UNLESS_IT_STARTS = "; it was being rebooted: where libvirt does not start it by itself, virsh start {}"


def _rebooting(update: UpdateRecord) -> frozenset[str]:
    """The guests that it took by a reboot, by uuid."""
    try:
        guests = UpdateOrder.of(update).guests
    except HostagentError:  # which keeps nothing open
        return frozenset()
    return frozenset(guest.uuid for guest in guests if guest.method is Method.REBOOT)


def _sweep_after_restart(ports: Ports, update: UpdateRecord) -> None:
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
