"""The pause's length and its budget."""

import pytest

from hostagent.errors import Failed
from hostagent.hypervisor import Moment
from hostagent.update.pause import SET_SECONDS, Deadline, Pause, measured

AHEAD = 95.0


def said(qemu_wall: float, monotonic: float, *, before: float = AHEAD, now: float = AHEAD) -> Moment:
    """By how much the wall clock was ahead before QEMU said it, and once it was heard."""
    return Moment(qemu_wall, monotonic, before, now)


def test_qemu_says_how_long() -> None:
    pause = measured(said(100.0, 5.0), said(100.023, 5.03))
    assert pause.source == "qemu"
    assert pause.seconds == pytest.approx(0.023)


@pytest.mark.parametrize("jump", [-3600.0, -1.0, 1.0, 86400.0])
def test_the_host_s_clock_jumped_meanwhile(jump: float) -> None:
    """Whether we heard of the stop before that or after it."""
    for heard in (AHEAD, AHEAD + jump):
        stopped, resumed = said(100.0, 5.0, now=heard), said(100.5 + jump, 5.5, before=heard, now=AHEAD + jump)
        assert measured(stopped, resumed) == Pause(0.5, "monotonic")


@pytest.mark.parametrize(("moved", "source"), [(-0.001, "qemu"), (0.001, "monotonic")])
def test_the_host_s_clock_may_be_kept_right_meanwhile(moved: float, source: str) -> None:
    for ahead in (AHEAD + SET_SECONDS + moved, AHEAD - SET_SECONDS - moved):
        assert measured(said(100.0, 5.0), said(101.0, 6.0, now=ahead)).source == source


@pytest.mark.parametrize(("stop_heard", "resume_heard"), [(5.0, 8.5), (8.0, 5.5), (8.0, 8.0)])
def test_events_may_arrive_late(stop_heard: float, resume_heard: float) -> None:
    """On a busy host whoever waits for them loses the processor for seconds."""
    assert measured(said(100.0, stop_heard), said(100.5, resume_heard)) == Pause(0.5, "qemu")


def test_no_pause_is_negative() -> None:
    assert measured(said(100.0, 5.0), said(99.9, 5.0)) == Pause(0.0, "monotonic")


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def test_the_deadline_counts_down_and_never_below_zero() -> None:
    clock = Clock()
    deadline = Deadline.begin(10.0, clock)
    assert (deadline.ends, deadline.left()) == (60.0, 10.0)
    clock.now = 59.5
    assert deadline.left() == 0.5
    clock.now = 1e6
    assert deadline.left() == 0.0


def test_a_budget_used_up_turns_back() -> None:
    clock = Clock()
    deadline = Deadline.begin(10.0, clock)
    clock.now = 59.9
    deadline.check("web1: before resuming")
    clock.now = 60.0
    with pytest.raises(Failed) as caught:
        deadline.check("web1: before resuming")
    assert str(caught.value) == (
        "web1: before resuming: expected to resume the guest within its budget of 10 s, found the budget used up"
        " (hint: the guest runs as before; allow more with --budget)"
    )
