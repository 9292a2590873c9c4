"""A plan, as a table and as JSON, and what of it speaks against going on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from hostagent.cli import words
from hostagent.cli.output import Cell, Column, Part, indented, sentence, table
from hostagent.errors import Refused
from hostagent.facts import QemuTree
from hostagent.plan import Blocker, GuestPlan, Method, Plan, Prediction, Reason, Verdict

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
    parts += _groups(plan)
    if plan.blockers:
        parts += [sentence("No guest of this host can be updated in place:", "bad"), *reasons(plan.blockers), ""]
    for guest in plan.blocked:
        stays = "" if guest.name in named else ", and is left out"
        parts += [sentence(f"{guest.name} cannot be updated{stays}:", "bad"), *against_each(guest), ""]
    return parts


def _groups(plan: Plan) -> list[Part]:
    """In which groups guests go, where there is more than one."""
    if len(plan.groups) < 2:
        return []
    lines = [f"{number} of {len(plan.groups)}: {', '.join(names)}" for number, names in enumerate(plan.groups, start=1)]
    return [
        sentence("One group after the other, each once the one before it is well:"),
        *(indented(line, 2) for line in lines),
        "",
    ]


def against_each(guest: GuestPlan) -> list[Part]:
    """What is against each rung of its ladder; against those that its policy forbids anyway, only that."""
    if not guest.ways:
        return reasons(guest.blockers)
    parts: list[Part] = []
    for way in guest.ways:
        forbidden = [blocker for blocker in way.blockers if blocker.reason is Reason.POLICY]
        in_place = way.method.in_place
        parts.append(indented(way.method, 2))
        parts += reasons(guest.blockers if in_place else forbidden or way.blockers, indent=4)
    return parts


def reasons(blockers: Iterable[Blocker], *, indent: int = 2) -> list[Part]:
    """Each reason, with what to do about it."""
    parts: list[Part] = []
    for blocker in blockers:
        parts.append(indented(f"expected {blocker.expected}, found {blocker.found}", indent))
        if blocker.hint:
            parts.append(indented(f"to do: {blocker.hint}", indent + 2, "dim"))
    return parts


def _row(guest: GuestPlan, plan: Plan) -> Sequence[str | Cell]:
    now = str(guest.before.version) if guest.before else words.NONE
    match guest.verdict:
        case Verdict.UPDATE:
            how = Cell(_how(guest), "good")
            budget = words.duration(guest.budget_seconds)
            return guest.name, now, str(plan.to.version), how, pause(guest.predicted), budget
        case Verdict.BLOCKED:
            return guest.name, now, now, Cell("blocked: see below", "bad"), "", ""
        case verdict:
            return guest.name, now, now, Cell(f"nothing: {verdict}", "dim"), "", ""


def _how(guest: GuestPlan) -> str:
    """How it is updated, and how instead if that fails."""
    otherwise = "".join(
        f"; else {way_words(way.method, way.peer, way.copied_disks)}{_about(way.predicted)}" for way in guest.lower
    )
    if guest.technique is not None:
        return f"{guest.method} by {guest.technique}, {_ram(guest)}{otherwise}"
    return f"{way_words(guest.method, guest.peer, guest.copied_disks)}{otherwise}"


def way_words(method: Method | None, peer: str, copied_disks: Sequence[str] = ()) -> str:
    """A method in words, where that leads to, and what is copied there."""
    count = len(copied_disks)
    copied = f", {count} disk{'s' * (count > 1)} copied" if count else ""
    return f"{method} to {peer}{copied}" if peer else f"{method}"


def _about(predicted: Prediction | None) -> str:
    return "" if predicted is None else f" (pause about {words.duration(predicted.pause_seconds)})"


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
        **({"groups": [list(names) for names in plan.groups]} if len(plan.groups) > 1 else {}),
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
        "predicted": _prediction_json(guest.predicted),
        "copied_bytes": guest.copied_bytes,
        "blockers": blockers_json(guest.blockers),
        "peer": guest.peer or None,
        "copied_disks": list(guest.copied_disks),
        "ways": [
            {
                "method": way.method,
                "technique": way.technique,
                "peer": way.peer or None,
                "copied_disks": list(way.copied_disks),
                "predicted": _prediction_json(way.predicted),
                "blockers": blockers_json(way.blockers),
            }
            for way in guest.ways
        ],
    }


def _prediction_json(predicted: Prediction | None) -> dict[str, object] | None:
    if predicted is None:
        return None
    return {
        "pause_seconds": predicted.pause_seconds,
        "measured": predicted.measured,
        "of_itself": predicted.of_itself,
        "copy_seconds": predicted.copy_seconds,
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
    found = [
        f"{guest.name}: {', '.join(dict.fromkeys(item.reason for item in _against_asked(guest)))}" for guest in blocked
    ]
    if plan.blockers:
        found.insert(0, f"host: {', '.join(dict.fromkeys(item.reason for item in plan.blockers))}")
    again = "inspect" if plan.adopts else f"plan {plan.component} --to {plan.to.name}, with the same options,"
    return Refused(
        "adopting RAM" if plan.adopts else f"updating {plan.component}",
        expected="nothing against it" if plan.blockers else "nothing against the guests named",
        found="; ".join(found),
        hint=f"hostagent {again} says more",
    )


def _against_asked(guest: GuestPlan) -> tuple[Blocker, ...]:
    """What is against it; that another method than the usual one was asked for is none of that."""
    ways = [way for way in guest.ways if all(blocker.reason is not Reason.NOT_ASKED for blocker in way.blockers)]
    if not ways or ways[0] is guest.ways[0]:
        return guest.blockers
    return tuple(dict.fromkeys(blocker for way in ways for blocker in way.blockers))


def refusal_json(plan: Plan, named: Collection[str]) -> dict[str, object]:
    """All of its reasons, for a program."""
    guests = [guest for guest in plan.blocked if guest.name in named]
    return {
        "blockers": blockers_json(plan.blockers),
        "guests": [{"name": guest.name, "blockers": blockers_json(_against_asked(guest))} for guest in guests],
    }
