"""A plan for the whole host, as a table and as JSON, and what of it speaks against going on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hostagent.cli import words
from hostagent.cli.output import Cell, Column, Part, sentence, table
from hostagent.cli.plan_view import against_each, blockers_json, guest_json, pause, reasons, way_words
from hostagent.errors import Refused
from hostagent.facts import Component
from hostagent.plan import GuestPlan, HostPlan, Verdict

_COLUMNS = (
    *(Column("guest"), Column("QEMU now"), Column("then"), Column("what happens")),
    *(Column("pause", figures=True), Column("budget", figures=True)),
)


def host_plan_parts(plan: HostPlan) -> list[Part]:
    """For a person: what is swapped, each guest, then every reason against it."""
    parts: list[Part] = [sentence(_change(change)) for change in plan.changes]
    takes = f"That takes about {words.duration(plan.swap_seconds)}"
    held = "every guest held: saved without its RAM, which stays" if plan.guests else "no guest paused"
    if any(guest.technique is None for guest in plan.to_update):
        held += "; those that cannot be leave meanwhile"
    parts += [sentence(f"{takes}, with {held}."), ""]
    if plan.guests:
        parts += [table(_COLUMNS, [_row(guest, plan) for guest in plan.guests]), ""]
    if plan.blockers:
        parts += [sentence(f"{plan.component} cannot be updated:", "bad"), *reasons(plan.blockers), ""]
    for guest in plan.to_update:
        if guest.technique is None:
            how = way_words(guest.method, guest.peer, guest.copied_disks)
            parts += [sentence(f"{guest.name} cannot be held with the others, and leaves meanwhile by {how}:")]
            parts += [*_why_not_held(guest), ""]
    for guest in plan.blocked:
        parts += [sentence(f"{guest.name} cannot be held, nor leave meanwhile:", "bad"), *against_each(guest), ""]
    return parts


def _change(change: Component) -> str:
    if not change.running and not change.installed:
        return change.name
    return f"{change.name}: {change.running or 'nothing'} runs, then {change.installed}"


def _row(guest: GuestPlan, plan: HostPlan) -> Sequence[str | Cell]:
    now = str(guest.before.version) if guest.before else words.NONE
    match guest.verdict:
        case Verdict.UPDATE:
            then = str(plan.to.version) if plan.to else now
            how = Cell(_how(guest), "good")
            return guest.name, now, then, how, pause(guest.predicted), words.duration(guest.budget_seconds)
        case Verdict.BLOCKED:
            why = f"blocked: {words.counted(len(guest.blockers), 'reason')} below"
            return guest.name, now, now, Cell(why, "bad"), "", ""
        case verdict:
            return guest.name, now, now, Cell(f"nothing: {verdict}", "dim"), "", ""


def _how(guest: GuestPlan) -> str:
    if guest.technique is not None:
        return "held with all others, RAM kept"
    return f"leaves meanwhile: {way_words(guest.method, guest.peer, guest.copied_disks)}"


def _why_not_held(guest: GuestPlan) -> list[Part]:
    """What would be done about it is none of a plan's that has found another way."""
    against = [blocker for way in guest.ways if way.method.in_place for blocker in way.blockers]
    return reasons(replace(blocker, hint="") for blocker in against)


def host_plan_json(plan: HostPlan) -> dict[str, object]:
    """For a program."""
    return {
        "component": plan.component,
        "changes": [
            {"name": change.name, "running": change.running, "installed": change.installed} for change in plan.changes
        ],
        "swap_seconds": plan.swap_seconds,
        "blockers": blockers_json(plan.blockers),
        "guests": [guest_json(guest, plan.to or guest.before) for guest in plan.guests],
    }


def host_refusal(plan: HostPlan) -> Refused | None:
    """Why an update would not begin."""
    if not plan.blockers:
        return None
    return Refused(
        f"updating {plan.component}",
        expected="nothing against it",
        found="; ".join(f"{blocker.reason}: {blocker.found}" for blocker in plan.blockers),
        hint=f"hostagent plan {plan.component} says more",
    )
