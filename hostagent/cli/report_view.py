"""What became of an update, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from hostagent.cli import words
from hostagent.cli.output import Cell, Column, Part, indented, sentence, table
from hostagent.update.journal import Outcome
from hostagent.update.order import OrderKind
from hostagent.update.report import OPEN, GuestReport, UpdateReport

_COLUMNS = (
    Column("guest"),
    Column("RAM"),
    Column("pause", figures=True),
    Column("budget", figures=True),
    Column("clock\nbefore", figures=True),
    Column("clock\nafter", figures=True),
    Column("clock\nsynced", figures=True),
    Column("QEMU"),
    Column("outcome"),
)
OUTCOME_LOOKS = {
    Outcome.UPDATED: "good",
    Outcome.ROLLED_BACK: "wait",
    Outcome.GONE: "wait",
    Outcome.LOST: "bad",
    Outcome.NEEDS_OPERATOR: "bad",
}


_DEFINITION_IS_RIGHT = (None, "adopted", "as it should be", "transient")


def report_parts(update: UpdateReport) -> list[Part]:
    """The update in a line, its guests in a table, then what has to be said about any of them."""
    parts: list[Part] = [sentence(_headline(update))]
    if update.kind is OrderKind.REHEARSAL:
        return [*parts, *([indented(update.reason, 2)] if update.reason else []), ""]
    if update.guests:
        parts += ["", table(_COLUMNS, [_row(guest) for guest in update.guests])]
    remarks = [(guest.name, text, look) for guest in update.guests for text, look in _remarks(guest)]
    if remarks:
        parts.append("")
    parts += [indented(f"{name}: {text}", 2, look) for name, text, look in remarks]
    if update.reason and not update.guests:
        parts.append(indented(update.reason, 2))
    if update.roll_stopped:
        parts += ["", sentence(f"The roll went no further: {update.roll_stopped}.", "wait")]
    return [*parts, ""]


def roll_place(update: UpdateReport) -> str:
    """Which group of its roll the update was for; "" of one that is in none."""
    return f"{update.place.group} of {update.place.groups}" if update.place else ""


def _headline(update: UpdateReport) -> str:
    what = update.kind or "update"
    to = f" to {update.to.version}" if update.to and update.kind is not OrderKind.ADOPTION else ""
    back = f" back from {update.undoes}" if update.undoes else ""
    place = f", group {roll_place(update)} of roll {update.place.roll}" if update.place else ""
    begun = f"{what} {update.id}: {update.component}{to}{back}{place}, begun {words.moment(update.begun)}"
    if update.ended is None:
        return f"{begun}, {plainly(update.standing)}"
    after = f"{begun}, {plainly(update.standing)} after {words.duration(update.ended - update.begun)}"
    if update.boot_seconds is None:
        return after
    return f"{after}, {words.duration(update.boot_seconds)} of it the new kernel's boot"


def _row(guest: GuestReport) -> Sequence[str | Cell]:
    clock = guest.clock
    return (
        guest.name,
        guest.ram or words.NONE,
        Cell(words.duration(guest.pause_seconds), "bad" if guest.over_budget else ""),
        _budget(guest),
        words.offset(clock.before),
        words.offset(clock.after),
        words.offset(clock.synced, clock.bound),
        _qemu(guest),
        Cell(plainly(guest.outcome or OPEN), OUTCOME_LOOKS[guest.outcome] if guest.outcome else "wait"),
    )


def _budget(guest: GuestReport) -> str | Cell:
    budget = words.duration(guest.budget_seconds)
    return Cell(f"{budget} OVER", "bad") if guest.over_budget else budget


def _qemu(guest: GuestReport) -> str:
    before, after = guest.qemu_before or "?", guest.qemu_after
    return before if after == before else f"{before} → {after or '?'}"


def _remarks(guest: GuestReport) -> list[tuple[str, str]]:
    """What the table has no room for."""
    found: list[tuple[str, str]] = []
    if guest.reason:
        found.append(
            (
                guest.reason.removeprefix(f"{guest.name}: "),
                "bad" if guest.outcome in {Outcome.LOST, Outcome.NEEDS_OPERATOR} else "",
            )
        )
    if guest.left_disks:
        found.append((_left_disks(guest), ""))
    if guest.clock_outcome == "uncorrected":
        found.append((f"its clock was left as it is ({guest.clock_reason or 'no reason given'})", ""))
    if guest.pause_source == "monotonic":
        found.append(("the host's clock was set during the pause, which was measured by the monotonic one", "dim"))
    if guest.pause_source == "outside":
        found.append(("the pause was measured from outside it: from being told to stand still to going on", "dim"))
    if guest.pause_source == "between-looks":
        found.append(
            ("the pause is an upper bound: from when it was last seen running to the answer that it does", "dim")
        )
    if guest.pause_source == "journal":
        found.append(("the pause is an upper bound: nobody saw it end", "dim"))
    if guest.halt_seconds is not None:
        found.append((f"it also stood still for {words.duration(guest.halt_seconds)} as the copy began", "dim"))
    if guest.boot_seconds is not None:
        down = f"was shut off for {words.duration(guest.down_seconds)}, and " if guest.down_seconds is not None else ""
        found.append((f"it {down}took {words.duration(guest.boot_seconds)} to boot", "dim"))
    if guest.definition not in _DEFINITION_IS_RIGHT:
        found.append(
            (
                f"its next boot gives it RAM that has to be copied again: {guest.definition}",
                "bad",
            )
        )
    if guest.xml_differences:
        changed = "; ".join(guest.xml_differences)
        found.append((f"its live definition is not as before: {changed}", "bad"))
    return found


def _left_disks(guest: GuestReport) -> str:
    where, paths = guest.left_disks_on or "this host", ", ".join(guest.left_disks)
    if guest.outcome is Outcome.LOST and guest.left_disks_on:
        return f"{where} has its disks as they were when it came back, and nobody removes them: {paths}"
    return f"what {where} has of its disks is past, and stays: {paths}"


def plainly(outcome: str) -> str:
    """An outcome as people write it."""
    return outcome.replace("-", " ")
