"""Planning and carrying out what is swapped for the whole host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hostagent import wiring
from hostagent.cli import roll_view, words
from hostagent.cli.carry import confirm, exit_code, in_session, skipped
from hostagent.cli.common import Call, Change
from hostagent.cli.host_view import host_plan_json, host_plan_parts, host_refusal
from hostagent.cli.output import Part, sentence
from hostagent.cli.plan_view import plan_json, plan_parts, refusal
from hostagent.cli.report_view import report_parts
from hostagent.cli.roll import Course, carry_out
from hostagent.components import HostComponent
from hostagent.errors import ExitCode, HostagentError, Refused, UsageError
from hostagent.facts import Freshness, Host
from hostagent.plan import HostPlan, Method, Plan
from hostagent.planning.guest_policy import Policies
from hostagent.planning.host_planner import Swap, plan_everything, plan_host
from hostagent.planning.planner import plan_qemu
from hostagent.planning.rolling import Rolling, rolled
from hostagent.update.host import update_host
from hostagent.update.journal import Outcome
from hostagent.update.report import UpdateReport, past_of, report_of
from hostagent.update.rolled import Rolled

ALL = "all"


@dataclass(frozen=True)
class Swapped:
    """What became of an update of the host."""

    report: UpdateReport
    plan: HostPlan


Carried = list[Rolled | Swapped]


@dataclass(frozen=True)
class HostPlans:
    """The plans that bring a component up to date, or all of them, in order; none when what runs is installed."""

    component: str
    plans: tuple[Plan | HostPlan, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)  # what cannot be swapped on this host, and why

    @property
    def blocked(self) -> tuple[str, ...]:
        """The guests that would have to be brought along, and cannot be."""
        return tuple(guest.name for plan in self.plans for guest in plan.blocked)

    @property
    def nothing_to_do(self) -> bool:
        return not any(plan.to_update or isinstance(plan, HostPlan) for plan in self.plans)

    @property
    def refused(self) -> Refused | None:
        """Why nothing of it would begin."""
        found = (refusal(plan, ()) if isinstance(plan, Plan) else host_refusal(plan) for plan in self.plans)
        return next((refused for refused in found if refused is not None), None)

    def parts(self) -> list[Part]:
        """For a person."""
        if not self.plans:
            what = self.component if self.component != ALL else "everything else" if self.left_out else "everything"
            return [sentence(f"Nothing to do: {what} is what is installed.")]
        return [
            part
            for plan in self.plans
            for part in (plan_parts(plan, ()) if isinstance(plan, Plan) else host_plan_parts(plan))
        ]

    def to_json(self) -> dict[str, object]:
        """For a program."""
        plans = [plan_json(plan) if isinstance(plan, Plan) else host_plan_json(plan) for plan in self.plans]
        return {"plans": plans, "left_out": dict(self.left_out)}


def make_plans(call: Call, host: Host, component: str, policies: Policies) -> HostPlans:
    """What cannot be swapped on this host does not keep the rest from it, where all is asked for; it is said."""
    past, known = past_of(call.updates()), components_of(call, component)
    if component == ALL:
        swaps, left_out = _all_outdated(call, known)
        rolling = Rolling(call.config.roll.max_unavailable)
        made = plan_everything(host, swaps, policies=policies, past=past)
        plans = tuple(rolled(plan, host, policies, rolling) if isinstance(plan, Plan) else plan for plan in made)
        for name, why in left_out.items():
            call.out.note(f"{name} is left out: {why}")
        return HostPlans(component, plans, left_out)
    (found,) = known
    swap = _outdated(call, found)
    made = () if swap is None else (plan_host(host, component, [swap], policies=policies, past=past),)
    return HostPlans(component, made)


def components_of(call: Call, name: str) -> tuple[HostComponent, ...]:
    """The component of that name, or all; UsageError when there is none."""
    known = {one.name: one for one in wiring.host_components(call.config)}
    if name == ALL:
        return tuple(known.values())
    if name not in known:
        raise UsageError(
            "choosing a component",
            expected=" or ".join(["qemu", *known, ALL]),
            found=repr(name),
            hint="a component of your own is a [[component]] in the settings",
        )
    return (known[name],)


def _all_outdated(call: Call, known: Sequence[HostComponent]) -> tuple[list[Swap], dict[str, str]]:
    """What is to be swapped; and what cannot be, with the reason."""
    found, left_out = [], {}
    for one in known:
        try:
            swap = _outdated(call, one)
        except HostagentError as error:
            left_out[one.name] = str(error)
            continue
        if swap is not None and swap.kernel is not None and not swap.kernel.resumes_at_boot:
            left_out[one.name] = "to prepare the host for it: hostagent setup --kernel-swaps"
        elif swap is not None:
            found.append(swap)
    return found, left_out


def _outdated(call: Call, component: HostComponent) -> Swap | None:
    change = component.look()
    if change.freshness is Freshness.UNKNOWN:
        raise Refused(
            f"looking at {component.name}",
            expected="to see what runs and what is installed",
            found="that cannot be told",
            hint="hostagent inspect shows what can be seen",
        )
    if change.freshness is not Freshness.OUTDATED:
        return None
    return Swap(
        change,
        component.holds,
        component.first_seconds,
        reconnects=component.name == "libvirtd",
        kernel=wiring.kernel_swap_of(call.config) if component.name == "kernel" else None,
    )


def approve_plans(call: Call, work: Change, made: HostPlans, *, yes: bool) -> int | None:
    """Show the plans; an exit code when nothing is to be done, None to go on."""
    left = [entry for plan in made.plans if isinstance(plan, Plan) for entry in skipped(plan)]
    none: dict[str, object] = {"updates": [], "left_out": dict(made.left_out), "skipped": left}
    if not made.plans:
        call.out.show(none, *made.parts())
        return ExitCode.DONE
    call.out.say(*made.parts())
    if (refused := made.refused) is not None:
        call.out.error(refused, made.to_json())
        return refused.exit_code
    if made.nothing_to_do:
        call.out.show(none, sentence(f"Nothing to do. Cannot be updated: {', '.join(made.blocked)}."))
        return ExitCode.DONE
    if not yes:
        paused = {guest.name: guest.budget_seconds for plan in made.plans for guest in plan.to_update}
        longest = words.duration(max(paused.values(), default=0.0))
        pauses = f", with {words.counted(len(paused), 'guest')} standing still for at most {longest}" if paused else ""
        confirm(call, work, f"Update {' and '.join(_named(plan) for plan in made.plans)}{pauses}?")
    work.signals.check()
    return None


def _named(plan: Plan | HostPlan) -> str:
    return plan.component if isinstance(plan, Plan) else " and ".join(plan.swaps)


def carry_out_plans(call: Call, work: Change, made: HostPlans, policies: Policies) -> Carried | int:
    """Each in order, up to the first that does not get through; an exit code as in_session()."""
    done: Carried = []
    for plan in made.plans:
        host = call.host_and_peers()  # each stands on the one before
        went = _roll(call, work, host, plan, policies) if isinstance(plan, Plan) else _swap(call, work, host, plan)
        if isinstance(went, int):
            return went
        done.append(went)
        if not _got_through(went) or work.signals.cancelled():
            break
    return done


def _roll(call: Call, work: Change, host: Host, plan: Plan, policies: Policies) -> Rolled | int:
    def replan(now: Host, names: Sequence[str]) -> list[Plan]:
        return [plan_qemu(now, plan.to, names, policies=policies, past=past_of(call.updates()))]

    return carry_out(call, work, host, plan, Course(policies, replan))


def _swap(call: Call, work: Change, host: Host, plan: HostPlan) -> Swapped | int:
    record = in_session(call, work, host, plan, update_host)
    return record if isinstance(record, int) else Swapped(report_of(record), plan)


def _got_through(went: Rolled | Swapped) -> bool:
    return went.stop is None if isinstance(went, Rolled) else went.report.outcome is Outcome.UPDATED


def show_carried(call: Call, done: Carried, made: HostPlans, signal: int | None) -> int:
    """Tell what became of each, and what was not begun; the exit code."""
    reports = [report for one in done for report in _reports(one)]
    document: dict[str, object] = {
        "updates": [report.to_json() for report in reports],
        "left_out": dict(made.left_out),
    }
    if rolls := [one for one in done if isinstance(one, Rolled) and not one.is_plain]:
        document["rolls"] = [roll_view.roll_json(one) for one in rolls]
    call.out.show(document, *_carried_parts(done, made.plans))
    codes = [
        roll_view.exit_code([one], signal) if isinstance(one, Rolled) else exit_code([one.report], signal)
        for one in done
    ]
    return max(codes, key=lambda code: (code == ExitCode.NEEDS_OPERATOR, code), default=ExitCode.DONE)


def _reports(one: Rolled | Swapped) -> list[UpdateReport]:
    return [report for report, _ in roll_view.reports_of(one)] if isinstance(one, Rolled) else [one.report]


def _carried_parts(done: Carried, plans: Sequence[Plan | HostPlan]) -> list[Part]:
    parts: list[Part] = []
    for one in done:
        if isinstance(one, Rolled):
            parts += roll_view.rolled_parts(one)
        else:
            parts += [*report_parts(one.report), sentence(host_verdict(one.report, one.plan.swaps))]
    left = [_named(plan) for plan in plans[len(done) :]]
    return [*parts, *([sentence(f"Not begun: {' and '.join(left)}.", "wait")] if left else [])]


def host_verdict(report: UpdateReport, swaps: Sequence[str]) -> str:
    """What was done, in a sentence or two."""
    what, meanwhile = " and ".join(swaps), _meanwhile(report)
    away = "".join(f" {guest.name} runs on {guest.runs_on} now." for guest in report.guests if guest.runs_on)
    if report.is_open:
        return f"{what}: a person has to see to it; then: hostagent recover"
    if report.outcome is Outcome.ROLLED_BACK:
        back = f" {meanwhile} meanwhile, and back." if report.guests and not away else ""
        return f"{what}: not swapped, and as before: {report.reason}.{back}{away}"
    if not report.guests:
        return f"{what}: swapped."
    pauses = [guest.pause_seconds for guest in report.guests if guest.pause_seconds is not None]
    longest = f"; the longest pause took {words.duration(max(pauses))}" if pauses else ""
    return f"{what}: swapped, with {meanwhile} meanwhile{longest}.{away}"


def _meanwhile(report: UpdateReport) -> str:
    """How many of its guests were where."""
    ways = Counter(Method.IN_PLACE if guest.technique else guest.method for guest in report.guests)
    return ", ".join(
        f"{words.counted(ways[method], 'guest')} {where}" for method, where in _WHERE.items() if ways[method]
    )


_WHERE = {
    Method.IN_PLACE: "held (RAM kept)",
    Method.LIVE_MIGRATE: "on another host",
    Method.REBOOT: "shut down",
}
