"""hostagent status: what became of updates, from the journal alone."""

from __future__ import annotations

import click

from hostagent import wiring
from hostagent.cli.common import begin
from hostagent.cli.output import Part, sentence
from hostagent.cli.report_view import report_parts
from hostagent.cli.verbs import Asked, verb
from hostagent.errors import ExitCode
from hostagent.update.host_lock import HostLock
from hostagent.update.order import OrderKind
from hostagent.update.report import UpdateReport, report_of


@verb("status", example="hostagent status --all", operation="status")
@click.option("--all", "everything", is_flag=True, help="Every update and rehearsal in the journal, oldest first.")
def status(asked: Asked, everything: bool) -> int:
    """See the last update, or the last roll, and whether one is open; works without libvirt.

    Ends with exit code 5 when something is open that nobody works on.
    """
    call = begin(asked)
    busy = HostLock.at(wiring.host_lock_path(call.config)).held_by()
    reports = [report_of(update) for update in call.updates()]
    left_open = [report for report in reports if report.is_open]
    shown = reports if everything else _worth_showing(reports)
    parts = [part for report in shown for part in report_parts(report)]
    document = {"running": busy or None, "updates": [report.to_json() for report in shown]}
    call.out.show(document, *parts, *_verdict(busy, left_open, reports))
    return ExitCode.NEEDS_OPERATOR if left_open and not busy else ExitCode.DONE


def _worth_showing(reports: list[UpdateReport]) -> list[UpdateReport]:
    """What is open, and the last update, or all of the last roll."""
    last = [report for report in reports if report.kind is not OrderKind.REHEARSAL][-1:]
    if last and last[0].place:
        roll = last[0].place.roll
        last = [report for report in reports if report.place and report.place.roll == roll]
    return [report for report in reports if report.is_open or report in last]


def _verdict(busy: str, left_open: list[UpdateReport], reports: list[UpdateReport]) -> list[Part]:
    if busy:
        return [sentence(f"At work: {busy}.")]
    if left_open:
        return [sentence("Something is open, and nobody works on it. To finish or undo it: hostagent recover", "bad")]
    return [sentence("Nothing is open." if reports else "No update was made on this host yet.")]
