"""A plan, as a table and as JSON, and what of it speaks against going on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from hostagent.cli import words
from hostagent.cli.output import Cell, Column, Part, indented, sentence, table
from hostagent.errors import Refused
from hostagent.facts import QemuTree
from hostagent.plan import Blocker, GuestPlan, Method, Plan, Prediction, Verdict

_COLUMNS = (
    *(Column("guest"), Column("QEMU now"), Column("then"), Column("what happens")),
    *(Column("pause", figures=True), Column("budget", figures=True)),
)


def plan_parts(plan: Plan, named: Collection[str]) -> list[Part]:
    """For a person: each guest, then every reason of those that stay out."""
    to = plan.to
    stays = ", where guests stay" if plan.adopts else ""
    parts: list[Part] = [sentence(f"QEMU {to.version} ({to.package or 'no package'}), tree {to.name}{stays}"), ""]
    if plan.guests:
        parts += [table(_COLUMNS, [_row(guest, plan) for guest in plan.guests]), ""]
    else:
        parts += ["No guests on this host.", ""]
    if plan.blockers:
        parts += [sentence("No guest of this host can be updated in place:", "bad"), *reasons(plan.blockers), ""]
    for guest in plan.blocked:
        stays = "" if guest.name in named else ", and is left out"
        parts += [sentence(f"{guest.name} cannot be updated in place{stays}:", "bad"), *reasons(guest.blockers), ""]
    return parts


def reasons(blockers: Iterable[Blocker]) -> list[Part]:
    """Each reason, with what to do about it."""
    parts: list[Part] = []
    for blocker in blockers:
        parts.append(indented(f"expected {blocker.expected}, found {blocker.found}", 2))
        if blocker.hint:
            parts.append(indented(f"to do: {blocker.hint}", 4, "dim"))
    return parts


def _row(guest: GuestPlan, plan: Plan) -> Sequence[str | Cell]:
    now = str(guest.before.version) if guest.before else words.NONE
    match guest.verdict:
        case Verdict.UPDATE:
            how = Cell(f"{guest.method} by {guest.technique}, {_ram(guest)}", "good")
            budget = words.duration(guest.budget_seconds)
            return guest.name, now, str(plan.to.version), how, pause(guest.predicted), budget
        case Verdict.BLOCKED:
            why = f"blocked: {words.counted(len(guest.blockers), 'reason')} below"
            return guest.name, now, now, Cell(why, "bad"), "", ""
        case verdict:
            return guest.name, now, now, Cell(f"nothing: {verdict}", "dim"), "", ""


def _ram(guest: GuestPlan) -> str:
    """What becomes of its RAM."""
    if guest.method is not Method.IN_PLACE_COPY:
        return "RAM kept"
    seconds = guest.predicted.copy_seconds if guest.predicted else None
    return "RAM copied while it runs" + (f" for about {words.duration(seconds)}" if seconds else "")


def pause(predicted: Prediction | None) -> str | Cell:
    """One that was never measured here is not a figure to build upon."""
    if predicted is None:
        return words.NONE
    figure = f"about {words.duration(predicted.pause_seconds)}"
    return figure if predicted.measured else Cell(figure, "dim")


def plan_json(plan: Plan) -> dict[str, object]:
    """For a program."""
    return {
        "component": plan.component,
        "to": {"name": plan.to.name, "version": str(plan.to.version), "package": plan.to.package},
        "blockers": blockers_json(plan.blockers),
        "guests": [guest_json(guest, plan.to) for guest in plan.guests],
    }


def guest_json(guest: GuestPlan, to: QemuTree | None) -> dict[str, object]:
    """For a program; to: where it is brought."""
    updates = guest.verdict is Verdict.UPDATE
    before = str(guest.before.version) if guest.before else None
    return {
        "name": guest.name,
        "uuid": guest.uuid,
        "verdict": guest.verdict,
        "method": guest.method,
        "technique": guest.technique,
        "qemu": {"before": before, "after": str(to.version) if updates and to else before},
        "budget_seconds": guest.budget_seconds,
        "clock": guest.clock,
        "predicted": guest.predicted
        and {
            "pause_seconds": guest.predicted.pause_seconds,
            "measured": guest.predicted.measured,
            "of_itself": guest.predicted.of_itself,
            "copy_seconds": guest.predicted.copy_seconds,
        },
        "copied_bytes": guest.copied_bytes,
        "blockers": blockers_json(guest.blockers),
    }


def blockers_json(blockers: Iterable[Blocker]) -> list[dict[str, object]]:
    """Every reason, for a program."""
    return [
        {"reason": item.reason, "expected": item.expected, "found": item.found, "hint": item.hint} for item in blockers
    ]


def refusal(plan: Plan, named: Collection[str]) -> Refused | None:
    """Why an update would not begin; guests that nobody named are only left out."""
    blocked = [guest for guest in plan.blocked if guest.name in named]
    if not plan.blockers and not blocked:
        return None
    found = [f"{guest.name}: {', '.join(dict.fromkeys(item.reason for item in guest.blockers))}" for guest in blocked]
    if plan.blockers:
        found.insert(0, f"host: {', '.join(dict.fromkeys(item.reason for item in plan.blockers))}")
    again = "inspect" if plan.adopts else f"plan {plan.component} --to {plan.to.name}"
    return Refused(
        "adopting RAM" if plan.adopts else f"updating {plan.component}",
        expected="nothing against it" if plan.blockers else "nothing against the guests named",
        found="; ".join(found),
        hint=f"hostagent {again} says more",
    )


def refusal_json(plan: Plan, named: Collection[str]) -> dict[str, object]:
    """All of its reasons, for a program."""
    guests = [guest for guest in plan.blocked if guest.name in named]
    return {
        "blockers": blockers_json(plan.blockers),
        "guests": [{"name": guest.name, "blockers": blockers_json(guest.blockers)} for guest in guests],
    }
