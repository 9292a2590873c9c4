"""hostagent rollback: brings the guests of an update back to the QEMU that each came from."""

from __future__ import annotations

from collections.abc import Sequence

import click

from hostagent.cli.carry import approve
from hostagent.cli.common import Call, Change, begin, change, of_id
from hostagent.cli.plan import policies_of
from hostagent.cli.roll import Course, carry_out_all
from hostagent.cli.roll_view import show_all
from hostagent.cli.verbs import Asked, verb
from hostagent.errors import UsageError
from hostagent.facts import Host
from hostagent.plan import Plan
from hostagent.planning.guest_policy import Policies
from hostagent.planning.planner import chosen_guests
from hostagent.planning.rolling import Rolling, rolled
from hostagent.planning.way_back import plan_way_back
from hostagent.session import require_nothing_open
from hostagent.update.journal import Outcome, UpdateRecord
from hostagent.update.order import OrderKind, UpdateOrder
from hostagent.update.report import past_of
from hostagent.update.rolled import Rolled


@verb("rollback", example="hostagent rollback --guest web1", operation="rollback")
@click.argument("update", required=False, metavar="[UPDATE]")
@click.option("--guest", "guests", multiple=True, metavar="NAME", help="This guest only; may be repeated.")
@click.option("--budget", metavar="TIME", help="Longest pause that a guest may see, like 10s or 500ms.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def rollback(asked: Asked, update: str | None, guests: tuple[str, ...], budget: str | None, *, yes: bool) -> int:
    """Bring guests back to what they ran on before UPDATE, or before the last one, while they run.

    An update by itself, with all that belongs to one. A guest that has been ended or brought elsewhere since stays
    as it is. UPDATE is an id as `hostagent status --all` shows it, or the beginning of one.
    """
    call = begin(asked)
    with change(call, "rollback") as work:
        require_nothing_open(work.session)
        done = _roll_back(call, work, update, guests, policies_of(call, budget), yes=yes)
    return done if isinstance(done, int) else show_all(call, done, work.signals.first)


def _roll_back(
    call: Call, work: Change, update: str | None, guests: Sequence[str], policies: Policies, *, yes: bool
) -> list[Rolled] | int:
    updates = call.updates()
    record = chosen_update(updates, update)
    host = call.kept_host()
    order = UpdateOrder.of(record)
    wanted = {guest.uuid for guest in chosen_guests(host, guests or None)}
    came_from = {
        guest.uuid: guest.before
        for guest in order.guests
        if guest.uuid in wanted and record.guests[guest.uuid].outcome is Outcome.UPDATED
    }
    past = past_of(updates)
    assert order.to is not None  # noqa: S101 - such are not chosen
    went_to = order.to
    rolling = Rolling(call.config.roll.max_unavailable)

    def back(now: Host, names: Sequence[str] | None) -> tuple[Plan, ...]:
        some = {guest.uuid for guest in now.guests if names is None or guest.name in names}
        came = {uuid: before for uuid, before in came_from.items() if uuid in some}
        return plan_way_back(now, came, went_to, policies=policies, undoes=record.id, past=past)

    plans = [rolled(plan, host, policies, rolling) for plan in back(host, None)]
    code = approve(call, work, plans, guests, yes=yes)
    return code if code is not None else carry_out_all(call, work, host, plans, Course(policies, back))


def chosen_update(updates: Sequence[UpdateRecord], wanted: str | None) -> UpdateRecord:
    """The update of that id, or the last that brought a guest somewhere; UsageError when there is none."""
    moved = [
        update
        for update in updates
        if update.order.get("kind") == OrderKind.UPDATE
        and update.order.get("to")
        and any(guest.outcome is Outcome.UPDATED for guest in update.guests.values())
    ]
    if wanted is None and moved:
        return _not_a_way_back(moved[-1])
    found = of_id(moved, wanted) if wanted else []
    if len(found) == 1:
        return found[0]
    there = ", ".join(update.id for update in moved[-5:])
    seen = f"{len(found)} that begin with {wanted!r}" if wanted and moved else "none in the journal"
    raise UsageError(
        "choosing an update to go back from",
        expected="one that brought a guest to another QEMU" + (f": {there}" if there else ""),
        found=seen,
        hint="hostagent status --all",
    )


def _not_a_way_back(last: UpdateRecord) -> UpdateRecord:
    """Said twice, `rollback` must not bring guests forward again."""
    undoes = last.order.get("undoes")
    if undoes:
        raise UsageError(
            "choosing an update to go back from",
            expected="the last update not to be a rollback",
            found=f"{last.id}, which went back from {undoes}",
            hint=f"to undo that one: hostagent rollback {last.id}",
        )
    return last
