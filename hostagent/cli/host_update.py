"""Planning and carrying out what is swapped for the whole host."""

from __future__ import annotations

from collections.abc import Sequence

from hostagent import wiring
from hostagent.cli import words
from hostagent.cli.carry import confirm, in_session
from hostagent.cli.common import Call, Change
from hostagent.cli.host_view import host_plan_json, host_plan_parts, host_refusal
from hostagent.cli.output import sentence
from hostagent.components import HostComponent
from hostagent.errors import ExitCode, Failed, UsageError
from hostagent.facts import Freshness, Host
from hostagent.plan import HostPlan
from hostagent.planning.host_planner import Swap, plan_host
from hostagent.update.host import update_host
from hostagent.update.journal import Outcome
from hostagent.update.report import UpdateReport, past_of, report_of


def make_host_plan(call: Call, host: Host, component: str, *, budget_seconds: float) -> HostPlan:
    """The plan to swap that component, if what runs is not what is installed."""
    found = chosen(call, component)
    change = found.look()
    if change.freshness is Freshness.UNKNOWN:
        raise Failed(f"looking at {component}", expected="to see what runs", found="that cannot be told")
    swap = Swap(change, found.holds, found.first_seconds, reconnects=component == "libvirtd")
    swaps = [swap] if change.freshness is Freshness.OUTDATED else []
    return plan_host(host, component, swaps, budget_seconds=budget_seconds, past=past_of(call.updates()))


def chosen(call: Call, name: str) -> HostComponent:
    """The component of that name; UsageError when there is none."""
    known = {one.name: one for one in wiring.host_components(call.config)}
    if name not in known:
        raise UsageError(
            "choosing a component",
            expected=" or ".join(["qemu", *known]),
            found=repr(name),
            hint="a component of your own is a [[component]] in the settings",
        )
    return known[name]


def approve_host(call: Call, work: Change, plan: HostPlan, *, yes: bool) -> int | None:
    """Show the plan; an exit code when nothing is to be done, None to go on."""
    if not plan.swaps:
        call.out.show(_nothing_done(plan), sentence(f"Nothing to do: {plan.component} is what is installed."))
        return ExitCode.DONE
    call.out.say(*host_plan_parts(plan))
    if (refused := host_refusal(plan)) is not None:
        call.out.error(refused, host_plan_json(plan))
        return refused.exit_code
    if not yes:
        held = len(plan.to_update)
        longest = max((guest.budget_seconds for guest in plan.to_update), default=0.0)
        pauses = f" with {words.counted(held, 'guest')} held for at most {words.duration(longest)}" if held else ""
        confirm(call, work, f"Swap {' and '.join(plan.swaps)}{pauses}?")
    work.signals.check()
    return None


def _nothing_done(plan: HostPlan) -> dict[str, object]:
    return {"id": None, "component": plan.component, "kind": "update", "outcome": "nothing-to-do", "guests": []}


def carry_out_host(call: Call, work: Change, host: Host, plan: HostPlan) -> UpdateReport | int:
    """The update; an exit code when a signal ended it before anything was touched."""
    record = in_session(call, work, host, plan, update_host)
    return record if isinstance(record, int) else report_of(record)


def host_verdict(report: UpdateReport, swaps: Sequence[str]) -> str:
    """What was done, in a sentence or two."""
    what, held = " and ".join(swaps), words.counted(len(report.guests), "guest")
    if report.is_open:
        return f"{what}: a person has to see to it; then: hostagent recover"
    if report.outcome is Outcome.ROLLED_BACK:
        back = f" {held} held meanwhile, and back." if report.guests else ""
        return f"{what}: not swapped, and as before: {report.reason}.{back}"
    updated = sum(guest.outcome is Outcome.UPDATED for guest in report.guests)
    if not report.guests:
        return f"{what}: swapped."
    pauses = [guest.pause_seconds for guest in report.guests if guest.pause_seconds is not None]
    longest = f", the longest for {words.duration(max(pauses))}" if pauses else ""
    return f"{what}: swapped with {updated} of {held} held, RAM kept{longest}."
