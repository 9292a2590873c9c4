"""Who cannot be held with all others: a swap for the whole host disturbs every guest on it at once. Pure.

A host that carries two update domains of one availability set cannot keep their promise in any order: all but one of
them have to be elsewhere meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from hostagent.planning.update_domains import Placed, are_apart


def who_leaves(guests: Sequence[Placed]) -> Mapping[str, str]:
    """The guests that must not be disturbed together with those that stay, by name, and with whom not, in words.

    Of each availability set the update domain with the most guests stays; of two guests that are never disturbed
    together the one of higher priority.
    """
    leaving: dict[str, str] = {}
    stays = _domains_that_stay(guests)
    for guest in guests:
        name = guest.availability_set
        if name and guest.domain != stays[name]:
            kept = [one.name for one in guests if one.availability_set == name and one.domain == stays[name]]
            leaving[guest.name] = f"{', '.join(kept)}, of availability set {name} and another update domain"
    staying: list[Placed] = []
    for guest in sorted(guests, key=lambda one: (-one.priority, one.name)):
        if guest.name in leaving:
            continue
        if apart := [one.name for one in staying if are_apart(guest, one)]:
            leaving[guest.name] = f"{', '.join(apart)}, with which it is never disturbed together"
        else:
            staying.append(guest)
    return leaving


def _domains_that_stay(guests: Sequence[Placed]) -> Mapping[str, tuple[str, str]]:
    """Of each availability set the update domain with the most guests; of equal ones the first by name."""
    stays = {}
    for name in {guest.availability_set for guest in guests if guest.availability_set}:
        counted = Counter(guest.domain for guest in guests if guest.availability_set == name)
        stays[name] = min(counted, key=lambda domain: (-counted[domain], domain))
    return stays
