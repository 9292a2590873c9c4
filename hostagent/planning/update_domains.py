"""In what order guests may be disturbed: groups, one after the other; pure.

Of one availability set only guests of one update domain are in a group, and the next update domain comes once the one
before it is done with. What goes by it is an update that rolls over a host, or over several.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_Domain = tuple[str, str]  # an update domain's name, and that of the guest that is one by itself


@dataclass(frozen=True)
class Placed:
    """A guest, and where it belongs."""

    name: str
    availability_set: str = ""  # "": none, and its update domain means nothing
    update_domain: str = ""  # "": one of its own
    never_together: frozenset[str] = frozenset()  # names of guests; it counts for both whoever says it
    priority: int = 0

    @property
    def domain(self) -> _Domain:
        """Its update domain, told apart from all others of its set."""
        return (self.update_domain, "") if self.update_domain else ("", self.name)


def in_groups(guests: Sequence[Placed], limit: int, first: str = "") -> tuple[tuple[str, ...], ...]:
    """The names of all guests, each in one group of at most `limit`.

    Update domains go in the order of their names, numbers by their value, and guests without one after them; within
    that those of higher priority go first, then by name. ValueError for a name that is there twice, or no limit.

    first: a guest that goes alone before all others; its update domain is then the first one of its set.
    """
    if limit < 1:
        raise ValueError("expected a limit of at least 1")
    if len({guest.name for guest in guests}) < len(guests):
        raise ValueError("expected each guest once")
    left = sorted(guests, key=lambda guest: (-guest.priority, guest.name))
    ahead = [guest for guest in left if guest.name == first]
    if first and not ahead:
        raise ValueError("expected the first one among the guests")
    begun = {guest.availability_set: guest.domain for guest in ahead if guest.availability_set}
    groups: list[tuple[str, ...]] = [(guest.name,) for guest in ahead]
    left = [guest for guest in left if guest not in ahead]
    while left:
        group = list(_next_group(left, limit, begun))
        groups.append(tuple(guest.name for guest in group))
        left = [guest for guest in left if guest not in group]
    return tuple(groups)


def _next_group(left: Sequence[Placed], limit: int, begun: Mapping[str, _Domain]) -> Iterator[Placed]:
    """Never empty: whoever is first of the first update domain of its set may go."""
    group: list[Placed] = []
    turn = _whose_turn(left, begun)
    for guest in left:
        waits = guest.availability_set and guest.domain != turn[guest.availability_set]
        if not waits and not any(are_apart(guest, other) for other in group):
            group.append(guest)
            yield guest
        if len(group) == limit:
            return


def _whose_turn(left: Sequence[Placed], begun: Mapping[str, _Domain]) -> dict[str, _Domain]:
    """Of each availability set the update domain that goes now: its first of which a guest is left.

    begun: those that come before all others of their sets, as one of them has gone already.
    """
    turn: dict[str, _Domain] = {}
    for guest in sorted(left, key=_turns_come, reverse=True):
        turn[guest.availability_set] = guest.domain
    for guest in left:
        if begun.get(guest.availability_set) == guest.domain:
            turn[guest.availability_set] = guest.domain
    return turn


def _turns_come(guest: Placed) -> tuple[bool, tuple[tuple[int, str], ...], str, int, str]:
    numbered = tuple(
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", guest.update_domain)
    )
    return not guest.update_domain, numbered, guest.update_domain, -guest.priority, guest.name


def are_apart(one: Placed, other: Placed) -> bool:
    """Whether one of them says that both are never disturbed together."""
    return other.name in one.never_together or one.name in other.never_together
