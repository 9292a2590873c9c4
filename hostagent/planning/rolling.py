"""How an update rolls over its guests: in which groups, one after the other, and what is left of a ladder; pure.

Guests that are in no availability set, and may be disturbed together with any, are one group unless a limit or a canary
was asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from hostagent.errors import UsageError
from hostagent.facts import Guest, Host
from hostagent.plan import GuestPlan, Method, Place, Plan, Verdict
from hostagent.planning.guest_policy import Policies
from hostagent.planning.update_domains import Placed, in_groups


@dataclass(frozen=True)
class Rolling:
    """How careful somebody wants it to be."""

    max_unavailable: int = 0  # guests that may be disturbed at the same time; 0: any number
    canary: str = ""  # the name of a guest that goes first, alone; or how many do; "": none


def rolled(plan: Plan, host: Host, policies: Policies, rolling: Rolling) -> Plan:
    """The plan with its groups. UsageError for a canary that is none of its guests, and no number either."""
    known = {guest.uuid: guest for guest in host.guests}
    placed = [place_of(known[guest.uuid], policies) for guest in plan.to_update]
    return replace(plan, groups=groups_of(placed, rolling))


def place_of(guest: Guest, policies: Policies) -> Placed:
    """Where a guest belongs, by what holds for it."""
    policy = policies.of(guest).policy
    return Placed(
        guest.name, policy.availability_set, policy.update_domain, policy.never_together, priority=policy.priority
    )


def groups_of(guests: Sequence[Placed], rolling: Rolling) -> tuple[tuple[str, ...], ...]:
    """The names of all guests, each in one group; UsageError as for rolled()."""
    if not guests:
        return ()
    limit = rolling.max_unavailable or len(guests)
    names = {guest.name for guest in guests}
    if not rolling.canary or rolling.canary in names:
        return in_groups(guests, limit, rolling.canary)
    in_turn = [name for group in in_groups(guests, 1) for name in group]
    ahead = set(in_turn[: _number_of_canaries(rolling.canary, names)])
    return (
        *in_groups([guest for guest in guests if guest.name in ahead], limit),
        *in_groups([guest for guest in guests if guest.name not in ahead], limit),
    )


def _number_of_canaries(canary: str, names: Collection[str]) -> int:
    if canary.isascii() and canary.isdecimal() and len(canary) < 10 and int(canary):
        return int(canary)
    raise UsageError(
        "reading --canary",
        expected=f"one of the guests that would be updated ({', '.join(sorted(names))}), or a number from 1",
        found=repr(canary),
    )


def part_of(plan: Plan, names: Collection[str], place: Place | None) -> Plan:
    """What the plan says of these guests alone, as an update of its own."""
    guests = tuple(guest for guest in plan.guests if guest.name in names)
    return replace(plan, guests=guests, groups=(), place=place)


def one_rung_lower(fresh: Plan, tried: Mapping[str, Method]) -> Plan:
    """Of a new plan those guests for which a way is left below what was tried last, with that way.

    tried: by uuid. Guests that are not to be updated any more are left out.
    """
    lower = [_lower(guest, tried[guest.uuid]) for guest in fresh.guests if guest.uuid in tried]
    return replace(fresh, guests=tuple(guest for guest in lower if guest is not None))


def _lower(guest: GuestPlan, tried: Method) -> GuestPlan | None:
    rungs = list(Method)  # the least disruptive first
    below = [way for way in guest.ways if not way.blockers and rungs.index(way.method) > rungs.index(tried)]
    if not below or guest.verdict is not Verdict.UPDATE:
        return None
    return guest.by(below[0])
