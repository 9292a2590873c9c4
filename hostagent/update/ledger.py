"""Opening and closing an update in the journal, and what carries it in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hostagent.components import HostComponent
from hostagent.errors import HostagentError, NeedsOperator
from hostagent.facts import QemuTree
from hostagent.plan import Method, Technique
from hostagent.update.alone_batch import AloneBatch, AloneMember
from hostagent.update.batch import Batch, Member
from hostagent.update.cleared_batch import ClearedBatch
from hostagent.update.guest_hold import Barrier, GuestHold
from hostagent.update.guest_migration import GuestMigration
from hostagent.update.guest_reboot import GuestReboot
from hostagent.update.hold_batch import HeldMember, HoldBatch
from hostagent.update.host_hold import HostHold
from hostagent.update.journal import Entry, Kind, Outcome, UpdateRecord, fold
from hostagent.update.member import MemberOf, write_end
from hostagent.update.migration import tables_of
from hostagent.update.order import OrderedGuest, OrderKind, UpdateOrder
from hostagent.update.reboot import REBOOT
from hostagent.update.saga import Engine
from hostagent.update.subject import Ports
from hostagent.update.swap import GuestSwap, HostSwap

# The worst that happened to a guest is what happened to the update.
_WORST_FIRST = (Outcome.NEEDS_OPERATOR, Outcome.LOST, Outcome.ROLLED_BACK, Outcome.GONE, Outcome.UPDATED)

AnyBatch = Batch | HoldBatch | AloneBatch | ClearedBatch
Batches = tuple[AnyBatch, ...]


def begin(ports: Ports, engine: Engine, update_id: str, order: UpdateOrder) -> Batches:
    """The update's first rows, in one commit, and the batches that carry it, one after the other."""
    rows = [Entry(Kind.GUEST_BEGUN, guest.uuid, body={"name": guest.name}) for guest in order.guests]
    ports.journal.append(update_id, Entry(Kind.UPDATE_BEGUN, body=order.body()), *rows)
    return batches_of(ports, engine, record_of(ports, update_id), order)


def batches_of(ports: Ports, engine: Engine, update: UpdateRecord, order: UpdateOrder) -> Batches:
    """What carries the update, from where the journal says that it is; what no guest goes by is left out."""
    found: list[AnyBatch] = []
    if handed := _guests(order, update, Technique.HANDOVER):
        swaps = tuple(_swap(ports, update.id, order, guest) for guest in handed)
        members = [Member(swap) for swap in swaps]
        _take_up(members, update)
        found.append(Batch(engine, HostSwap(ports, update.id, swaps), members, update.host))
    held = _guests(order, update, Technique.HOLD)
    alone = [_ALONE[guest.method](ports, update.id, order, guest) for guest in _guests(order, update, None)]
    _take_up(alone, update)
    leaving = AloneBatch(engine, ports, update.id, alone)
    if held or order.swaps:
        barrier = Barrier() if order.swaps else None
        holding = [HeldMember(_hold(ports, update.id, order, guest, barrier)) for guest in held]
        _take_up(holding, update)
        components = tuple(_component(ports, name) for name in order.swaps)
        batch = HoldBatch(engine, HostHold(ports, update.id, components), holding, update.host)
        if order.swaps and alone:
            return (*found, ClearedBatch(leaving, batch))
        found.append(batch)
    if alone:
        found.append(leaving)
    return tuple(found)


def _guests(order: UpdateOrder, update: UpdateRecord, technique: Technique | None) -> list[OrderedGuest]:
    return [guest for guest in order.guests if guest.technique is technique and guest.uuid in update.guests]


def _take_up(members: Iterable[MemberOf[Any]], update: UpdateRecord) -> None:
    for member in members:
        member.take_up(update.guests[member.swap.uuid])


def _component(ports: Ports, name: str) -> HostComponent:
    if name not in ports.components:
        raise NeedsOperator(
            "reading the journal",
            expected=f"a component {name} in the settings",
            found="none",
            hint="put its [[component]] back, then: hostagent recover",
        )
    return ports.components[name]


def _tree(order: UpdateOrder, guest: OrderedGuest) -> QemuTree:
    """The QEMU that it is to run on."""
    tree = order.to or guest.before
    if tree is None:
        raise NeedsOperator("reading the journal", expected=f"the QEMU of {guest.name}", found="none")
    return tree


def _who(
    ports: Ports, update_id: str, order: UpdateOrder, guest: OrderedGuest
) -> tuple[Ports, str, str, str, QemuTree, float]:
    """What every guest of an update begins with, whatever it goes by."""
    return ports, update_id, guest.uuid, guest.name, _tree(order, guest), guest.budget_seconds


def _swap(ports: Ports, update_id: str, order: UpdateOrder, guest: OrderedGuest) -> GuestSwap:
    return GuestSwap(
        *_who(ports, update_id, order, guest),
        copies=guest.method is Method.IN_PLACE_COPY,
        adopts_definition=order.adopt_definition,
        clock=guest.clock,
        rehearsal=order.kind is OrderKind.REHEARSAL,
    )


def _hold(ports: Ports, update_id: str, order: UpdateOrder, guest: OrderedGuest, barrier: Barrier | None) -> GuestHold:
    return GuestHold(
        *_who(ports, update_id, order, guest),
        barrier,
        clock=guest.clock,
        rehearsal=order.kind is OrderKind.REHEARSAL,
    )


def _reboot(ports: Ports, update_id: str, order: UpdateOrder, guest: OrderedGuest) -> AloneMember:
    return AloneMember(
        GuestReboot(
            *_who(ports, update_id, order, guest),
            clock=guest.clock,
            boot_tcp=guest.boot_tcp,
        ),
        tables=REBOOT,
    )


def _migration(ports: Ports, update_id: str, order: UpdateOrder, guest: OrderedGuest) -> AloneMember:
    return AloneMember(
        GuestMigration(
            *_who(ports, update_id, order, guest),
            peer=guest.peer,
            comes_back=guest.comes_back,
            copies_storage=guest.copies_storage,
            clock=guest.clock,
        ),
        tables=tables_of(comes_back=guest.comes_back, copies_storage=guest.copies_storage),
    )


# Methods that take each guest for itself.
_ALONE: Mapping[Method, Callable[[Ports, str, UpdateOrder, OrderedGuest], AloneMember]] = {
    Method.LIVE_MIGRATE: _migration,
    Method.REBOOT: _reboot,
}


def members_of(batches: Batches) -> list[MemberOf[Any]]:
    """The guests of all of them."""
    return [member for batch in batches for member in batch.members]


def end_update(ports: Ports, update_id: str, batches: Batches) -> Outcome:
    """Close the update, unless a person has to act first: then `hostagent recover` finds it open."""
    members = members_of(batches)
    swaps = [batch for batch in batches if isinstance(batch, HoldBatch | ClearedBatch)]
    failures = [batch.failure for batch in swaps if batch.failure is not None]
    outcomes = {member.outcome for member in members} | {_outcome_of(failure) for failure in failures}
    worst = next((outcome for outcome in _WORST_FIRST if outcome in outcomes), Outcome.UPDATED)
    if worst is not Outcome.NEEDS_OPERATOR:
        reasons = [*(member.reason for member in members if member.outcome is worst), *map(str, failures), ""]
        body = {"outcome": worst, "reason": reasons[0]}
        write_end(ports.journal, update_id, Entry(Kind.UPDATE_ENDED, body=body))
    return worst


def _outcome_of(failure: HostagentError) -> Outcome:
    return Outcome.NEEDS_OPERATOR if isinstance(failure, NeedsOperator) else Outcome.ROLLED_BACK


def record_of(ports: Ports, update_id: str) -> UpdateRecord:
    """The update as the journal has it now."""
    (update,) = fold(ports.journal.rows(updates=[update_id]))
    return update
