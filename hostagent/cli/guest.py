"""hostagent guest: what can be done to one guest by itself."""

from __future__ import annotations

from collections.abc import Sequence

import click

from hostagent import wiring
from hostagent.cli.carry import approve
from hostagent.cli.common import Call, Change, begin, change
from hostagent.cli.output import Part, sentence
from hostagent.cli.plan import policies_of
from hostagent.cli.roll import Course, carry_out_all
from hostagent.cli.roll_view import show_all
from hostagent.cli.verbs import Asked, Verbs, verb
from hostagent.errors import ExitCode, UsageError
from hostagent.facts import Guest, Host
from hostagent.plan import Plan
from hostagent.planning.guest_policy import Policies
from hostagent.planning.planner import chosen_guests, plan_adoption
from hostagent.planning.rolling import Rolling, rolled
from hostagent.session import require_nothing_open
from hostagent.update.report import past_of
from hostagent.update.rolled import Rolled

_PLACES = {
    "adopt": ("hostagent.cli.guest:adopt", "Put its RAM into a shared file while it runs."),
    "show": ("hostagent.cli.guest_policy:show", "See how it may be updated, and where that is said."),
    "set": ("hostagent.cli.guest_policy:set_policy", "Say how it may be updated, in its libvirt metadata."),
}


@click.group("guest", cls=Verbs, places=_PLACES)
def guest() -> None:
    """What can be done to one guest by itself."""


@verb("adopt", example="hostagent guest adopt web1\nhostagent guest adopt web1 --next-boot")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--next-boot", is_flag=True, help="Only change its persistent definition; it gets such RAM as it boots.")
@click.option("--keep-definition", is_flag=True, help="Leave its persistent definition as it is.")
@click.option("--budget", metavar="TIME", help="Longest pause that a guest may see, like 10s or 500ms.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def adopt(
    asked: Asked, names: tuple[str, ...], *, next_boot: bool, keep_definition: bool, budget: str | None, yes: bool
) -> int:
    """Put the RAM of guests into shared files, so that their next updates keep it.

    It is copied while the guest runs, onto the same QEMU; updates do that by themselves the first time. The
    persistent definition is changed too, so that the guest has such RAM after its next boot.
    """
    if next_boot and keep_definition:
        raise UsageError("reading the command line", expected="--next-boot or --keep-definition", found="both")
    call = begin(asked)
    if keep_definition:
        call = call.keeping_definitions()
    if next_boot:
        return _at_next_boot(call, names)
    with change(call, "guest adopt") as work:
        require_nothing_open(work.session)
        done = _adopt(call, work, names, policies_of(call, budget), yes=yes)
    return done if isinstance(done, int) else show_all(call, done, work.signals.first)


def _adopt(call: Call, work: Change, names: Sequence[str], policies: Policies, *, yes: bool) -> list[Rolled] | int:
    host = call.kept_host()
    past, rolling = past_of(call.updates()), Rolling(call.config.roll.max_unavailable)

    def adopting(now: Host, some: Sequence[str] | None) -> tuple[Plan, ...]:
        return plan_adoption(now, names if some is None else some, policies=policies, past=past)

    plans = [rolled(plan, host, policies, rolling) for plan in adopting(host, None)]
    code = approve(call, work, plans, names, yes=yes)
    return code if code is not None else carry_out_all(call, work, host, plans, Course(policies, adopting))


def _at_next_boot(call: Call, names: Sequence[str]) -> int:
    with change(call, "guest adopt"):
        chosen = chosen_guests(call.host(), names)
        if transient := [guest.name for guest in chosen if not guest.persistent]:
            raise UsageError(
                "changing definitions",
                expected="guests that have a persistent one",
                found=f"{', '.join(transient)}: transient",
                hint="hostagent guest adopt, without --next-boot",
            )
        libvirt = wiring.libvirt_of(call.config)
        try:
            changed = {guest.name: libvirt.adopt_definition(guest.uuid) for guest in chosen}
        finally:
            libvirt.disconnect()
    call.out.show(
        {"guests": [{"name": guest.name, "changed": changed[guest.name]} for guest in chosen]},
        *(_said(guest, changed=changed[guest.name]) for guest in chosen),
    )
    return ExitCode.DONE


def _said(guest: Guest, *, changed: bool) -> Part:
    when = "from its next boot on" if guest.state.active else "as it boots"
    if not changed:
        return sentence(f"{guest.name}: has its RAM in a shared file {when} already.")
    return sentence(f"{guest.name}: has its RAM in a shared file {when}.", "good")
