"""hostagent recover: closes what an interrupted update left open."""

from __future__ import annotations

import click

from hostagent.agent.notify import Notify
from hostagent.cli.common import Call, begin, change
from hostagent.cli.output import sentence
from hostagent.cli.report_view import report_parts
from hostagent.cli.verbs import Asked, verb
from hostagent.errors import ExitCode, HostagentError
from hostagent.session import after_boot
from hostagent.update.report import report_of


@verb("recover", example="hostagent recover")
@click.option("--at-boot", is_flag=True, help="As the host boots, before libvirt's daemon; setup's unit does that.")
def recover(asked: Asked, at_boot: bool) -> int:
    """Finish or undo what an interrupted update left open.

    Guests that had begun to run under the new version are finished, all others go on as before. Every verb that
    changes something does this first. Ends with exit code 5 when something stays open.
    """
    call = begin(asked)
    if at_boot:
        _get_ready(call)
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


def _get_ready(call: Call) -> None:
    """libvirt's daemon waits for us, and no longer than it must, whatever goes wrong here."""
    try:
        after_boot(call.config)
    except HostagentError as error:
        call.out.note(f"getting ready after the boot: {error}")
    finally:
        Notify.of_this_process().ready()
