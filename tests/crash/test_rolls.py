"""A roll whose updater dies, or is asked to stop, at every moment: one update in hand, the rest untouched. Fake."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest

from hostagent.plan import GuestPlan, Method, Plan, Technique, Verdict
from hostagent.planning.update_domains import Placed
from hostagent.update.health import Gate
from hostagent.update.host import update_qemu
from hostagent.update.journal import Entry, Kind, Outcome, UpdateRecord
from hostagent.update.report import ROLL_STOPPED, report_of
from hostagent.update.roll import Doors, roll
from hostagent.update.rolled import Rolled, Stop
from hostagent.update.subject import Ports
from tests.crash import shapes
from tests.crash.judge import outcomes, problems
from tests.crash.rig import JOURNAL, UPDATE_ID, Points, Rig, Scenario, rig
from tests.crash.sweep import Share, sweep

Groups = tuple[tuple[str, ...], ...]
GROUPS: Groups = (("db1", "web1"), ("db2",), ("db3",))
SCENARIO = Scenario(guests=tuple(name for group in GROUPS for name in group), paused=("db2",))
SHORT = GROUPS[1:]
FEW = Scenario(guests=("db2", "db3"))
HELD = replace(SCENARIO, held=SCENARIO.guests, paused=())  # one that is paused is not held
BOTH = pytest.mark.parametrize(
    ("scenario", "technique"), [(SCENARIO, Technique.HANDOVER), (HELD, Technique.HOLD)], ids=["handover", "hold"]
)

Found = Iterator[tuple[str, Sequence[str]]]


@dataclass
class Rolling:
    """A roll on a rig's host, as `hostagent update qemu` has it."""

    host: Rig
    technique: Technique = Technique.HANDOVER
    cancelled: Callable[[], bool] = lambda: False
    wait_seconds: float = 0.0
    groups: Groups = GROUPS
    rolled: list[Rolled] = field(default_factory=list)

    def __call__(self, points: Points) -> str:
        return self.host._run(self._roll, points)

    def _roll(self, ports: Ports) -> None:
        numbers = iter(range(1, 100))

        def carry(part: Plan) -> UpdateRecord:
            update = f"u{next(numbers)}"
            return update_qemu(
                *(ports, ports.libvirt.host(), part),
                update_id=update,
                tell=lambda *_: None,
                cancelled=self.cancelled,
            )

        gate = Gate(
            *(ports, {name: Placed(name) for name in SCENARIO.guests}, ()),
            *(30.0, self.cancelled, self._pause),
            side_by_side=1,
        )
        doors = Doors(
            carry=carry,
            replan=lambda names: self._plan(ports, names),
            gate=gate,
            note=lambda update, _, reason: ports.journal.append(update, Entry(Kind.NOTED, body={ROLL_STOPPED: reason})),
            tell=lambda *_: None,
            cancelled=self.cancelled,
            pause=self._pause,
            monotonic=ports.monotonic,
        )
        plan = replace(self._plan(ports, SCENARIO.guests), groups=self.groups)
        self.rolled.append(roll(doors, plan, roll_id="r", wait_seconds=self.wait_seconds))

    def _plan(self, ports: Ports, names: Sequence[str]) -> Plan:
        return Plan(
            "qemu",
            shapes.NEW,
            tuple(
                GuestPlan(
                    *(guest.name, guest.uuid, Verdict.UPDATE, Method.IN_PLACE, self.technique, guest.qemu, (), 30.0)
                )
                for guest in ports.libvirt.host().guests
                if guest.name in names
            ),
            (),
        )

    def _pause(self, seconds: float) -> None:
        with self.host.host.world.change() as state:
            state.now_ns += round(seconds * 1e9)


def as_one(updates: Sequence[UpdateRecord]) -> list[UpdateRecord]:
    """As the judge knows updates."""
    return [replace(update, id=UPDATE_ID) for update in updates]


def wrong(host: Rig, groups: Groups = GROUPS) -> list[str]:
    """What is not as promised, and groups that were begun out of their turn."""
    updates = host.updates()
    found = problems(host, updates=as_one(updates))
    ended = outcomes(host, as_one(updates))
    for later, names in enumerate(groups[1:], start=1):
        begun = any(name in ended for name in names)
        before = [ended.get(name) for name in groups[later - 1]]
        if begun and set(before) != {Outcome.UPDATED}:
            found.append(f"{names} were begun, and {groups[later - 1]} were {before}")
    return found


@BOTH
def test_an_undisturbed_roll(scenario: Scenario, technique: Technique) -> None:
    with rig(scenario) as host:
        rolling = Rolling(host, technique, wait_seconds=60.0)
        assert rolling(Points(only=())) == ""
        assert wrong(host) == []
        assert set(outcomes(host, as_one(host.updates())).values()) == {Outcome.UPDATED}
        assert [(report.place and report.place.group) for report in map(report_of, host.updates())] == [1, 2, 3]


@BOTH
def test_its_updater_dies_at_every_journal_write(scenario: Scenario, technique: Technique) -> None:
    """Recovery ends the one update in hand; nothing is begun by itself, now or by the next recovery."""

    def trials(share: Share) -> Found:
        with rig(scenario) as host:
            for moment in share.of(host.moments(Rolling(host, technique), (JOURNAL,))):
                host.go_back(moment)
                begun = {name for update in host.updates() for name in _names(update)}
                raised = [host.recover(), host.recover()]
                after = {name for update in host.updates() for name in _names(update)}
                more = [f"recovery: {words}" for words in raised if words]
                more += [f"recovery began with {after - begun}"] if after != begun else []
                more += ["an update is open"] if any(update.is_open for update in host.updates()) else []
                yield moment.label, [*more, *wrong(host)]

    sweep(trials)


def _names(update: UpdateRecord) -> list[str]:
    return [guest.name for guest in update.guests.values()]


def test_it_is_asked_to_stop_at_every_journal_write() -> None:
    """The guests in hand are finished or undone, no other is begun, and what was untouched is said."""

    def trials(share: Share) -> Found:
        with rig(FEW) as host:
            points = Points(only=(JOURNAL,))
            Rolling(host, groups=SHORT)(points)
            moments = list(enumerate(points.labels, start=1))
        for number, label in share.of(moments):
            asked: list[int] = []
            with rig(FEW) as host:
                rolling = Rolling(host, cancelled=lambda asked=asked: bool(asked), groups=SHORT)  # type: ignore[misc]
                raised = rolling(Points(lambda asked=asked: asked.append(1), number, (JOURNAL,)))  # type: ignore[misc]
                yield label, [raised] if raised else [*_stopped(rolling.rolled[0], host), *wrong(host, SHORT)]

    sweep(trials)


def _stopped(rolled: Rolled, host: Rig) -> list[str]:
    ended = outcomes(host, as_one(host.updates()))
    untouched = {name for name in FEW.guests if name not in ended}
    found = [] if untouched == set(rolled.untouched) else [f"{untouched} are untouched, not {rolled.untouched}"]
    all_updated = set(ended.values()) == {Outcome.UPDATED} and not untouched
    if (rolled.stop is None) is not all_updated:
        found.append(f"it was {rolled.stop}, and guests {ended}")
    if rolled.stop not in (None, Stop.CANCELLED):
        found.append(f"it was {rolled.stop}: {rolled.reason}")
    if rolled.stop and rolled.updates and report_of(host.updates()[-1]).roll_stopped != rolled.reason:
        found.append("the journal does not say why it stopped")
    return found


@pytest.mark.parametrize("number", [1, 2, 3])
def test_it_is_asked_to_stop_between_two_groups(number: int) -> None:
    """Once the last row of an update is written, while the health of its guests is looked at, and while it waits."""
    with rig(SCENARIO) as host:

        def ended() -> int:
            return sum(not update.is_open for update in host.updates())

        rolling = Rolling(host, cancelled=lambda: ended() >= number, wait_seconds=60.0)
        assert rolling(Points(only=())) == ""
        assert wrong(host) == []
        (rolled,) = rolling.rolled
        assert rolled.untouched == tuple(name for group in GROUPS[number:] for name in group)
        assert (rolled.stop, len(host.updates())) == (Stop.CANCELLED if number < 3 else None, number)
