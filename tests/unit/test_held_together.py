"""Who has to be elsewhere while all guests of a host are held."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from test_update_domains import GUESTS

from hostagent.planning.held_together import who_leaves
from hostagent.planning.update_domains import Placed


@given(GUESTS)
def test_those_that_stay_may_be_disturbed_together(guests: list[Placed]) -> None:
    leaving = who_leaves(guests)
    for one, other in combinations([guest for guest in guests if guest.name not in leaving], 2):
        assert not one.availability_set or one.availability_set != other.availability_set or one.domain == other.domain
        assert other.name not in one.never_together
        assert one.name not in other.never_together


@given(GUESTS)
def test_nobody_leaves_without_need(guests: list[Placed]) -> None:
    known = {guest.name: guest for guest in guests}
    for name in who_leaves(guests):
        leaver, others = known[name], [guest for guest in guests if guest.name != name]
        assert any(
            (leaver.availability_set and other.availability_set == leaver.availability_set)
            or name in other.never_together
            or other.name in leaver.never_together
            for other in others
        )


def test_the_larger_update_domain_stays() -> None:
    guests = [Placed("a", "web", "1"), Placed("b", "web", "2"), Placed("c", "web", "2"), Placed("d")]
    assert who_leaves(guests) == {"a": "b, c, of availability set web and another update domain"}


def test_of_two_that_are_apart_the_more_important_one_stays() -> None:
    guests = [Placed("a", never_together=frozenset({"b"})), Placed("b", priority=1)]
    assert who_leaves(guests) == {"a": "b, with which it is never disturbed together"}
