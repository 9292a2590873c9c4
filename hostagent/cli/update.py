"""hostagent update: brings guests onto another version while they run."""

from __future__ import annotations

from pathlib import Path

import click

from hostagent.cli.carry import approve, carry_out, exit_code, result, verdict
from hostagent.cli.common import Call, Change, begin, change
from hostagent.cli.host_update import approve_plans, carried_parts, carry_out_plans, components_of, make_plans
from hostagent.cli.output import sentence
from hostagent.cli.plan import Wish, make_plan, planning_options, policies_of, saved_plan
from hostagent.cli.report_view import report_parts
from hostagent.cli.verbs import Asked, verb
from hostagent.errors import Refused, UsageError
from hostagent.facts import Host
from hostagent.plan import Plan
from hostagent.planning.planner import choose_tree, plan_qemu
from hostagent.planning.saved_plan import SavedPlan
from hostagent.session import require_nothing_open
from hostagent.update.report import UpdateReport, past_of


@verb("update", example="hostagent update qemu --to 10.0 --guest web1 --guest db9 --budget 10s")
@planning_options
@click.option("--plan", "saved", metavar="FILE", type=click.Path(path_type=Path), help="Carry out a saved plan.")
@click.option("--keep-definition", is_flag=True, help="Leave definitions of guests whose RAM is copied as they are.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def update(asked: Asked, wish: Wish, *, saved: Path | None, keep_definition: bool, yes: bool) -> int:
    """Bring guests onto another version of COMPONENT while they run, their RAM kept.

    RAM that is in no shared file is copied into one while the guest runs, once; later updates keep it there.

    All guests, unless some are named; those that cannot be updated are left out, and said. Ctrl-C stops it where
    that is safe: a guest that has not been resumed under the new version goes on as before. A saved plan is carried
    out only if the host and its guests are as they were when it was saved.
    """
    if saved is None:
        wish.require_component("update")
    elif wish != Wish(None, None, (), None):
        raise UsageError("reading the command line", expected="--plan FILE alone, or a wish in words", found="both")
    call = begin(asked)
    if keep_definition:
        call = call.keeping_definitions()
    if wish.component not in ("qemu", None):
        return _update_host(call, wish, yes=yes)
    approved = saved_plan(saved) if saved else None
    with change(call, "update qemu") as work:
        done = _update(call, work, wish, approved, yes=yes)
    if isinstance(done, int):
        return done
    report, plan = done  # told with the host no longer held
    call.out.show(result(report, plan), *report_parts(report), sentence(verdict(report, plan)))
    return exit_code([report], work.signals.first)


def _update(
    call: Call, work: Change, wish: Wish, approved: SavedPlan | None, *, yes: bool
) -> tuple[UpdateReport, Plan] | int:
    require_nothing_open(work.session)
    host = call.kept_host()
    if approved is not None:
        _require_the_same(call, approved, host)
    plan = make_plan(call, host, wish) if approved is None else _planned_again(call, approved, host)
    code = approve(call, work, [plan], approved.guests if approved else wish.guests, yes=yes)
    if code is not None:
        return code
    report = carry_out(call, work, host, plan)
    return report if isinstance(report, int) else (report, plan)


def _update_host(call: Call, wish: Wish, *, yes: bool) -> int:
    component = wish.host_component()
    call = call.going_to(component, wish.to)
    components_of(call, component)
    with change(call, f"update {component}") as work:
        require_nothing_open(work.session)
        plans = make_plans(call, call.kept_host(), component, policies_of(call, wish.budget))
        code = approve_plans(call, work, plans, component, yes=yes)
        if code is not None:
            return code
        done = carry_out_plans(call, work, plans)
    if isinstance(done, int):
        return done
    reports = [report for report, _ in done]
    call.out.show({"updates": [report.to_json() for report in reports]}, *carried_parts(done, plans))
    return exit_code(reports, work.signals.first)


def _planned_again(call: Call, approved: SavedPlan, host: Host) -> Plan:
    return plan_qemu(
        host,
        choose_tree(host.qemu, approved.to),
        approved.guests or None,
        policies=approved.asking(policies_of(call, None)),
        past=past_of(call.updates()),
        technique=approved.technique,
        methods=approved.methods,
    )


def _require_the_same(call: Call, approved: SavedPlan, host: Host) -> None:
    """Raises Refused, with what has changed, unless the facts are those that the plan was made from."""
    changes = approved.changes(host, policies_of(call, None))
    if changes:
        raise Refused(
            "carrying out a saved plan",
            expected="host and guests as they were when it was saved",
            found="; ".join(changes),
            hint="plan again",
        )
