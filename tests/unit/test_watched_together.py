"""Guests that stand still side by side, and the one guard that waits for all of them."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from hostagent.errors import Failed
from hostagent.update.subject import NoWatcher
from hostagent.update.watched_together import WatchedTogether


@dataclass
class Noted(NoWatcher):
    until: float | None = None
    dead: bool = False

    def pausing(self, until: float) -> None:
        if self.dead:
            raise Failed("talking to the guard", found="it has died")
        self.until = until

    def running(self) -> None:
        self.until = None


@given(st.lists(st.tuples(st.integers(0, 3), st.none() | st.floats(0, 100)), max_size=30))
def test_the_guard_waits_for_whoever_is_due_first(said: list[tuple[int, float | None]]) -> None:
    guard = Noted()
    together = WatchedTogether(guard)
    guests = [together.one() for _ in range(4)]
    still: dict[int, float] = {}
    for index, until in said:
        if until is None:
            guests[index].running()
            still.pop(index, None)
        else:
            guests[index].pausing(until)
            still[index] = until
        assert guard.until == min(still.values(), default=None)


def test_a_guest_that_runs_is_told_of_no_guard_that_died() -> None:
    guard = Noted()
    together = WatchedTogether(guard)
    one, other = together.one(), together.one()
    one.pausing(5.0)
    other.pausing(7.0)
    guard.dead = True
    one.running()
