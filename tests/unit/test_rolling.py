"""In which groups a plan's guests go: what holds for any guests, limits and canaries; and what is left of a ladder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import pytest
import sampled
from called import guest
from hypothesis import given
from hypothesis import strategies as st
from journals import NEW, OLD

from hostagent.errors import UsageError
from hostagent.plan import Blocker, GuestPlan, Method, Place, Plan, Reason, Technique, Verdict, Way
from hostagent.planning.guest_policy import Policies
from hostagent.planning.planner import plan_qemu
from hostagent.planning.rolling import Rolling, groups_of, one_rung_lower, part_of, rolled
from hostagent.planning.update_domains import Placed
from hostagent.policy import Layer, PolicyPart

NAMES = st.sampled_from([*(f"g{number}" for number in range(10)), "1", "2"])
GUEST = st.builds(
    Placed,
    name=NAMES,
    availability_set=st.sampled_from(["", "db", "web"]),
    update_domain=st.sampled_from(["", "0", "1", "2", "10", "a"]),
    never_together=st.frozensets(NAMES, max_size=3),
    priority=st.integers(-3, 3),
)
GUESTS = st.lists(GUEST, min_size=1, max_size=10, unique_by=lambda one: one.name)
LIMITS = st.integers(0, 11)


@st.composite
def wishes(draw: st.DrawFn) -> tuple[list[Placed], Rolling]:
    """Guests, and how careful somebody wants it to be."""
    guests = draw(GUESTS)
    canary = draw(st.sampled_from(["", *(str(number) for number in range(1, 13)), *(one.name for one in guests)]))
    return guests, Rolling(draw(LIMITS), canary)


def number_of_canaries(guests: Sequence[Placed], rolling: Rolling) -> int:
    if not rolling.canary:
        return 0
    return 1 if rolling.canary in {one.name for one in guests} else min(int(rolling.canary), len(guests))


@given(wishes())
def test_every_guest_has_its_turn_once(wish: tuple[list[Placed], Rolling]) -> None:
    guests, rolling = wish
    groups = groups_of(guests, rolling)
    assert sorted(name for group in groups for name in group) == sorted(one.name for one in guests)
    assert all(groups)


@given(wishes())
def test_no_more_than_the_limit_are_disturbed_at_once(wish: tuple[list[Placed], Rolling]) -> None:
    guests, rolling = wish
    assert all(len(group) <= (rolling.max_unavailable or len(guests)) for group in groups_of(guests, rolling))


@given(wishes())
def test_two_update_domains_of_a_set_are_never_together_and_nobody_is_beside_whom_he_must_not_be(
    wish: tuple[list[Placed], Rolling],
) -> None:
    guests, rolling = wish
    known = {one.name: one for one in guests}
    for group in groups_of(guests, rolling):
        for one, other in combinations([known[name] for name in group], 2):
            if one.availability_set and one.availability_set == other.availability_set:
                assert one.update_domain == other.update_domain != ""
            assert other.name not in one.never_together
            assert one.name not in other.never_together


@given(wishes())
def test_an_update_domain_is_over_before_the_next_one_of_its_set_begins(wish: tuple[list[Placed], Rolling]) -> None:
    """With a canary too."""
    guests, rolling = wish
    known = {one.name: one for one in guests}
    in_turn: dict[str, list[str]] = {}
    for one in (known[name] for group in groups_of(guests, rolling) for name in group):
        domain = one.update_domain or f"of {one.name} alone"
        seen = in_turn.setdefault(one.availability_set, [])
        if one.availability_set and domain not in seen[-1:]:
            assert domain not in seen
            seen.append(domain)


@given(wishes())
def test_canaries_go_first_and_nobody_with_them(wish: tuple[list[Placed], Rolling]) -> None:
    guests, rolling = wish
    groups, wanted = groups_of(guests, rolling), number_of_canaries(guests, rolling)
    if rolling.canary in {one.name for one in guests}:
        assert groups[0] == (rolling.canary,)
    sizes = [len(group) for group in groups]
    assert wanted in [sum(sizes[:number]) for number in range(len(sizes) + 1)]


@given(st.lists(st.builds(Placed, name=NAMES, priority=st.integers(-3, 3)), max_size=9, unique_by=lambda one: one.name))
def test_who_uses_none_of_it_goes_at_once(guests: list[Placed]) -> None:
    assert len(groups_of(guests, Rolling())) == (1 if guests else 0)


def test_a_canary_s_update_domain_is_the_first_of_its_set() -> None:
    guests = [Placed(f"db{number}", "db", str(number // 2)) for number in range(6)]
    assert groups_of(guests, Rolling(canary="db4")) == (("db4",), ("db5",), ("db0", "db1"), ("db2", "db3"))
    assert groups_of(guests, Rolling(canary="3")) == (("db0", "db1"), ("db2",), ("db3",), ("db4", "db5"))


def test_a_name_that_is_a_number_is_a_name() -> None:
    assert groups_of([Placed("a"), Placed("b"), Placed("2")], Rolling(canary="2")) == (("2",), ("a", "b"))


@pytest.mark.parametrize("canary", ["nobody", "0", "-1", "1.5", "²", "9" * 5000])
def test_a_canary_that_is_neither(canary: str) -> None:
    with pytest.raises(UsageError, match="expected one of the guests that would be updated"):
        groups_of([Placed("a")], Rolling(canary=canary))
    assert groups_of([], Rolling(canary=canary)) == ()  # there is nothing to do anyway


# -- of a plan


def test_groups_are_made_of_guests_that_are_updated_by_what_holds_for_each() -> None:
    host = sampled.host(qemu=(OLD, NEW), guests=(guest("db1"), guest("db2"), guest("web"), guest("done", qemu=NEW)))
    policies = Policies(
        tuple(
            Layer("", PolicyPart(availability_set="db", update_domain=domain), name)
            for name, domain in (("db1", "2"), ("db2", "1"))
        )
    )
    plan = rolled(plan_qemu(host, NEW, None, policies=policies), host, policies, Rolling())
    assert plan.groups == (("db2", "web"), ("db1",))
    part = part_of(plan, plan.groups[0], Place("r", 1, 2))
    assert [one.name for one in part.guests] == ["db2", "web"]
    assert (part.groups, part.place, part.to) == ((), Place("r", 1, 2), NEW)


# -- down the ladder

AGAINST = Blocker(Reason.POLICY, "one thing", "another")


def planned(*ways: Way, verdict: Verdict = Verdict.UPDATE) -> Plan:
    first = next((way for way in ways if not way.blockers), ways[0])
    one = GuestPlan("web1", "u", verdict, first.method, first.technique, OLD, (), 30.0, ways=ways)
    return Plan("qemu", NEW, (one,), ())


IN_PLACE = Way(Method.IN_PLACE, Technique.HANDOVER, None, ())
MIGRATE = Way(Method.LIVE_MIGRATE, None, None, (), peer="other")
REBOOT = Way(Method.REBOOT, None, None, ())


def test_the_next_rung_that_nothing_is_against() -> None:
    (lower,) = one_rung_lower(planned(IN_PLACE, MIGRATE, REBOOT), {"u": Method.IN_PLACE}).guests
    assert (lower.method, lower.technique, lower.peer) == (Method.LIVE_MIGRATE, None, "other")
    barred = replace(MIGRATE, blockers=(AGAINST,))
    (lower,) = one_rung_lower(planned(IN_PLACE, barred, REBOOT), {"u": Method.IN_PLACE}).guests
    assert (lower.method, lower.peer) == (Method.REBOOT, "")


@pytest.mark.parametrize(
    ("plan", "tried"),
    [
        (planned(IN_PLACE, MIGRATE, REBOOT), {"u": Method.REBOOT}),
        (planned(IN_PLACE), {"u": Method.IN_PLACE_COPY}),  # what is above is not tried again
        (planned(IN_PLACE, REBOOT, verdict=Verdict.NOT_RUNNING), {"u": Method.IN_PLACE}),
        (planned(IN_PLACE, replace(REBOOT, blockers=(AGAINST,))), {"u": Method.IN_PLACE}),
        (planned(IN_PLACE, REBOOT), {"somebody else": Method.IN_PLACE}),
    ],
)
def test_nothing_is_left(plan: Plan, tried: dict[str, Method]) -> None:
    assert one_rung_lower(plan, tried).guests == ()
