"""hostagent update: brings guests onto another version while they run."""

from __future__ import annotations

import click

from hostagent.cli.carry import approve, carry_out, exit_code, result, verdict
from hostagent.cli.common import Call, Change, begin, change
from hostagent.cli.output import sentence
from hostagent.cli.plan import Wish, make_plan, planning_options
from hostagent.cli.report_view import report_parts
from hostagent.cli.verbs import Asked, verb
from hostagent.plan import Plan
from hostagent.session import require_nothing_open
from hostagent.update.report import UpdateReport


@verb("update", example="hostagent update qemu --to 10.0 --guest web1 --guest db9 --budget 10s")
@planning_options
@click.option("--yes", is_flag=True, help="Do not ask.")
def update(asked: Asked, wish: Wish, *, yes: bool) -> int:
    """Bring guests onto another version of COMPONENT while they run, their RAM kept.

    All guests, unless some are named; those that cannot be updated are left out, and said. Ctrl-C stops it where
    that is safe: a guest that has not been resumed under the new version goes on as before.
    """
    call = begin(asked)
    with change(call, f"update {wish.component}") as work:
        done = _update(call, work, wish, yes=yes)
    if isinstance(done, int):
        return done
    report, plan = done  # told with the host no longer held
    call.out.show(result(report, plan), *report_parts(report), sentence(verdict(report, plan)))
    return exit_code([report], work.signals.first)


def _update(call: Call, work: Change, wish: Wish, *, yes: bool) -> tuple[UpdateReport, Plan] | int:
    require_nothing_open(work.session)
    host = call.host()
    plan = make_plan(call, host, wish)
    code = approve(call, work, [plan], wish.guests, yes=yes)
    if code is not None:
        return code
    report = carry_out(call, work, host, plan)
    return report if isinstance(report, int) else (report, plan)
