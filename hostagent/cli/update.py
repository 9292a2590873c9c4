"""hostagent update: brings guests onto another version while they run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from hostagent.cli.carry import approve
from hostagent.cli.common import Call, Change, begin, change
from hostagent.cli.host_update import approve_plans, carry_out_plans, components_of, make_plans, show_carried
from hostagent.cli.plan import Wish, make_plan, plan_for, planning_options, policies_of, saved_plan
from hostagent.cli.roll import Course, carry_out
from hostagent.cli.roll_view import show_one
from hostagent.cli.verbs import Asked, verb
from hostagent.config import DAY_SECONDS, parse_duration
from hostagent.errors import Refused, UsageError
from hostagent.facts import Host
from hostagent.plan import Plan
from hostagent.planning.planner import choose_tree, plan_qemu
from hostagent.planning.rolling import rolled
from hostagent.planning.saved_plan import SavedPlan
from hostagent.session import require_nothing_open
from hostagent.update.report import past_of
from hostagent.update.rolled import Rolled


@verb("update", example="hostagent update qemu --to 10.0 --guest web1 --guest db9 --budget 10s", operation="update")
@planning_options
@click.option(
    "--plan",
    "saved",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Carry out a saved plan; COMPONENT is left out then.",
)
@click.option("--keep-definition", is_flag=True, help="Leave definitions of guests whose RAM is copied as they are.")
@click.option("--wait", metavar="TIME", help="Between groups of guests, like 10m; 0s is not at all.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def update(asked: Asked, wish: Wish, *, saved: Path | None, keep_definition: bool, wait: str | None, yes: bool) -> int:
    """Bring guests onto another version of COMPONENT while they run, their RAM kept.

    RAM that is in no shared file is copied into one while the guest runs, once; later updates keep it there.

    All guests, unless some are named; those that cannot be updated are left out, and said. Ctrl-C stops it where
    that is safe: a guest that has not been resumed under the new version goes on as before. A saved plan is carried
    out only if the host and its guests are as they were when it was saved.

    Guests of one availability set in different update domains are never disturbed at the same time: they go in groups,
    each once the one before it is well. `plan` shows them.
    """
    seconds = None if wait is None else wait_seconds(wait)
    if saved is None:
        wish.require_component("update")
    elif wish != Wish(None, None, (), None):
        raise UsageError("reading the command line", expected="--plan FILE alone, or a wish in words", found="both")
    call = begin(asked)
    if keep_definition:
        call = call.keeping_definitions()
    if wish.copy_storage:
        call = call.copying_storage()
    if wish.component not in ("qemu", None):
        return _update_host(call, wish, wait, yes=yes)
    approved = saved_plan(saved) if saved else None
    if approved is not None and approved.copy_storage:
        call = call.copying_storage()
    with change(call, "update qemu") as work:
        done = _update(call, work, wish, approved, seconds, yes=yes)
    return done if isinstance(done, int) else show_one(call, done, work.signals.first)  # with the host no longer held


def wait_seconds(text: str) -> float:
    """What --wait says; UsageError when that is none."""
    if text.strip() in ("0", "0s"):
        return 0.0
    seconds = parse_duration(text, "reading --wait")
    if seconds > DAY_SECONDS:
        raise UsageError("reading --wait", expected="at most 24h", found=text)
    return seconds


def _update(
    call: Call, work: Change, wish: Wish, approved: SavedPlan | None, wait: float | None, *, yes: bool
) -> Rolled | int:
    require_nothing_open(work.session)
    host = call.kept_host()
    if approved is not None:
        _require_the_same(call, approved, host)
    if approved is None:
        plan, policies = make_plan(call, host, wish), policies_of(call, wish.budget)
    else:
        policies = approved.asking(policies_of(call, None))
        plan = rolled(_planned_again(call, approved, host, approved.guests), host, policies, approved.rolling)
    code = approve(call, work, [plan], approved.guests if approved else wish.guests, yes=yes)
    if code is not None:
        return code

    def replan(now: Host, names: Sequence[str]) -> list[Plan]:
        return [plan_for(call, now, wish, names) if approved is None else _planned_again(call, approved, now, names)]

    return carry_out(call, work, host, plan, Course(policies, replan, wait))


def _update_host(call: Call, wish: Wish, wait: str | None, *, yes: bool) -> int:
    component = wish.host_component(**{"--wait": wait is not None})
    call = call.going_to(component, wish.to)
    components_of(call, component)
    with change(call, f"update {component}") as work:
        require_nothing_open(work.session)
        policies = policies_of(call, wish.budget)
        made = make_plans(call, call.kept_host(), component, policies)
        code = approve_plans(call, work, made, yes=yes)
        if code is not None:
            return code
        done = carry_out_plans(call, work, made, policies)
    return done if isinstance(done, int) else show_carried(call, done, made, work.signals.first)


def _planned_again(call: Call, approved: SavedPlan, host: Host, names: Sequence[str]) -> Plan:
    return plan_qemu(
        host,
        choose_tree(host.qemu, approved.to),
        names or None,
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
