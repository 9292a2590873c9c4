"""hostagent guest show and set: how a guest may be updated, and where that is said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click

from hostagent import wiring
from hostagent.cli import words
from hostagent.cli.common import Call, begin, change
from hostagent.cli.output import Cell, Column, Part, sentence, table
from hostagent.cli.plan import budget_seconds, policies_of
from hostagent.cli.verbs import Asked, verb
from hostagent.errors import ExitCode, UsageError
from hostagent.facts import Guest
from hostagent.plan import ClockPolicy
from hostagent.planning.guest_policy import OWN, GuestPolicy
from hostagent.planning.planner import chosen_guests
from hostagent.policy import EXPECTED, Allowed, Policy, PolicyPart, Setting
from hostagent.policy_xml import read_policy
from hostagent.session import require_nothing_open

EVERYTHING = "all"
NOTHING = "none"
_COLUMNS = (Column("setting"), Column("value"), Column("from"))


@verb("show", example="hostagent guest show db1", operation="guest show")
@click.argument("name", metavar="NAME")
def show(asked: Asked, name: str) -> int:
    """See how a guest may be updated, and where each of it is said: in the guest's metadata, or the settings."""
    call = begin(asked)
    (guest,) = chosen_guests(call.host(), [name])
    call.out.show(*_shown(call, guest))
    return ExitCode.DONE


@verb(
    "set",
    example="hostagent guest set db1 --allow in-place --budget 2s --clock report\n"
    "hostagent guest set db1 --availability-set db --update-domain 1\n"
    "hostagent guest set db1 --never-together db2 --unset clock\n"
    "hostagent guest set old1 --allow reboot --boot-tcp 10.0.0.5:22",
    operation="guest set",
)
@click.argument("name", metavar="NAME")
@click.option("--allow", metavar="METHODS", help="Methods by which it may be updated, with commas between; or none.")
@click.option("--budget", metavar="TIME", help="Longest pause that it may see, like 10s or 500ms.")
@click.option(
    "--clock", type=click.Choice([one.value for one in ClockPolicy]), help="What becomes of its clock after a pause."
)
@click.option("--priority", type=int, metavar="NUMBER", help="Guests of a higher one go first; 0 is usual.")
@click.option("--availability-set", metavar="SET", help="Guests that do the same work, and stand in for one another.")
@click.option("--update-domain", metavar="DOMAIN", help="Which guests of its set may be disturbed together with it.")
@click.option(
    "--never-together", multiple=True, metavar="OTHER", help="No other guest at the same time; may be repeated."
)
@click.option("--boot-tcp", metavar="HOST:PORT", help="What answers once it has booted, if it has no agent.")
@click.option(
    "--unset",
    multiple=True,
    type=click.Choice([*(one.value for one in Setting), EVERYTHING]),
    help="Say nothing of it any more: the settings hold again; may be repeated.",
)
def set_policy(
    asked: Asked,
    name: str,
    *,
    allow: str | None,
    budget: str | None,
    clock: str | None,
    priority: int | None,
    availability_set: str | None,
    update_domain: str | None,
    never_together: tuple[str, ...],
    boot_tcp: str | None,
    unset: tuple[str, ...],
) -> int:
    """Say how a guest may be updated, in its libvirt metadata: live, and from its next boot on.

    What is not said here stays as it was.
    """
    wanted = PolicyPart(
        allow=None if allow is None else _methods(allow),
        budget_seconds=None if budget is None else budget_seconds(budget),
        clock=None if clock is None else ClockPolicy(clock),
        priority=priority,
        availability_set=_a_name(Setting.AVAILABILITY_SET, availability_set),
        update_domain=_a_name(Setting.UPDATE_DOMAIN, update_domain),
        never_together=frozenset(never_together) or None,
        boot_tcp=_a_name(Setting.BOOT_TCP, boot_tcp),
    )
    named = [Setting(one) for one in unset if one != EVERYTHING]
    _require_sense(name, wanted, named, unset)
    call = begin(asked)
    with change(call, "guest set") as work:
        require_nothing_open(work.session)
        (guest,) = chosen_guests(call.host(), [name])
        own = PolicyPart() if EVERYTHING in unset else read_policy(name, guest.definition.policy)
        _put(call, guest, wanted.over(own.without(named)))
        (guest,) = chosen_guests(call.host(), [name])
    call.out.show(*_shown(call, guest))
    return ExitCode.DONE


def _put(call: Call, guest: Guest, own: PolicyPart) -> None:
    libvirt = wiring.libvirt_of(call.config)
    try:
        libvirt.put_policy(guest.uuid, own)
    finally:
        libvirt.disconnect()


def _methods(text: str) -> frozenset[Allowed]:
    if text == NOTHING:
        return frozenset()
    try:
        return frozenset(Allowed(one.strip()) for one in text.split(","))
    except ValueError:
        expected = f"{EXPECTED[Setting.ALLOW]}, with commas between, or {NOTHING}"
        raise UsageError("reading --allow", expected=expected, found=repr(text)) from None


def _a_name(setting: Setting, text: str | None) -> str | None:
    if text == "":
        raise UsageError(f"reading --{setting}", expected=EXPECTED[setting], found="''", hint=f"--unset {setting}")
    return text


def _require_sense(name: str, wanted: PolicyPart, named: Sequence[Setting], unset: Sequence[str]) -> None:
    """Raises UsageError for words that nobody can do."""
    reading = "reading the command line"
    if wanted == PolicyPart() and not unset:
        raise UsageError(
            reading, expected="what to set, or --unset", found="neither", hint="hostagent guest set --help"
        )
    if (setting := wanted.wrong()) is not None:
        found = wanted.says(setting)
        shown = ", ".join(sorted(found)) if isinstance(found, frozenset) else found
        raise UsageError(f"reading --{setting}", expected=EXPECTED[setting], found=repr(shown))
    if both := [setting for setting in named if wanted.says(setting) is not None]:
        raise UsageError(reading, expected=f"--{both[0]} or --unset of it", found="both")
    if name in (wanted.never_together or ()):
        raise UsageError("reading --never-together", expected="another guest", found=repr(name))


def _shown(call: Call, guest: Guest) -> tuple[dict[str, object], *tuple[Part, ...]]:
    """For a program, and for a person; Refused when its own policy cannot be read."""
    held_to = policies_of(call, None).of(guest)
    if held_to.unreadable is not None:
        raise held_to.unreadable
    document: dict[str, object] = {
        "name": guest.name,
        "uuid": guest.uuid,
        "state": guest.state,
        "policy": {
            setting: {"value": _plain(held_to.policy, setting), "from": held_to.origins[setting]} for setting in Setting
        },
    }
    return document, sentence(f"{guest.name}: {guest.state}"), "", table(_COLUMNS, [*_rows(held_to)])


def _rows(held_to: GuestPolicy) -> Iterable[tuple[str | Cell, ...]]:
    for setting in Setting:
        origin = held_to.origins[setting]
        yield setting, _words(held_to.policy, setting), origin if origin == OWN else Cell(origin, "dim")


def _plain(policy: Policy, setting: Setting) -> object:
    value = getattr(policy, setting.field)
    if setting is Setting.ALLOW:
        return [one for one in Allowed if one in policy.allow]
    if isinstance(value, frozenset):
        return sorted(value)
    return value or None if isinstance(value, str) else value


def _words(policy: Policy, setting: Setting) -> str:
    value = _plain(policy, setting)
    if isinstance(value, float):
        return words.duration(value)
    if isinstance(value, list):
        return ", ".join(value) or (NOTHING if setting is Setting.ALLOW else words.NONE)
    return words.NONE if value is None else str(value)
