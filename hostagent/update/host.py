"""One update of one host, from an approved plan to its end in the journal."""

from __future__ import annotations

import os
from collections.abc import Callable

from hostagent.errors import Failed, HostagentError, Refused
from hostagent.facts import Host
from hostagent.plan import GuestPlan, HostPlan, Method, Plan, Technique
from hostagent.update.hook_question import require_hook
from hostagent.update.journal import UpdateRecord
from hostagent.update.ledger import begin, end_update, record_of
from hostagent.update.order import OrderedGuest, OrderKind, UpdateOrder
from hostagent.update.rehearsal import rehearse
from hostagent.update.saga import Engine, Teller
from hostagent.update.subject import Ports


def update_qemu(
    ports: Ports, host: Host, plan: Plan, *, update_id: str, tell: Teller, cancelled: Callable[[], bool]
) -> UpdateRecord:
    """Rehearse what was never rehearsed, then carry every planned guest over. The host's lock is held by the caller.

    All of them at once: what goes in groups is carried out by a roll. Raises Failed when the rehearsal failed: no guest
    was touched. What happened to each guest is in the record.
    """
    if not plan.to_update:
        raise Refused("updating", expected="a guest that can be updated", found="none in the plan", hint="plan again")
    engine = Engine(ports.journal, tell, cancelled)
    _get_ready(ports, engine, host, plan, update_id)
    order = UpdateOrder(
        kind=OrderKind.ADOPTION if plan.adopts else OrderKind.UPDATE,
        component=plan.component,
        to=plan.to,
        undoes=plan.undoes,
        roll=plan.place.roll if plan.place else "",
        group=plan.place.group if plan.place else 0,
        groups=plan.place.groups if plan.place else 0,
        adopt_definition=ports.config.update.adopt_definition,
        guests=tuple(_ordered(ports, guest) for guest in plan.to_update),
        pid=os.getpid(),
    )
    return _carry_out(ports, engine, update_id, order)


def update_host(
    ports: Ports, host: Host, plan: HostPlan, *, update_id: str, tell: Teller, cancelled: Callable[[], bool]
) -> UpdateRecord:
    """Swap components for the whole host, with the planned guests held meanwhile.

    Everything that can be done before the first pause is. Raises Failed when that, or a rehearsal, failed: nothing was
    touched. What became of it is in the record.
    """
    if plan.blockers or plan.blocked:
        raise Refused("updating", expected="every guest that runs to be held", found="some that cannot be")
    engine = Engine(ports.journal, tell, cancelled)
    try:
        for name in plan.swaps:
            tell("", f"stage {name}", "begun")
            ports.components[name].stage()
        _get_ready(ports, engine, host, plan, update_id)
    except HostagentError:
        for name in plan.swaps:
            ports.components[name].forget()  # a new kernel that stays loaded would be started by the next reboot
        raise
    order = UpdateOrder(
        kind=OrderKind.UPDATE,
        component=plan.component,
        to=plan.to,
        swaps=plan.swaps,
        guests=tuple(_ordered(ports, guest) for guest in plan.to_update),
        pid=os.getpid(),
    )
    return _carry_out(ports, engine, update_id, order)


def _get_ready(ports: Ports, engine: Engine, host: Host, plan: Plan | HostPlan, update_id: str) -> None:
    if any(guest.technique is Technique.HOLD for guest in plan.to_update):
        require_hook(ports)
    if ports.config.update.rehearse and plan.to_update:
        rehearse(ports, engine, host, plan, update_id=f"{update_id}-rehearsal")
    if engine.cancelled():
        raise Failed("updating", found="a signal asked to stop; no guest was touched")


def _carry_out(ports: Ports, engine: Engine, update_id: str, order: UpdateOrder) -> UpdateRecord:
    batches = begin(ports, engine, update_id, order)
    for batch in batches:
        batch.run()
    end_update(ports, update_id, batches)
    return record_of(ports, update_id)


def _ordered(ports: Ports, guest: GuestPlan) -> OrderedGuest:
    method = guest.method or Method.IN_PLACE
    return OrderedGuest(
        uuid=guest.uuid,
        name=guest.name,
        before=guest.before,
        method=method,
        technique=(guest.technique or Technique.HANDOVER) if method.in_place else None,
        peer=guest.peer,
        boot_tcp=guest.boot_tcp,
        comes_back=bool(guest.peer) and ports.config.migrate.comes_back,
        copies_storage=bool(guest.copied_disks),
        budget_seconds=guest.budget_seconds,
        clock=guest.clock,
    )
