"""Guest clocks, against a guest that drifts, sleeps, hangs and lies. Time is made here; nothing waits."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostagent import clock as clock_module
from hostagent.clock import (
    ATTEMPTS,
    AgentError,
    AgentFault,
    ClockResult,
    Outcome,
    Reason,
    SystemClock,
    bring_right,
    measure,
)
from hostagent.plan import ClockPolicy

NS = 1_000_000_000
MS = 1_000_000


@dataclass
class World:
    """Host time that only passes when somebody takes it."""

    wall: int = 1_750_000_000 * NS
    monotonic: int = 1000 * NS
    trusted: bool = True

    def pass_ns(self, ns: int) -> None:
        self.wall += ns
        self.monotonic += ns

    def wall_ns(self) -> int:
        return self.wall

    def monotonic_ns(self) -> int:
        return self.monotonic

    def synchronised(self) -> bool:
        return self.trusted


@dataclass
class Guest:
    """A guest clock behind an agent; a query takes `there` ns to the guest and `back` ns to the host."""

    world: World
    behind: int
    there: int = 200_000
    back: int = 200_000
    drift_ppm: int = 0
    cold: int = 0  # extra ns on the first way there
    on_get: Callable[[int], object] | None = None  # the true time -> the reply
    on_set: Callable[[int], None] | None = None  # raises; the clock was set before
    deaf_sets: int = 0  # sets that do nothing
    sets: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    born: int = 0

    def __post_init__(self) -> None:
        self.born = self.world.monotonic

    def now(self) -> int:
        drift = (self.world.monotonic - self.born) * self.drift_ppm // 1_000_000
        return self.world.wall - self.behind + drift

    def ask(self, command: str, arguments: dict[str, object] | None, within_seconds: float) -> object:
        assert within_seconds > 0
        self.asked.append(command)
        self.world.pass_ns(self.there + (self.cold if len(self.asked) == 1 else 0))
        reply: object = None
        if command == "guest-get-time":
            reply = self.now() if self.on_get is None else self.on_get(self.now())
        else:
            assert command == "guest-set-time" and arguments is not None
            target = arguments["time"]
            assert type(target) is int
            assert target > self.now() - 1, "a guest was stepped back"
            self.sets.append(target)
            if self.deaf_sets:
                self.deaf_sets -= 1
            else:
                self.behind += self.now() - target
            if self.on_set is not None:
                self.on_set(target)
        self.world.pass_ns(self.back)
        return reply


def fails(kind: AgentFault) -> Callable[[int], object]:
    def fail(_: int) -> object:
        raise AgentError(kind)

    return fail


def fails_set(kind: AgentFault) -> Callable[[int], None]:
    def fail(_: int) -> None:
        raise AgentError(kind)

    return fail


def right(guest: Guest, policy: ClockPolicy = ClockPolicy.STEP, *, within_seconds: float = 10.0) -> ClockResult:
    return bring_right(guest, guest.world, policy, within_seconds=within_seconds)


def test_a_measurement_is_off_by_at_most_its_bound() -> None:
    guest = Guest(World(), behind=5 * NS, there=300_000, back=100_000)
    offset = measure(guest, guest.world, 8)
    assert offset.bound_seconds == pytest.approx(0.0002)
    assert abs(offset.seconds - -5.0) <= offset.bound_seconds


def test_the_cold_sample_is_dropped_and_the_fastest_taken() -> None:
    ways = iter([0, 9 * MS, 5 * MS, 100_000, 7 * MS])
    world = World()
    guest = Guest(world, behind=0, there=0, back=0)

    def slow(true: int) -> object:
        world.pass_ns(next(ways))  # all of it on the way back, the worst case
        return true

    guest.on_get = slow
    offset = measure(guest, world, 4)
    assert (offset.seconds, offset.bound_seconds) == pytest.approx((-0.00005, 0.00005))
    assert len(guest.asked) == 5


def test_a_guest_that_is_behind_by_its_pause_is_corrected() -> None:
    guest = Guest(World(), behind=640 * MS)
    result = right(guest)
    assert (result.outcome, result.reason) == (Outcome.CORRECTED, None)
    assert result.before_set is not None and result.before_set.seconds == pytest.approx(-0.640, abs=0.001)
    assert result.after_set is not None and abs(result.after_set.seconds) < 0.0005
    assert len(guest.sets) == 1


def test_half_the_round_trip_is_added() -> None:
    guest = Guest(World(), behind=NS, there=2 * MS, back=2 * MS)
    right(guest)
    assert guest.behind == 0


@pytest.mark.parametrize("behind", [0, 4_900_000, -4_900_000])
def test_close_enough_is_left_alone(behind: int) -> None:
    guest = Guest(World(), behind=behind)
    result = right(guest)
    assert (result.outcome, result.reason, result.after_set, guest.sets) == (Outcome.IN_SYNC, None, None, [])


def test_with_slow_answers_less_than_twice_the_bound_is_left_alone() -> None:
    guest = Guest(World(), behind=15 * MS, there=10 * MS, back=10 * MS)
    assert right(guest).outcome is Outcome.IN_SYNC


def test_a_guest_that_is_ahead_is_never_stepped_back() -> None:
    guest = Guest(World(), behind=-NS)
    result = right(guest)
    assert (result.outcome, result.reason, guest.sets) == (Outcome.UNCORRECTED, Reason.AHEAD, [])
    assert result.before_set is not None and result.before_set.seconds == pytest.approx(1.0, abs=0.001)


def test_an_unsynchronised_host_measures_but_does_not_push() -> None:
    guest = Guest(World(trusted=False), behind=NS)
    result = right(guest)
    assert (result.outcome, result.reason, guest.sets) == (Outcome.UNCORRECTED, Reason.HOST_UNSYNCED, [])
    assert result.before_set is not None


def test_policy_report_only_measures() -> None:
    guest = Guest(World(), behind=NS)
    result = right(guest, ClockPolicy.REPORT)
    assert (result.outcome, result.reason, guest.sets) == (Outcome.UNCORRECTED, Reason.POLICY, [])
    assert result.before_set is not None
    assert right(Guest(World(), behind=0), ClockPolicy.REPORT).outcome is Outcome.IN_SYNC


def test_policy_off_does_not_even_ask() -> None:
    guest = Guest(World(), behind=NS)
    assert right(guest, ClockPolicy.OFF) == ClockResult(None, None, Outcome.UNCORRECTED, Reason.POLICY)
    assert guest.asked == []


@pytest.mark.parametrize("kind", list(AgentFault))
def test_a_dead_agent_is_a_reason(kind: AgentFault) -> None:
    guest = Guest(World(), behind=NS, on_get=fails(kind))
    assert right(guest) == ClockResult(None, None, Outcome.UNCORRECTED, Reason(kind))


def test_a_hung_agent_costs_two_timeouts_and_no_more() -> None:
    world = World()
    guest = Guest(world, behind=NS)

    def hang(_: int) -> object:
        world.pass_ns(2 * NS)
        raise AgentError(AgentFault.TIMEOUT)

    guest.on_get = hang
    begin = world.monotonic
    assert right(guest).reason is Reason.AGENT_TIMEOUT
    assert world.monotonic - begin < 5 * NS


def test_an_agent_that_sleeps_through_the_first_question_is_forgiven() -> None:
    replies = iter([fails(AgentFault.TIMEOUT)])
    guest = Guest(World(), behind=NS)

    def wake(true: int) -> object:
        return next(replies, lambda t: t)(true)

    guest.on_get = wake
    assert right(guest).outcome is Outcome.CORRECTED


def test_a_timeout_later_on_ends_the_sampling_only() -> None:
    guest = Guest(World(), behind=NS)
    count = iter(range(100))
    guest.on_get = lambda true: fails(AgentFault.TIMEOUT)(true) if next(count) == 3 else true
    assert right(guest).outcome is Outcome.CORRECTED


def test_slow_answers_end_at_the_deadline() -> None:
    world = World()
    guest = Guest(world, behind=100 * NS, there=900 * MS, back=900 * MS)
    begin = world.monotonic
    result = right(guest, within_seconds=5)
    assert world.monotonic - begin <= 7 * NS
    assert result.outcome is Outcome.UNCORRECTED


@pytest.mark.parametrize(
    "reply", [None, True, False, "1750000000000000000", 1.75e18, -1, 2**63, 10**400, [1], {"time": 1}, b"1"]
)
def test_a_lying_agent_is_a_bad_reply(reply: object) -> None:
    guest = Guest(World(), behind=NS, on_get=lambda _: reply)
    assert right(guest) == ClockResult(None, None, Outcome.UNCORRECTED, Reason.BAD_REPLY)


def test_a_lie_in_the_middle_spoils_the_measurement() -> None:
    guest = Guest(World(), behind=NS)
    count = iter(range(100))
    guest.on_get = lambda true: True if next(count) == 5 else true
    assert right(guest).reason is Reason.BAD_REPLY


def test_a_guest_in_1970_is_far_behind_not_lying() -> None:
    world = World()
    guest = Guest(world, behind=world.wall - NS)
    assert right(guest).outcome is Outcome.CORRECTED


def test_a_set_that_reports_failure_but_worked_counts() -> None:
    """An agent without hwclock."""
    guest = Guest(World(), behind=NS, on_set=fails_set(AgentFault.COMMAND_FAILED))
    assert right(guest).outcome is Outcome.CORRECTED


def test_a_set_that_reports_success_but_did_nothing_is_repeated_once() -> None:
    guest = Guest(World(), behind=NS, deaf_sets=1)
    assert right(guest).outcome is Outcome.CORRECTED
    assert len(guest.sets) == 2


def test_a_clock_that_does_not_move_is_still_behind() -> None:
    guest = Guest(World(), behind=NS, deaf_sets=9)
    result = right(guest)
    assert (result.outcome, result.reason) == (Outcome.UNCORRECTED, Reason.STILL_BEHIND)
    assert result.after_set is not None and result.after_set.seconds == pytest.approx(-1, abs=0.001)
    assert len(guest.sets) == ATTEMPTS


@pytest.mark.parametrize(
    "kind", [AgentFault.COMMAND_DISABLED, AgentFault.TIMEOUT, AgentFault.COMMAND_FAILED, AgentFault.NO_AGENT]
)
def test_the_fault_of_the_set_explains_a_clock_that_stayed_wrong(kind: AgentFault) -> None:
    guest = Guest(World(), behind=NS, deaf_sets=99, on_set=fails_set(kind))
    assert (right(guest).outcome, right(guest).reason) == (Outcome.UNCORRECTED, Reason(kind))


def test_an_agent_that_dies_after_the_set_leaves_it_unverified() -> None:
    guest = Guest(World(), behind=NS)
    guest.on_get = lambda true: fails(AgentFault.NO_AGENT)(true) if guest.sets else true
    result = right(guest)
    assert (result.outcome, result.reason, result.after_set) == (Outcome.UNCORRECTED, Reason.NO_AGENT, None)
    assert result.before_set is not None


def test_a_set_that_waits_for_the_tick_is_repeated() -> None:
    """hwclock blocks up to a second; a guest that applies the old value after it is behind again."""
    world = World()
    guest = Guest(world, behind=NS)

    def late(_: int) -> None:
        if len(guest.sets) == 1:
            guest.behind += 30 * MS

    guest.on_set = late
    result = right(guest)
    assert (result.outcome, len(guest.sets)) == (Outcome.CORRECTED, 2)


def test_a_guest_that_jumps_ahead_when_set_is_left_there() -> None:
    guest = Guest(World(), behind=NS)

    def overshoot(_: int) -> None:
        guest.behind -= 3 * NS

    guest.on_set = overshoot
    result = right(guest)
    assert (result.outcome, result.reason, len(guest.sets)) == (Outcome.UNCORRECTED, Reason.AHEAD, 1)


def test_a_host_clock_that_goes_back_before_the_set_pushes_nothing() -> None:
    world = World()
    guest = Guest(world, behind=NS)

    def host_jumps(true: int) -> object:
        if len(guest.asked) == 9:  # the last sample of the first measurement
            world.wall -= 3600 * NS
            guest.behind -= 3600 * NS  # the guest did not jump with it
        return true

    guest.on_get = host_jumps
    result = right(guest)
    assert (result.outcome, result.reason, guest.sets) == (Outcome.UNCORRECTED, Reason.AHEAD, [])


def test_two_cycles_each_need_their_own_correction() -> None:
    guest = Guest(World(), behind=NS)
    assert right(guest).outcome is Outcome.CORRECTED
    guest.behind += 500 * MS
    assert right(guest).outcome is Outcome.CORRECTED
    assert len(guest.sets) == 2


@given(
    behind=st.integers(-10 * NS, 10 * NS),
    there=st.integers(0, 50 * MS),
    back=st.integers(0, 50 * MS),
    drift_ppm=st.integers(-500, 500),
)
def test_whatever_the_delays_it_ends_honest_and_never_goes_back(
    behind: int, there: int, back: int, drift_ppm: int
) -> None:
    world = World()
    guest = Guest(world, behind=behind, there=there, back=back, drift_ppm=drift_ppm)
    before = guest.now() - world.monotonic
    result = bring_right(guest, world, ClockPolicy.STEP)
    drifted = 500 * 11 * 1000 + 1000  # 500 ppm of at most 11 s
    assert guest.now() - world.monotonic >= before - drifted
    if result.outcome is not Outcome.UNCORRECTED:
        last = result.after_set or result.before_set
        assert last is not None
        assert abs((guest.now() - world.wall) / NS) <= max(0.010, 3 * last.bound_seconds) + drifted / NS


def test_the_real_clock_reads_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    real = SystemClock()
    assert abs(real.wall_ns() - time.time_ns()) < NS
    assert real.monotonic_ns() <= time.monotonic_ns()
    assert real.synchronised() in (True, False)
    monkeypatch.setattr(clock_module, "_kernel_says_synchronised", lambda: False)
    assert SystemClock().synchronised() is False
    assert SystemClock(require_synchronised=False).synchronised() is True
