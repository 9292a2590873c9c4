"""The pause's length and its budget."""

import pytest

from hostagent.errors import Failed
from hostagent.hypervisor import Moment
from hostagent.update.pause import TRUSTED_DISAGREEMENT_SECONDS, Deadline, Pause, measured


def test_qemu_says_how_long() -> None:
    pause = measured(Moment(100.0, 5.0), Moment(100.023, 5.03))
    assert pause.source == "qemu"
    assert pause.seconds == pytest.approx(0.023)


@pytest.mark.parametrize("jump", [-3600.0, -1.0, 1.0, 86400.0])
def test_the_host_s_clock_jumped_meanwhile(jump: float) -> None:
    assert measured(Moment(100.0, 5.0), Moment(100.5 + jump, 5.5)) == Pause(0.5, "monotonic")


@pytest.mark.parametrize(("late", "source"), [(-0.001, "qemu"), (0.001, "monotonic")])
def test_events_may_arrive_a_little_late(late: float, source: str) -> None:
    heard = 1.0 + TRUSTED_DISAGREEMENT_SECONDS + late
    assert measured(Moment(100.0, 0.0), Moment(101.0, heard)).source == source


def test_no_pause_is_negative() -> None:
    assert measured(Moment(100.0, 5.0), Moment(99.9, 5.0)) == Pause(0.0, "monotonic")


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
