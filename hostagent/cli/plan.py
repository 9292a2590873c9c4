"""hostagent plan: what an update would do; touches no guest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from hostagent.cli import plan_view
from hostagent.cli.common import Call, begin
from hostagent.cli.host_update import components_of, make_plans
from hostagent.cli.output import sentence
from hostagent.cli.verbs import Asked, verb
from hostagent.config import RollSettings, parse_duration
from hostagent.errors import ExitCode, Failed, UsageError
from hostagent.facts import Host
from hostagent.plan import Method, Plan, Technique
from hostagent.planning.guest_policy import Policies
from hostagent.planning.planner import choose_tree, plan_qemu
from hostagent.planning.rolling import Rolling, rolled
from hostagent.planning.saved_plan import SavedPlan
from hostagent.policy import BUDGET_LIMIT_SECONDS, PolicyPart
from hostagent.trees.qemu_trees import SYSTEM
from hostagent.update.files import read_private, replace
from hostagent.update.report import past_of


@dataclass(frozen=True)
class Wish:
    """What `plan` and `update` are both asked."""

    component: str | None
    to: str | None
    guests: tuple[str, ...]  # none named: all
    budget: str | None
    technique: str | None = None  # None: not said
    methods: tuple[Method, ...] = ()  # none named: all that policies allow
    max_unavailable: int | None = None  # guests that may be disturbed at once; 0: any number; None: not said
    canary: str | None = None
    copy_storage: bool = False  # False: as the settings have it

    @property
    def only_technique(self) -> Technique | None:
        """The one that was asked for; None leaves it to the plan."""
        return None if self.technique in (None, "auto") else Technique(self.technique)

    def rolling(self, settings: RollSettings) -> Rolling:
        """How careful to be, where nothing was said as the settings have it."""
        limit = settings.max_unavailable if self.max_unavailable is None else self.max_unavailable
        return Rolling(limit, self.canary or "")

    def host_component(self, **more: object) -> str:
        """The component, which concerns the whole host; UsageError for options that only QEMU has, as `more` are."""
        assert self.component is not None  # noqa: S101 - require_component() was asked
        given: dict[str, object] = {
            "--to": self.to if self.component not in ("kernel", "libvirtd") else None,
            "--guest": self.guests,
            "--technique": self.technique,
            "--method": self.methods,
            "--max-unavailable": self.max_unavailable is not None,
            "--canary": self.canary is not None,
            **more,
        }
        if wrong := [name for name, value in given.items() if value]:
            raise UsageError(
                "reading the command line",
                expected=f"no {wrong[0]} for {self.component}, which is swapped for the whole host",
                found=" and ".join(wrong),
            )
        return self.component

    def require_component(self, verb: str) -> None:
        """Raises UsageError when nobody said what is to be updated."""
        if self.component is None:
            raise UsageError(
                "reading the command line", found="Missing argument 'COMPONENT'.", hint=f"hostagent {verb} --help"
            )


def planning_options(function: Callable[..., int]) -> Callable[..., int]:
    """Gives `function` a Wish after what was Asked."""

    @wraps(function)
    def gather(
        asked: Asked,
        *,
        component: str | None,
        to: str | None,
        guests: tuple[str, ...],
        budget: str | None,
        technique: str | None,
        methods: tuple[str, ...],
        max_unavailable: int | None,
        canary: str | None,
        copy_storage: bool,
        **more: Any,
    ) -> int:
        only = tuple(Method(method) for method in methods)
        if canary == "":
            raise UsageError("reading --canary", expected="a guest's name, or how many go first", found="''")
        wish = Wish(component, to, guests, budget, technique, only, max_unavailable, canary, copy_storage)
        return function(asked, wish, **more)

    decorated: Callable[..., int] = gather
    for decorate in reversed(
        (
            click.argument("component", required=False, metavar="COMPONENT"),
            click.option("--to", metavar="VERSION", help="Version, or name of a tree; the system's own if not given."),
            click.option("--guest", "guests", multiple=True, metavar="NAME", help="This guest only; may be repeated."),
            click.option("--budget", metavar="TIME", help="Longest pause that a guest may see, like 10s or 500ms."),
            click.option(
                "--technique",
                type=click.Choice(["auto", *(one.value for one in Technique)]),
                help="How guests are carried over in place; auto: by a handover, else by a hold.",
            ),
            click.option(
                "--method",
                "methods",
                multiple=True,
                type=click.Choice([method.value for method in Method]),
                help="By this method only, where a guest's policy allows it; may be repeated.",
            ),
            click.option(
                "--max-unavailable",
                type=click.IntRange(0, 1000),
                metavar="N",
                help="At most so many guests at the same time; 0 is any number.",
            ),
            click.option("--canary", metavar="NAME|N", help="This guest first, alone; or so many of them."),
            click.option(
                "--copy-storage",
                is_flag=True,
                help="Copy disks that a peer does not see along with a guest that goes there (docs/migration.md).",
            ),
        )
    ):
        decorated = decorate(decorated)
    return decorated


def make_plan(call: Call, host: Host, wish: Wish) -> Plan:
    """The plan for what was asked, with the groups in which guests go."""
    policies = policies_of(call, wish.budget)
    plan = plan_for(call, host, wish, wish.guests or None)
    return rolled(plan, host, policies, wish.rolling(call.config.roll))


def plan_for(call: Call, host: Host, wish: Wish, guests: Sequence[str] | None) -> Plan:
    """The same for some of its guests, all of them at once."""
    return plan_qemu(
        host,
        choose_tree(host.qemu, SYSTEM if wish.to is None else wish.to),
        guests,
        policies=policies_of(call, wish.budget),
        past=past_of(call.updates()),
        technique=wish.only_technique,
        methods=wish.methods or None,
    )


def policies_of(call: Call, budget: str | None) -> Policies:
    """What is said of guests in the settings, and on the command line."""
    seconds = None if budget is None else budget_seconds(budget)
    return Policies(call.config.policy.layers(), PolicyPart(budget_seconds=seconds))


def budget_seconds(text: str) -> float:
    """What --budget says; UsageError when that is none."""
    seconds = parse_duration(text, "reading --budget")
    if seconds > BUDGET_LIMIT_SECONDS:
        raise UsageError("reading --budget", expected="at most 1h", found=text)
    return seconds


@verb("plan", example="hostagent plan qemu --to 10.0 --guest web1 --save web1.plan", operation="plan")
@planning_options
@click.option("--save", metavar="FILE", type=click.Path(path_type=Path), help="Keep it for: hostagent update --plan")
def plan(asked: Asked, wish: Wish, *, save: Path | None) -> int:
    """See what an update of COMPONENT would do to each guest; touches none.

    The QEMU that guests run on is kept, if it was not yet, so that there is a way back to it.

    Ends with exit code 3 when the update would be refused; such a plan is not saved.
    """
    wish.require_component("plan")
    if save is not None:
        require_folder(save)
    call = begin(asked)
    if wish.copy_storage:
        call = call.copying_storage()
    if wish.component != "qemu":
        return _plan_host(call, wish, save)
    host = call.kept_host()
    made = make_plan(call, host, wish)
    refused = plan_view.refusal(made, wish.guests)
    parts = plan_view.plan_parts(made, wish.guests)
    content = b""
    if save is not None and not refused:
        policies = policies_of(call, wish.budget)
        approved = SavedPlan.of(
            *(host, made.to, wish.guests, policies),
            technique=wish.only_technique,
            methods=wish.methods or None,
            rolling=wish.rolling(call.config.roll),
        )
        content, name = approved.written(), call.out.file_name
        if name is None:
            replace(save, content)
        parts.append(sentence(f"Saved. To carry it out: hostagent update --plan {name or save}"))
    call.out.show(plan_view.plan_json(made), *parts)
    if content and call.out.file_name is not None:
        call.out.attach(content)
    return ExitCode.REFUSED if refused else ExitCode.DONE


def _plan_host(call: Call, wish: Wish, save: Path | None) -> int:
    component = wish.host_component(**{"--save": save is not None})
    call = call.going_to(component, wish.to)
    components_of(call, component)
    made = make_plans(call, call.kept_host(), component, policies_of(call, wish.budget))
    call.out.show(made.to_json(), *made.parts())
    return ExitCode.REFUSED if made.refused else ExitCode.DONE


def require_folder(save: Path) -> None:
    """Raises UsageError when a plan cannot be saved there."""
    if save.is_dir():
        raise UsageError(f"saving the plan {save}", expected="the name of a file", found="a folder")
    if not save.absolute().parent.is_dir():
        raise UsageError(f"saving the plan {save}", expected="a folder that is there", found=f"no {save.parent}")


def saved_plan(path: Path) -> SavedPlan:
    """The plan in a file; UsageError when there is none."""
    try:
        return SavedPlan.read(str(path), read_private(path))
    except Failed as error:
        raise UsageError(f"reading the plan {path}", found=error.found, hint="hostagent plan --save") from error
