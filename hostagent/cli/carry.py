"""Plans shown, refused or asked about, and carried out at once. For every verb that updates; see also roll.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Protocol, TypeVar

from hostagent.cli import plan_view, words
from hostagent.cli.common import Call, Change, new_update_id
from hostagent.cli.output import sentence
from hostagent.cli.progress import Progress
from hostagent.errors import ExitCode, Failed, Refused, UsageError
from hostagent.facts import Host
from hostagent.plan import HostPlan, Method, Plan
from hostagent.update.journal import Outcome, UpdateRecord
from hostagent.update.order import OrderKind
from hostagent.update.report import UpdateReport
from hostagent.update.saga import Teller
from hostagent.update.subject import Ports

P = TypeVar("P", Plan, HostPlan)
P_contra = TypeVar("P_contra", Plan, HostPlan, contravariant=True)


def approve(call: Call, work: Change, plans: Sequence[Plan], named: Collection[str], *, yes: bool) -> int | None:
    """Show the plans; an exit code when nothing is to be done, None to go on.

    Raises UsageError when there is nobody to ask, Refused when the answer is no.
    """
    for plan in plans:
        call.out.say(*plan_view.plan_parts(plan, named))
    for plan in plans:
        if refused := plan_view.refusal(plan, named):
            call.out.error(refused, plan_view.refusal_json(plan, named))
            return refused.exit_code
    updated = [guest for plan in plans for guest in plan.to_update]
    if not updated:
        blocked = ", ".join(guest.name for plan in plans for guest in plan.blocked)
        left = f" Cannot be updated: {blocked}." if blocked else ""
        call.out.show(_nothing_done(plans), sentence(f"Nothing to do.{left}"))
        return ExitCode.DONE
    if not yes:
        what = "Adopt the RAM of" if any(plan.adopts for plan in plans) else "Update"
        each, longest = "" if len(updated) == 1 else "each ", max(guest.budget_seconds for guest in updated)
        guests = words.counted(len(updated), "guest")
        groups = max(len(plan.groups) for plan in plans)
        turns = f", in {groups} groups one after the other" if groups > 1 else ""
        confirm(call, work, f"{what} {guests}{turns}, {each}paused for at most {words.duration(longest)}?")
    work.signals.check()
    return None


def confirm(call: Call, work: Change, question: str) -> None:
    """Ask; Refused for a no, UsageError when there is nobody to ask."""
    if not call.out.can_ask():
        raise UsageError(
            "updating",
            expected='a terminal to ask on, or --yes, which is "yes": true in the API',
            found="neither",
            hint="nothing was touched",
        )
    with work.signals.ordinary():
        if not call.out.ask(question):
            raise said_no()


def said_no() -> Refused:
    """What a no means."""
    return Refused("updating", found="the answer was no; nothing was touched")


class _Updates(Protocol[P_contra]):
    def __call__(
        self,
        ports: Ports,
        host: Host,
        plan: P_contra,
        /,
        *,
        update_id: str,
        tell: Teller,
        cancelled: Callable[[], bool],
    ) -> UpdateRecord: ...


def in_session(call: Call, work: Change, host: Host, plan: P, update: _Updates[P]) -> UpdateRecord | int:
    """Carry a plan out under a guard, and tell what happens; an exit code when a signal ended its rehearsal."""
    names = {guest.uuid: guest.name for guest in plan.to_update}
    try:
        with (
            work.session.guarded() as ports,
            Progress(call.out, names, stopping=work.signals.cancelled, live=True) as tell,
        ):
            return update(ports, host, plan, update_id=new_update_id(), tell=tell, cancelled=work.signals.cancelled)
    except Failed as failed:  # in the rehearsal: no guest was touched
        if work.signals.first is None:
            raise
        call.out.error(failed)
        return ExitCode.SIGNAL + work.signals.first


def exit_code(reports: Sequence[UpdateReport], signal: int | None) -> int:
    """What updates of the host end with: the worst that happened; a signal counts only if it stopped something."""
    outcomes = {guest.outcome for report in reports for guest in report.guests}
    outcomes |= {report.outcome for report in reports if not report.guests}
    if outcomes & {Outcome.NEEDS_OPERATOR, Outcome.LOST, None}:
        return ExitCode.NEEDS_OPERATOR
    if outcomes <= {Outcome.UPDATED}:
        away = any(guest.reason for report in reports for guest in report.guests)  # it did not come back from a peer
        return ExitCode.LOWER_RUNG if away else ExitCode.DONE
    return ExitCode.FAILED if signal is None else ExitCode.SIGNAL + signal


def verdict(report: UpdateReport, plan: Plan) -> str:
    """What was done, in a sentence or two."""
    left_out = ", ".join(guest.name for guest in plan.blocked)
    return _what_was_done(report) + (f" Left out: {left_out}." if left_out else "")


def _what_was_done(report: UpdateReport) -> str:
    updated = sum(guest.outcome is Outcome.UPDATED for guest in report.guests)
    whole = words.counted(len(report.guests), "guest")
    to = report.to.version if report.to else "?"
    if updated == len(report.guests):
        done = "adopted" if report.kind is OrderKind.ADOPTION else f"updated to QEMU {to}"
        away = [f" {guest.name} runs on {guest.runs_on} now." for guest in report.guests if guest.runs_on]
        return f"{whole} {done}{_how(report)}.{''.join(away)}"
    waiting = [guest.name for guest in report.guests if guest.outcome is Outcome.NEEDS_OPERATOR]
    if waiting or report.is_open:
        return f"{updated} of {whole} updated. A person has to see to the rest; then: hostagent recover"
    back = f" To bring {'it' if updated == 1 else 'them'} back: hostagent rollback {report.id}" if updated else ""
    return f"{updated} of {whole} updated.{back}"


def _how(report: UpdateReport) -> str:
    """What became of their RAM; where not all of it stayed on this host, the methods that they went by."""
    methods = Counter(guest.method for guest in report.guests)
    if methods.keys() <= {Method.IN_PLACE, Method.IN_PLACE_COPY}:
        return f", RAM {_ram(report)}"
    if len(methods) == 1:
        return f" by {next(iter(methods))}"
    return f": {', '.join(f'{number} by {method}' for method, number in methods.items())}"


def _ram(report: UpdateReport) -> str:
    """What became of it: "kept", or "copied into shared files", or of some this and of others that."""
    copied = sum(guest.ram == "copied" for guest in report.guests)
    if not copied:
        return "kept"
    into = "copied into a shared file" if copied == 1 else "copied into shared files"
    return into if copied == len(report.guests) else f"kept, that of {copied} {into}"


def _nothing_done(plans: Sequence[Plan]) -> dict[str, object]:
    to = plans[0].to if plans else None
    return {
        "id": None,
        "component": "qemu",
        "kind": "update",
        "outcome": "nothing-to-do",
        "to": {"name": to.name, "version": str(to.version), "package": to.package} if to else None,
        "guests": [],
        "skipped": [entry for plan in plans for entry in skipped(plan)],
    }


def skipped(plan: Plan) -> list[dict[str, object]]:
    """The guests that were left out, for a program."""
    return [
        {"name": guest.name, "uuid": guest.uuid, "blockers": plan_view.blockers_json(guest.blockers)}
        for guest in plan.blocked
    ]


def result(report: UpdateReport, plan: Plan) -> dict[str, object]:
    """The report of an update, and whom it left out, for a program."""
    return {**report.to_json(), "skipped": skipped(plan)}
