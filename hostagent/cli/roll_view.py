"""What became of a roll, in tables and sentences, as JSON, and as an exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hostagent.cli.carry import result, skipped, verdict
from hostagent.cli.common import Call
from hostagent.cli.output import Part, sentence
from hostagent.cli.report_view import report_parts
from hostagent.errors import ExitCode, NeedsOperator
from hostagent.plan import Plan
from hostagent.update.journal import Outcome
from hostagent.update.report import UpdateReport, report_of
from hostagent.update.rolled import Rolled, Stop


def show_one(call: Call, rolled: Rolled, signal: int | None) -> int:
    """Tell what became of it, a plain update as such; the exit code."""
    reports = reports_of(rolled)
    document = result(*reports[0]) if rolled.is_plain else rolled_json(rolled)
    call.out.show(document, *rolled_parts(rolled))
    return exit_code([rolled], signal)


def show_all(call: Call, done: Sequence[Rolled], signal: int | None) -> int:
    """Tell what became of each; the exit code."""
    updates = [result(report, plan) for rolled in done for report, plan in reports_of(rolled)]
    document: dict[str, object] = {"updates": updates}
    if rolls := [rolled for rolled in done if not rolled.is_plain]:
        document["rolls"] = [roll_json(rolled) for rolled in rolls]
    call.out.show(document, *(part for rolled in done for part in rolled_parts(rolled)))
    return exit_code(done, signal)


def reports_of(rolled: Rolled) -> list[tuple[UpdateReport, Plan]]:
    """The report of each of its updates, and the plan that it carried out."""
    reports = [(report_of(done.update), done.plan) for done in rolled.updates]
    if rolled.stop and not rolled.is_plain and reports:
        report, plan = reports[-1]
        reports[-1] = (replace(report, roll_stopped=rolled.reason), plan)
    if rolled.is_plain:
        return [(report, rolled.plan) for report, _ in reports]
    return reports


def roll_json(rolled: Rolled) -> dict[str, object]:
    """For a program, with the ids of its updates alone."""
    return {**rolled_json(rolled), "updates": [done.update.id for done in rolled.updates]}


def rolled_json(rolled: Rolled) -> dict[str, object]:
    """For a program."""
    return {
        "roll": rolled.id,
        "groups": [list(group) for group in rolled.plan.groups],
        "updates": [result(report, plan) for report, plan in reports_of(rolled)],
        "stopped": rolled.stop,
        "reason": rolled.reason,
        "untouched": list(rolled.untouched),
        "passed_over": [{"name": one.name, "why": one.why} for one in rolled.passed_over],
        "skipped": skipped(rolled.plan),
    }


def rolled_parts(rolled: Rolled) -> list[Part]:
    """For a person: each update, then the roll as a whole."""
    parts: list[Part] = []
    for report, plan in reports_of(rolled):
        parts += [*report_parts(report), sentence(verdict(report, plan))]
        parts += [] if rolled.is_plain else [""]
    return parts if rolled.is_plain else [*parts, *_summary(rolled)]


def _summary(rolled: Rolled) -> list[Part]:
    last = rolled.last
    updated = sum(one.record.outcome is Outcome.UPDATED for one in last)
    looks = {None: "good", Stop.CANCELLED: "wait"}
    look = looks.get(rolled.stop, "bad")
    of_all = f"{updated} of {len(rolled.plan.to_update)} guests updated"
    ended = f"Stopped: {rolled.reason}." if rolled.stop else "All groups are done."
    parts: list[Part] = [sentence(f"Roll {rolled.id}: {of_all}. {ended}", look)]
    if lower := [f"{one.plan.name} by {one.method}, not {planned}" for one, planned in rolled.lower_rungs]:
        parts.append(sentence(f"By a method that disturbs more than the one planned: {'; '.join(lower)}.", "wait"))
    if rolled.untouched:
        parts.append(sentence(f"Untouched: {', '.join(rolled.untouched)}.", "wait"))
    if rolled.passed_over:
        parts.append(sentence(f"Passed over: {', '.join(f'{one.name} ({one.why})' for one in rolled.passed_over)}."))
    if blocked := ", ".join(guest.name for guest in rolled.plan.blocked):
        parts.append(sentence(f"Left out: {blocked}."))
    return parts


def exit_code(done: Sequence[Rolled], signal: int | None) -> int:
    """What it ends with: the worst that happened to a guest; a signal counts only if it stopped something."""
    outcomes = {one.record.outcome for rolled in done for one in rolled.last}
    is_open = any(one.update.is_open for rolled in done for one in rolled.updates)
    lost_track = any(isinstance(rolled.error, NeedsOperator) for rolled in done)
    if outcomes & {Outcome.NEEDS_OPERATOR, Outcome.LOST, None} or is_open or lost_track:
        return ExitCode.NEEDS_OPERATOR
    stops = {rolled.stop for rolled in done} - {None}
    if not stops:
        lower = any(rolled.used_lower_rung or rolled.left_some_away for rolled in done)
        return ExitCode.LOWER_RUNG if lower else ExitCode.DONE
    if signal is None or stops == {Stop.UNHEALTHY}:
        return ExitCode.FAILED
    return ExitCode.SIGNAL + signal
