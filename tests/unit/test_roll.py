"""A roll: its order, what stops it, whom that leaves untouched, and how it goes down ladders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
from journals import NEW, OLD, Writer

from hostagent.errors import Failed, HostagentError, NeedsOperator, Refused
from hostagent.facts import GuestState
from hostagent.plan import Blocker, GuestPlan, Method, Place, Plan, Reason, Technique, Verdict, Way
from hostagent.planning.health import Before, Complaint, Health, Sign
from hostagent.update.journal import Outcome, UpdateRecord
from hostagent.update.roll import Doors, roll
from hostagent.update.rolled import Rolled, Stop

U, R, G, L, N = (Outcome.UPDATED, Outcome.ROLLED_BACK, Outcome.GONE, Outcome.LOST, Outcome.NEEDS_OPERATOR)
IN_PLACE = Way(Method.IN_PLACE, Technique.HANDOVER, None, ())
REBOOT = Way(Method.REBOOT, None, None, ())
ILL = Health((Complaint("a", Sign.TCP, "an answer", "none"),))


def guest(name: str, *ways: Way) -> GuestPlan:
    return GuestPlan(
        *(name, f"uuid of {name}", Verdict.UPDATE, Method.IN_PLACE, Technique.HANDOVER, OLD, (), 30.0),
        ways=ways or (IN_PLACE,),
    )


def plan(*groups: Sequence[str], ways: tuple[Way, ...] = ()) -> Plan:
    names = [name for group in groups for name in group]
    return Plan("qemu", NEW, tuple(guest(name, *ways) for name in names), (), groups=tuple(map(tuple, groups)))


@dataclass
class World:
    """Carries out what it is told to, and remembers."""

    plan: Plan
    ends: dict[tuple[str, Method], Outcome | HostagentError] = field(default_factory=dict)  # all others are updated
    health: list[Health] = field(default_factory=list)  # what each look at a group finds; then all is well
    changed: dict[str, GuestPlan | None] = field(default_factory=dict)  # guests that are not as planned any more
    has_checks: bool = False
    now: float = 0.0
    did: list[str] = field(default_factory=list)
    places: list[Place | None] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    notes: list[tuple[str, Stop, str]] = field(default_factory=list)
    cancelled_at: Callable[[World], bool] = lambda _: False
    blockers: tuple[Blocker, ...] = ()

    def roll(self, wait_seconds: float = 0.0) -> Rolled:
        doors = Doors(
            carry=self._carry,
            replan=self._replan,
            gate=self,
            note=lambda *words: self.notes.append(words),
            tell=lambda _key, _step, words: self.said.append(words),
            cancelled=lambda: self.cancelled_at(self),
            pause=self._pause,
            monotonic=lambda: self.now,
        )
        return roll(doors, self.plan, roll_id="r1", wait_seconds=wait_seconds)

    def _pause(self, seconds: float) -> None:
        self.now += seconds

    def _carry(self, part: Plan) -> UpdateRecord:
        self.did.append(" ".join(f"{one.name}:{one.method}" for one in part.to_update))
        self.places.append(part.place)
        ends = [self.ends.get((one.name, one.method or Method.IN_PLACE), U) for one in part.to_update]
        for end in ends:
            if isinstance(end, HostagentError):
                raise end
        writer, update = Writer(), f"u{len(self.did)}"
        writer.begin(update, *(one.name for one in part.to_update))
        for one, end in zip(part.to_update, ends, strict=True):
            assert isinstance(end, Outcome)
            writer.end_guest(update, one.name, end, "" if end is U else f"{one.name}: it would not")
        if N not in ends:
            writer.end(update, U if set(ends) == {U} else R)
        return writer.records()[0]

    def _replan(self, names: Sequence[str]) -> Plan:
        known = {one.name: one for one in self.plan.guests}
        found = [self.changed.get(name, known[name]) for name in names]
        return replace(
            self.plan, guests=tuple(one for one in found if one), groups=(), blockers=self.blockers if self.did else ()
        )

    # -- the gate

    def has_checks_for(self, names: Sequence[str]) -> bool:
        return self.has_checks

    def before(self, guests: Sequence[GuestPlan]) -> tuple[Before, ...]:
        return tuple(Before(one.name, one.uuid, GuestState.RUNNING, answered=True) for one in guests)

    def after(self, before: Sequence[Before], updates: Sequence[UpdateRecord]) -> Health:
        assert {one.uuid for one in before} == {uuid for update in updates for uuid in update.guests}
        self.did.append(f"look at {' '.join(one.name for one in before)}")
        return self.health.pop(0) if self.health else Health()


def ended(rolled: Rolled) -> dict[str, Outcome | None]:
    return {one.plan.name: one.record.outcome for one in rolled.last}


# -- in order


def test_group_after_group_each_once_the_one_before_is_well() -> None:
    world = World(plan(["a", "b"], ["c"]))
    rolled = world.roll()
    assert world.did == ["a:in-place b:in-place", "look at a b", "c:in-place", "look at c"]
    assert world.places == [Place("r1", 1, 2), Place("r1", 2, 2)]
    assert world.said == [
        *("group 1 of 2: a, b", "is group 1 of 2 well?", "group 2 of 2: c", "is group 2 of 2 well?"),
    ]
    assert (rolled.stop, rolled.reason, rolled.untouched, rolled.used_lower_rung) == (None, "", (), False)
    assert ended(rolled) == {"a": U, "b": U, "c": U}
    assert world.notes == []


@pytest.mark.parametrize("groups", [([["a", "b"]]), ([])])
def test_one_group_is_one_update_as_ever(groups: list[list[str]]) -> None:
    world = World(replace(plan(["a", "b"]), groups=tuple(map(tuple, groups))))
    rolled = world.roll(wait_seconds=100.0)
    assert world.did == ["a:in-place b:in-place"]
    assert (world.places, world.said, world.now, rolled.is_plain) == ([None], [], 0.0, True)


def test_one_group_that_the_settings_ask_something_about_is_looked_at() -> None:
    world = World(plan(["a", "b"]), has_checks=True, health=[ILL])
    rolled = world.roll()
    assert world.did == ["a:in-place b:in-place", "look at a b"]
    assert (rolled.stop, rolled.untouched, rolled.is_plain) == (Stop.UNHEALTHY, (), False)


def test_it_waits_between_groups_and_looks_again() -> None:
    world = World(plan(["a"], ["b"], ["c"]))
    world.roll(wait_seconds=60.0)
    assert world.now == pytest.approx(120.0)
    assert world.said[2] == "waiting for 60 s before group 2 of 3"
    looks = [did for did in world.did if did.startswith("look")]
    assert looks == ["look at a", "look at a", "look at b", "look at b", "look at c"]


# -- what stops it


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (R, "b: rolled back (it would not)"),
        (G, "b: gone (it would not)"),
        (L, "b: lost (it would not)"),
        (N, "b: needs operator (it would not)"),
    ],
)
def test_a_guest_that_is_not_updated_stops_it(outcome: Outcome, words: str) -> None:
    world = World(plan(["a", "b"], ["c"], ["d", "e"]), {("b", Method.IN_PLACE): outcome})
    rolled = world.roll()
    assert world.did == ["a:in-place b:in-place"]
    assert (rolled.stop, rolled.reason) == (Stop.FAILED, f"group 1 of 3: {words}")
    assert rolled.untouched == ("c", "d", "e")
    assert world.notes == [("u1", Stop.FAILED, rolled.reason)]


def test_guests_that_are_not_well_stop_it() -> None:
    world = World(plan(["a"], ["b"]), health=[ILL])
    rolled = world.roll()
    assert world.did == ["a:in-place", "look at a"]
    assert rolled.reason == "group 1 of 2 is not well: a: expected an answer, found none"
    assert (rolled.stop, rolled.untouched) == (Stop.UNHEALTHY, ("b",))
    assert world.notes == [("u1", Stop.UNHEALTHY, rolled.reason)]


def test_guests_that_are_not_well_any_more_after_the_wait_stop_it() -> None:
    world = World(plan(["a"], ["b"]), health=[Health(), ILL])
    rolled = world.roll(wait_seconds=60.0)
    assert (rolled.stop, rolled.untouched) == (Stop.UNHEALTHY, ("b",))


def test_the_last_group_is_looked_at_too() -> None:
    world = World(plan(["a"], ["b"]), health=[Health(), ILL])
    rolled = world.roll()
    assert (rolled.stop, rolled.untouched) == (Stop.UNHEALTHY, ())
    assert ended(rolled) == {"a": U, "b": U}


@pytest.mark.parametrize("error", [Failed("rehearsing", found="it left"), Refused("updating", found="no hook")])
def test_an_update_that_does_not_begin(error: HostagentError) -> None:
    """Before anything was touched it is an error as ever; later it stops the roll."""
    world = World(plan(["a"], ["b"]), {("a", Method.IN_PLACE): error})
    with pytest.raises(type(error)):
        world.roll()
    world = World(plan(["a"], ["b"], ["c"]), {("b", Method.IN_PLACE): error})
    rolled = world.roll()
    assert (rolled.stop, rolled.error, rolled.untouched) == (Stop.FAILED, error, ("b", "c"))
    assert rolled.reason == f"group 2 of 3: {error}"


def test_an_update_of_which_nobody_knows_how_it_ended() -> None:
    """Its guests are not called untouched."""
    error = NeedsOperator("writing down how the update ended")
    rolled = World(plan(["a"], ["b"], ["c"]), {("b", Method.IN_PLACE): error}).roll()
    assert (rolled.stop, rolled.error, rolled.untouched) == (Stop.FAILED, error, ("c",))


# -- what has changed meanwhile

AGAINST = Blocker(Reason.JOB, "no job", "a backup")


def test_later_groups_are_planned_anew() -> None:
    changed = replace(guest("b"), budget_seconds=1.0)
    world = World(plan(["a"], ["b"]), changed={"b": changed})
    assert [done.plan.to_update for done in world.roll().updates][1] == (changed,)


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (replace(guest("b"), verdict=Verdict.NOT_RUNNING), "not running"),
        (replace(guest("b"), verdict=Verdict.UP_TO_DATE), "up to date"),
        (None, "gone"),
    ],
)
def test_a_guest_that_has_nothing_to_be_done_any_more_is_passed_over(now: GuestPlan | None, why: str) -> None:
    world = World(plan(["a"], ["b"], ["c"]), changed={"b": now})
    rolled = world.roll()
    assert [did for did in world.did if did[1] == ":"] == ["a:in-place", "c:in-place"]
    assert [(one.name, one.why) for one in rolled.passed_over] == [("b", why)]
    assert (rolled.stop, rolled.untouched) == (None, ())


def test_a_guest_that_cannot_be_updated_any_more_stops_it() -> None:
    blocked = replace(guest("b"), verdict=Verdict.BLOCKED, blockers=(AGAINST,))
    rolled = World(plan(["a"], ["b", "c"]), changed={"b": blocked}).roll()
    assert rolled.reason == "group 2 of 2: b cannot be updated any more: expected no job, found a backup"
    assert (rolled.stop, rolled.untouched) == (Stop.FAILED, ("b", "c"))


def test_a_host_that_has_something_against_it_by_now_stops_it() -> None:
    rolled = World(plan(["a"], ["b"]), blockers=(AGAINST,)).roll()
    assert (rolled.stop, rolled.untouched) == (Stop.FAILED, ("b",))


# -- down the ladder


def test_a_guest_whose_update_was_undone_goes_on_down_its_ladder() -> None:
    world = World(plan(["a", "b"], ["c"], ways=(IN_PLACE, REBOOT)), {("b", Method.IN_PLACE): R})
    rolled = world.roll()
    assert world.did == ["a:in-place b:in-place", "b:reboot", "look at a b", "c:in-place", "look at c"]
    assert world.places[1] == Place("r1", 1, 2)
    assert "further down the ladder: b by reboot" in world.said
    assert (rolled.stop, rolled.used_lower_rung) == (None, True)
    lower = [(one.plan.name, one.method, planned) for one, planned in rolled.lower_rungs]
    assert lower == [("b", Method.REBOOT, Method.IN_PLACE)]
    assert ended(rolled) == {"a": U, "b": U, "c": U}


def test_in_a_single_group_too() -> None:
    world = World(plan(["a"], ways=(IN_PLACE, REBOOT)), {("a", Method.IN_PLACE): R})
    rolled = world.roll()
    assert (world.did, rolled.is_plain) == (["a:in-place", "a:reboot"], False)
    assert world.places == [Place("r1", 1, 1)] * 2
    assert (rolled.stop, rolled.used_lower_rung) == (None, True)


def test_each_rung_once_and_then_it_stops() -> None:
    migrate = Way(Method.LIVE_MIGRATE, None, None, (), peer="p")
    world = World(
        plan(["a"], ["b"], ways=(IN_PLACE, migrate, REBOOT)),
        {("a", method): R for method in (Method.IN_PLACE, Method.LIVE_MIGRATE, Method.REBOOT)},
    )
    rolled = world.roll()
    assert world.did == ["a:in-place", "a:live-migrate", "a:reboot"]
    assert (rolled.stop, rolled.untouched, rolled.used_lower_rung) == (Stop.FAILED, ("b",), False)


def test_a_rung_that_is_blocked_by_now_is_not_taken() -> None:
    barred = guest("a", IN_PLACE, replace(REBOOT, blockers=(AGAINST,)))
    world = World(plan(["a"], ways=(IN_PLACE, REBOOT)), {("a", Method.IN_PLACE): R}, changed={"a": barred})
    assert world.roll().stop is Stop.FAILED
    assert world.did == ["a:in-place"]


def test_a_guest_that_needs_a_person_keeps_others_from_being_touched_again() -> None:
    world = World(plan(["a", "b"], ways=(IN_PLACE, REBOOT)), {("a", Method.IN_PLACE): R, ("b", Method.IN_PLACE): N})
    rolled = world.roll()
    assert (world.did, rolled.stop) == (["a:in-place b:in-place"], Stop.FAILED)


def test_the_lower_rung_fails_before_it_begins() -> None:
    error = Refused("updating", found="no hook")
    world = World(plan(["a"], ways=(IN_PLACE, REBOOT)), {("a", Method.IN_PLACE): R, ("a", Method.REBOOT): error})
    rolled = world.roll()
    assert (rolled.stop, rolled.error, ended(rolled)) == (Stop.FAILED, error, {"a": R})


# -- asked to stop


@pytest.mark.parametrize(
    ("after", "untouched"),
    [("a:in-place", ("b", "c")), ("look at a", ("b", "c")), ("b:in-place", ("c",)), ("look at b", ("c",))],
)
def test_at_each_boundary(after: str, untouched: tuple[str, ...]) -> None:
    world = World(plan(["a"], ["b"], ["c"]), cancelled_at=lambda world: after in world.did)
    rolled = world.roll()
    assert (rolled.stop, rolled.reason, rolled.untouched) == (Stop.CANCELLED, "somebody asked to stop", untouched)
    assert set(ended(rolled).values()) == {U}


def test_while_it_waits() -> None:
    world = World(plan(["a"], ["b"]), cancelled_at=lambda world: world.now >= 5)
    rolled = world.roll(wait_seconds=60.0)
    assert (rolled.stop, rolled.untouched) == (Stop.CANCELLED, ("b",))
    assert world.now == pytest.approx(5.0)


def test_as_the_last_group_is_updated_it_is_done() -> None:
    world = World(plan(["a"], ["b"]), cancelled_at=lambda world: "b:in-place" in world.did)
    assert world.roll().stop is None


def test_what_is_found_by_a_look_that_was_broken_off_means_nothing() -> None:
    world = World(plan(["a"], ["b"]), health=[ILL], cancelled_at=lambda world: "look at a" in world.did)
    rolled = world.roll()
    assert (rolled.stop, rolled.untouched) == (Stop.CANCELLED, ("b",))
    assert rolled.reason == "somebody asked to stop before it was known whether group 1 of 2 is well"


def test_a_guest_that_was_undone_for_it_does_not_go_down_its_ladder() -> None:
    world = World(
        plan(["a"], ["b"], ways=(IN_PLACE, REBOOT)),
        {("a", Method.IN_PLACE): R},
        cancelled_at=lambda world: bool(world.did),
    )
    rolled = world.roll()
    assert (world.did, rolled.stop, rolled.untouched) == (["a:in-place"], Stop.CANCELLED, ("b",))


def test_as_a_later_update_gets_ready() -> None:
    error = Failed("updating", found="a signal asked to stop; no guest was touched")
    world = World(
        plan(["a"], ["b"]), {("b", Method.IN_PLACE): error}, cancelled_at=lambda world: "b:in-place" in world.did
    )
    rolled = world.roll()
    assert (rolled.stop, rolled.untouched) == (Stop.CANCELLED, ("b",))
