"""Finish or undo whatever the journal left open; runs before anything else that changes something."""

from __future__ import annotations

from contextlib import suppress

from hostagent.errors import HostagentError
from hostagent.update.hook_question import forget_question
from hostagent.update.journal import Outcome, UpdateRecord, fold
from hostagent.update.landing import has_landed, keep_others_out, land, tell_hook_again
from hostagent.update.ledger import batches_of, end_update, members_of
from hostagent.update.order import OrderKind, UpdateOrder
from hostagent.update.rehearsal import dismiss
from hostagent.update.restarted import close_after_restart, recover_elsewhere
from hostagent.update.saga import Engine, Teller
from hostagent.update.subject import Ports


def recover(ports: Ports, *, boot_id: str, tell: Teller) -> tuple[UpdateRecord, ...]:
    """Close every open update that can be closed; returns those that were open, as they are now.

    The host's lock is held by the caller. An update that stays open needs a person: its guests' reasons say why.
    """
    found = ports.journal.open_updates()
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
            else:
                close_after_restart(ports, update)
                recover_elsewhere(ports, engine, update)
        except HostagentError as error:  # it stays open; the next one is not to blame
            tell("", "recover", f"update {update.id}: {error}")
    return fold(ports.journal.rows(updates=[update.id for update in found]))


def any_has_landed(ports: Ports, *, boot_id: str) -> bool:
    """Whether guests are held over the change to this kernel; raises NeedsOperator where that cannot be told."""
    return any(has_landed(ports, update, boot_id) for update in ports.journal.open_updates())


def get_ready_after_boot(ports: Ports, *, boot_id: str) -> None:
    """What must be so before libvirt's daemon starts, and needs none.

    The hook knows of guests that are still held; those that were held when the host went down in any other way are
    nobody's any more, and start as if nothing had been.
    """
    for update in ports.journal.open_updates():
        try:
            landed = has_landed(ports, update, boot_id)
        except HostagentError:  # a person will have to tell, whom recovery asks
            keep_others_out(ports, update)
            continue
        if landed:
            tell_hook_again(ports, update, boot_id)
        elif update.boot_id != boot_id:
            close_after_restart(ports, update)


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
