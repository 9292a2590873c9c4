"""The order in which guests may be disturbed: what holds for any guests, and some that are easy to see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostagent.planning.update_domains import Placed, in_groups

NAMES = st.sampled_from([f"g{number}" for number in range(12)])
GUEST = st.builds(
    Placed,
    name=NAMES,
    availability_set=st.sampled_from(["", "db", "web"]),
    update_domain=st.sampled_from(["", "0", "1", "2", "10", "a", "b2", "02"]),
    never_together=st.frozensets(NAMES, max_size=3),
    priority=st.integers(-3, 3),
)
GUESTS = st.lists(GUEST, max_size=12, unique_by=lambda guest: guest.name)
LIMITS = st.integers(1, 13)


def together(guests: Sequence[Placed], groups: Sequence[Sequence[str]]) -> Iterator[tuple[Placed, Placed]]:
    """Every pair that is disturbed at the same time."""
    known = {guest.name: guest for guest in guests}
    for group in groups:
        yield from combinations([known[name] for name in group], 2)


@given(GUESTS, LIMITS)
def test_every_guest_has_its_turn_once(guests: list[Placed], limit: int) -> None:
    groups = in_groups(guests, limit)
    assert sorted(name for group in groups for name in group) == sorted(guest.name for guest in guests)
    assert all(1 <= len(group) <= limit for group in groups)


@given(GUESTS, LIMITS)
def test_two_update_domains_of_a_set_are_never_disturbed_together(guests: list[Placed], limit: int) -> None:
    for one, other in together(guests, in_groups(guests, limit)):
        if one.availability_set and one.availability_set == other.availability_set:
            assert one.update_domain == other.update_domain != ""


@given(GUESTS, LIMITS)
def test_an_update_domain_is_over_before_the_next_one_of_its_set_begins(guests: list[Placed], limit: int) -> None:
    known = {guest.name: guest for guest in guests}
    in_turn: dict[str, list[str]] = {}
    for group in in_groups(guests, limit):
        for guest in (known[name] for name in group):
            domain = guest.update_domain or f"of {guest.name} alone"
            seen = in_turn.setdefault(guest.availability_set, [])
            if guest.availability_set and domain not in seen[-1:]:
                assert domain not in seen
                seen.append(domain)


@given(GUESTS, LIMITS)
def test_who_may_not_be_together_is_not(guests: list[Placed], limit: int) -> None:
    for one, other in together(guests, in_groups(guests, limit)):
        assert other.name not in one.never_together
        assert one.name not in other.never_together


@given(GUESTS, LIMITS, st.randoms())
def test_it_does_not_depend_on_how_guests_are_listed(guests: list[Placed], limit: int, chance: object) -> None:
    mixed = list(guests)
    chance.shuffle(mixed)  # type: ignore[attr-defined]
    assert in_groups(mixed, limit) == in_groups(guests, limit)


@given(GUESTS)
def test_nobody_waits_without_a_reason(guests: list[Placed]) -> None:
    """Whoever is in no set, and may be with everybody, goes first if there is room."""
    free = {guest.name for guest in guests if not guest.availability_set and not guest.never_together}
    free -= {name for guest in guests for name in guest.never_together}
    groups = in_groups(guests, max(1, len(guests)))
    assert free <= set(groups[0] if groups else ())


def test_two_sets_side_by_side() -> None:
    guests = [
        *(Placed(f"db{number}", "db", str(number)) for number in (10, 9, 1)),
        *(Placed(f"web{number}", "web", str(number % 2)) for number in range(4)),
        Placed("alone"),
    ]
    assert in_groups(guests, 10) == (("alone", "db1", "web0", "web2"), ("db9", "web1", "web3"), ("db10",))


def test_priority_goes_first_within_an_update_domain() -> None:
    guests = [
        Placed("a", "db", "1"),
        Placed("b", "db", "1", priority=5),
        Placed("c", "db", "2", priority=9),
        Placed("d", priority=-1),
    ]
    assert in_groups(guests, 1) == (("b",), ("a",), ("c",), ("d",))


def test_without_update_domains_one_of_a_set_after_the_other() -> None:
    guests = [Placed("a", "db"), Placed("b", "db", priority=1), Placed("c", "db", "7")]
    assert in_groups(guests, 3) == (("c",), ("b",), ("a",))


def test_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="limit"):
        in_groups([], 0)
    with pytest.raises(ValueError, match="once"):
        in_groups([Placed("a"), Placed("a")], 1)
