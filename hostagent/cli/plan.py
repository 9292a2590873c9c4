"""hostagent plan: what an update would do; changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import click

from hostagent.cli import plan_view
from hostagent.cli.common import Call, begin
from hostagent.cli.verbs import Asked, verb
from hostagent.config import parse_duration
from hostagent.errors import ExitCode, UsageError
from hostagent.facts import Host
from hostagent.plan import Plan
from hostagent.planning.planner import choose_tree, plan_qemu

BUDGET_LIMIT_SECONDS = 3600.0  # as in the settings


@dataclass(frozen=True)
class Wish:
    """What `plan` and `update` are both asked."""

    component: str
    to: str
    guests: tuple[str, ...]  # none named: all
    budget: str | None


def planning_options(function: Callable[..., int]) -> Callable[..., int]:
    """Gives `function` a Wish after what was Asked."""

    @wraps(function)
    def gather(
        asked: Asked, *, component: str, to: str, guests: tuple[str, ...], budget: str | None, **more: Any
    ) -> int:
        return function(asked, Wish(component, to, guests, budget), **more)

    decorated: Callable[..., int] = gather
    for decorate in reversed(
        (
            click.argument("component", type=click.Choice(["qemu"])),
            click.option("--to", required=True, metavar="VERSION", help="Version, or name of a tree (qemu list)."),
            click.option("--guest", "guests", multiple=True, metavar="NAME", help="This guest only; may be repeated."),
            click.option("--budget", metavar="TIME", help="Longest pause that a guest may see, like 10s or 500ms."),
        )
    ):
        decorated = decorate(decorated)
    return decorated


def make_plan(call: Call, host: Host, wish: Wish) -> Plan:
    """The plan for what was asked."""
    seconds = budget_of(call, wish.budget)
    return plan_qemu(host, choose_tree(host.qemu, wish.to), wish.guests or None, budget_seconds=seconds)


def budget_of(call: Call, text: str | None) -> float:
    """What was asked for, or the configuration's; seconds."""
    if text is None:
        return call.config.update.budget_seconds
    seconds = parse_duration(text)
    if seconds > BUDGET_LIMIT_SECONDS:
        raise UsageError("reading --budget", expected="at most 1h", found=text)
    return seconds


@verb("plan", example="hostagent plan qemu --to 10.0 --guest web1")
@planning_options
def plan(asked: Asked, wish: Wish) -> int:
    """See what an update of COMPONENT would do to each guest; changes nothing.

    Ends with exit code 3 when the update would be refused.
    """
    call = begin(asked)
    made = make_plan(call, call.host(), wish)
    call.out.show(plan_view.plan_json(made), *plan_view.plan_parts(made, wish.guests))
    return ExitCode.REFUSED if plan_view.refusal(made, wish.guests) else ExitCode.DONE
