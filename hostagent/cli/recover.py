"""hostagent recover: closes what an interrupted update left open."""

from __future__ import annotations

from hostagent.cli.common import begin, change
from hostagent.cli.output import sentence
from hostagent.cli.report_view import report_parts
from hostagent.cli.verbs import Asked, verb
from hostagent.errors import ExitCode
from hostagent.update.report import report_of


@verb("recover", example="hostagent recover")
def recover(asked: Asked) -> int:
    """Finish or undo what an interrupted update left open.

    Guests that had begun to run under the new version are finished, all others go on as before. Every verb that
    changes something does this first. Ends with exit code 5 when something stays open.
    """
    call = begin(asked)
    with change(call, "recover") as work:
        reports = [report_of(update) for update in work.session.recovered]
    left_open = [report for report in reports if report.is_open]
    if not reports:
        verdict = sentence("Nothing was open.")
    elif left_open:
        verdict = sentence("A person has to see to what is still open; then again: hostagent recover", "bad")
    else:
        verdict = sentence("Everything is closed.")
    parts = [part for report in reports for part in report_parts(report)]
    call.out.show({"updates": [report.to_json() for report in reports]}, *parts, verdict)
    return ExitCode.NEEDS_OPERATOR if left_open else ExitCode.DONE
