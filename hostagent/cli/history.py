"""hostagent history: every update that was made on this host, or one of them step by step."""

from __future__ import annotations

from collections.abc import Sequence

import click

from hostagent.cli import words
from hostagent.cli.common import begin, of_id
from hostagent.cli.output import Cell, Column, Part, table
from hostagent.cli.report_view import OUTCOME_LOOKS, plainly, report_parts, roll_place
from hostagent.cli.verbs import Asked, verb
from hostagent.errors import ExitCode, UsageError
from hostagent.update.journal import Outcome
from hostagent.update.order import OrderKind
from hostagent.update.report import GuestReport, UpdateReport, report_of

_COLUMNS = (
    Column("update"),
    Column("begun"),
    Column("to"),
    Column("guests", figures=True),
    Column("longest\npause", figures=True),
    Column("outcome"),
)


@verb("history", example="hostagent history 20261122-0", operation="history")
@click.argument("update", required=False, metavar="[UPDATE]")
def history(asked: Asked, update: str | None) -> int:
    """See every update of this host, or one with the time that each step took each guest; works without libvirt.

    UPDATE is an id, or the beginning of one. A step lasts until the next one of its update begins.
    """
    call = begin(asked)
    reports = [report for report in map(report_of, call.updates()) if report.kind is not OrderKind.REHEARSAL]
    if update is None:
        shown: list[UpdateReport] = reports
        rolls = any(report.place for report in reports)
        columns = (*_COLUMNS, Column("group")) if rolls else _COLUMNS
        parts: list[Part] = [table(columns, [_row(report, rolls=rolls) for report in reports])]
        parts = parts if reports else ["No update was made on this host yet."]
    else:
        shown = [_chosen(reports, update)]
        parts = [*report_parts(shown[0]), *_phases(shown[0])]
    call.out.show({"updates": [report.to_json() for report in shown]}, *parts)
    return ExitCode.DONE


def _row(report: UpdateReport, *, rolls: bool) -> Sequence[str | Cell]:
    updated = sum(guest.outcome is Outcome.UPDATED for guest in report.guests)
    pauses = [guest.pause_seconds for guest in report.guests if guest.pause_seconds is not None]
    return (
        report.id,
        words.moment(report.begun),
        (str(report.to.version) if report.to else report.component) + (", back" if report.undoes else ""),
        f"{updated} of {len(report.guests)}",
        words.duration(max(pauses, default=None)),
        Cell(plainly(report.standing), OUTCOME_LOOKS[report.outcome] if report.outcome else "wait"),
        *([roll_place(report) + (", stopped" if report.roll_stopped else "")] if rolls else []),
    )


def _phases(report: UpdateReport) -> list[Part]:
    """The steps down, the guests across: there are as many steps always."""
    guests = [guest for guest in report.guests if guest.phases]
    if not guests:
        return []
    columns = [Column("step"), *(Column(guest.name, figures=True) for guest in guests)]
    rows = [[step, *(words.duration(guest.phases.get(step)) for guest in guests)] for step in _in_turn(guests)]
    return [table(columns, rows)]


def _in_turn(guests: Sequence[GuestReport]) -> list[str]:
    """Every step that some guest went through, in an order in which each of them did."""
    steps: list[str] = []
    for guest in guests:
        next_one = 0
        for step in guest.phases:
            if step not in steps:
                steps.insert(next_one, step)
            next_one = steps.index(step) + 1
    return steps


def _chosen(reports: Sequence[UpdateReport], wanted: str) -> UpdateReport:
    found = of_id(reports, wanted)
    if len(found) == 1:
        return found[0]
    raise UsageError(
        "choosing an update",
        expected="the id of one, or its beginning",
        found=f"{len(found)} that begin with {wanted!r}",
        hint="hostagent history",
    )
