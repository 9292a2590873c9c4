"""hostagent update: brings guests onto another version while they run."""

from __future__ import annotations

import click

from hostagent.cli import plan_view, words
from hostagent.cli.common import Call, Change, begin, change, new_update_id
from hostagent.cli.output import sentence
from hostagent.cli.plan import Wish, make_plan, planning_options
from hostagent.cli.progress import Progress
from hostagent.cli.report_view import report_parts
from hostagent.cli.verbs import Asked, verb
from hostagent.errors import ExitCode, Failed, Refused, UsageError
from hostagent.facts import Host
from hostagent.plan import Plan
from hostagent.session import require_nothing_open
from hostagent.update.host import update_qemu
from hostagent.update.journal import Outcome
from hostagent.update.report import UpdateReport, report_of


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
    return done if isinstance(done, int) else _tell(call, *done, signal=work.signals.first)


Ended = tuple[UpdateReport, Plan]


def _update(call: Call, work: Change, wish: Wish, *, yes: bool) -> Ended | int:
    require_nothing_open(work.session)
    host = call.host()
    plan = make_plan(call, host, wish)
    call.out.say(*plan_view.plan_parts(plan, wish.guests))
    if refused := plan_view.refusal(plan, wish.guests):
        call.out.error(refused, plan_view.refusal_json(plan, wish.guests))
        return refused.exit_code
    if not plan.to_update:
        call.out.show(_nothing_done(plan), "Nothing to do.")
        return ExitCode.DONE
    if not yes:
        _confirm(call, work, plan)
    work.signals.check()
    return _carry_out(call, work, host, plan)


def _confirm(call: Call, work: Change, plan: Plan) -> None:
    """Raises UsageError when there is nobody to ask, Refused when the answer is no."""
    if not call.out.can_ask():
        raise UsageError(
            "updating", expected="a terminal to ask on, or --yes", found="neither", hint="nothing was touched"
        )
    each = "" if len(plan.to_update) == 1 else "each "
    longest = words.duration(max(guest.budget_seconds for guest in plan.to_update))
    question = f"Update {words.counted(len(plan.to_update), 'guest')}, {each}paused for at most {longest}?"
    with work.signals.ordinary():
        if not call.out.ask(question):
            raise Refused("updating", found="the answer was no; nothing was touched")


def _carry_out(call: Call, work: Change, host: Host, plan: Plan) -> Ended | int:
    names = {guest.uuid: guest.name for guest in plan.to_update}
    try:
        with (
            work.session.guarded() as ports,
            Progress(call.out, names, stopping=work.signals.cancelled, live=True) as tell,
        ):
            record = update_qemu(
                ports, host, plan, update_id=new_update_id(), tell=tell, cancelled=work.signals.cancelled
            )
    except Failed as failed:  # in the rehearsal: no guest was touched
        if work.signals.first is None:
            raise
        call.out.error(failed)
        return ExitCode.SIGNAL + work.signals.first
    return report_of(record), plan


def _tell(call: Call, report: UpdateReport, plan: Plan, *, signal: int | None) -> int:
    """The result, with the host no longer held."""
    document = {**report.to_json(), "skipped": _skipped(plan)}
    call.out.show(document, *report_parts(report), sentence(_verdict(report, plan)))
    return exit_code(report, signal)


def exit_code(report: UpdateReport, signal: int | None) -> int:
    """What the update ends with: the worst that happened to a guest; a signal counts only if it stopped something."""
    outcomes = {guest.outcome for guest in report.guests}
    if outcomes & {Outcome.NEEDS_OPERATOR, Outcome.LOST, None}:
        return ExitCode.NEEDS_OPERATOR
    if outcomes <= {Outcome.UPDATED}:
        return ExitCode.DONE
    return ExitCode.FAILED if signal is None else ExitCode.SIGNAL + signal


def _verdict(report: UpdateReport, plan: Plan) -> str:
    left_out = ", ".join(guest.name for guest in plan.blocked)
    return _what_was_done(report) + (f" Left out: {left_out}." if left_out else "")


def _what_was_done(report: UpdateReport) -> str:
    updated = sum(guest.outcome is Outcome.UPDATED for guest in report.guests)
    whole = words.counted(len(report.guests), "guest")
    to = report.to.version if report.to else "?"
    if updated == len(report.guests):
        return f"{whole} updated to QEMU {to}, RAM kept."
    waiting = [guest.name for guest in report.guests if guest.outcome is Outcome.NEEDS_OPERATOR]
    if waiting or report.is_open:
        return f"{updated} of {whole} updated. A person has to see to the rest; then: hostagent recover"
    return f"{updated} of {whole} updated."


def _nothing_done(plan: Plan) -> dict[str, object]:
    return {
        "id": None,
        "component": plan.component,
        "kind": "update",
        "outcome": "nothing-to-do",
        "to": {"name": plan.to.name, "version": str(plan.to.version), "package": plan.to.package},
        "guests": [],
        "skipped": _skipped(plan),
    }


def _skipped(plan: Plan) -> list[dict[str, object]]:
    return [
        {"name": guest.name, "uuid": guest.uuid, "blockers": plan_view.blockers_json(guest.blockers)}
        for guest in plan.blocked
    ]
