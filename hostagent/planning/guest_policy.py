"""What holds for each guest of a plan, and what of a plan that speaks against; pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from hostagent.errors import Refused
from hostagent.facts import Guest
from hostagent.plan import Blocker, Method, Reason
from hostagent.policy import Allowed, Layer, Policy, PolicyPart, Setting, merged
from hostagent.policy_xml import read_policy

OWN, ASKED = "its metadata", "the command line"


@dataclass(frozen=True)
class GuestPolicy:
    """What holds for a guest."""

    policy: Policy
    origins: Mapping[Setting, str]  # where each setting is from
    unreadable: Refused | None = None  # why its own policy is not in it


@dataclass(frozen=True)
class Policies:
    """What is said of guests besides what each says itself."""

    configured: tuple[Layer, ...] = ()  # the weakest first
    asked: PolicyPart = field(default_factory=PolicyPart)  # on the command line, of every guest

    def of(self, guest: Guest) -> GuestPolicy:
        """What holds for that guest; without its own policy where that cannot be read, which blocks it."""
        unreadable, own = None, PolicyPart()
        try:
            own = read_policy(guest.name, guest.definition.policy)
        except Refused as refused:
            unreadable = refused
        layers = (*self.configured, Layer(OWN, own), Layer(ASKED, self.asked))
        return GuestPolicy(*merged(guest.name, layers), unreadable)

    def keeping(self, part: PolicyPart) -> Policies:
        """The same with that asked for on the command line."""
        return replace(self, asked=part)

    def in_order(self, guests: Iterable[Guest]) -> tuple[Guest, ...]:
        """Those of higher priority first; guests of one priority stay in their order."""
        return tuple(sorted(guests, key=lambda guest: -self.of(guest).policy.priority))


def policy_blockers(guest: Guest, own: GuestPolicy, method: Method) -> tuple[Blocker, ...]:
    """Why its policy forbids that method, or cannot be asked."""
    if (refused := own.unreadable) is not None:
        expected, found = f"a policy that can be read: {refused.expected}", refused.found or ""
        return (Blocker(Reason.POLICY, expected, found, refused.hint or ""),)
    allow, wanted = own.policy.allow, Allowed(method)
    if wanted in allow:
        return ()
    there = ", ".join(name for name in Allowed if name in allow) or "none"
    more = ",".join(name for name in Allowed if name in {*allow, wanted})
    return (
        Blocker(
            Reason.POLICY,
            expected=f"a policy that allows {method}",
            found=f"one that allows {there} ({own.origins[Setting.ALLOW]})",
            hint=f"if its owner agrees: hostagent guest set {shlex.quote(guest.name)} --allow {more}",
        ),
    )
