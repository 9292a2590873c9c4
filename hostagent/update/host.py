"""One update of one host, from an approved plan to its end in the journal."""

from __future__ import annotations

import os
from collections.abc import Callable

from hostagent.errors import Failed, Refused
from hostagent.facts import Host
from hostagent.plan import GuestPlan, Method, Plan, Technique
from hostagent.update.hook_question import require_hook
from hostagent.update.journal import UpdateRecord
from hostagent.update.ledger import begin, end_update, members_of, record_of
from hostagent.update.order import OrderedGuest, OrderKind, UpdateOrder
from hostagent.update.rehearsal import rehearse
from hostagent.update.saga import Engine, Teller
from hostagent.update.subject import Ports


def update_qemu(
    ports: Ports, host: Host, plan: Plan, *, update_id: str, tell: Teller, cancelled: Callable[[], bool]
) -> UpdateRecord:
    """Rehearse what was never rehearsed, then carry every planned guest over. The host's lock is held by the caller.

    Raises Failed when the rehearsal failed: no guest was touched. What happened to each guest is in the record.
    """
    if not plan.to_update:
        raise Refused("updating", expected="a guest that can be updated", found="none in the plan", hint="plan again")
    engine = Engine(ports.journal, tell, cancelled)
    if any(guest.technique is Technique.HOLD for guest in plan.to_update):
        require_hook(ports)
    if ports.config.update.rehearse:
        rehearse(ports, engine, host, plan, update_id=f"{update_id}-rehearsal")
    if cancelled():
        raise Failed("updating", found="a signal asked to stop; no guest was touched")
    order = UpdateOrder(
        kind=OrderKind.ADOPTION if plan.adopts else OrderKind.UPDATE,
        component=plan.component,
        to=plan.to,
        undoes=plan.undoes,
        budget_seconds=max(guest.budget_seconds for guest in plan.to_update),
        adopt_definition=ports.config.update.adopt_definition,
        guests=tuple(_ordered(guest) for guest in plan.to_update),
        pid=os.getpid(),
    )
    batches = begin(ports, engine, update_id, order)
    for batch in batches:
        batch.run()
    end_update(ports, update_id, members_of(batches))
    return record_of(ports, update_id)


def _ordered(guest: GuestPlan) -> OrderedGuest:
    return OrderedGuest(
        uuid=guest.uuid,
        name=guest.name,
        before=guest.before,
        method=guest.method or Method.IN_PLACE,
        technique=guest.technique or Technique.HANDOVER,
    )
