"""The pause: its budget while it lasts, its length afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hostagent.errors import Failed
from hostagent.hypervisor import Moment

# QEMU stamps STOP and RESUME with the wall clock as it happens; we stamp their arrival with the monotonic clock, which
# on a busy host may be seconds later. Only where the wall clock was set in between is that the better figure: past this
# it has moved against the monotonic one by more than whoever keeps it right moves it little by little.
SET_SECONDS = 0.05


@dataclass(frozen=True)
class Pause:
    """How long a guest stood still, seconds."""

    seconds: float
    source: str  # "qemu": its own stamps; "monotonic": the host's wall clock jumped; "journal": an upper bound


def measured(stopped: Moment, resumed: Moment) -> Pause:
    """The pause between two moments."""
    by_qemu = resumed.qemu_wall - stopped.qemu_wall
    by_us = resumed.monotonic - stopped.monotonic
    if by_qemu < 0 or abs(resumed.ahead - stopped.ahead_before) > SET_SECONDS:
        return Pause(by_us, "monotonic")
    return Pause(by_qemu, "qemu")


@dataclass(frozen=True)
class Deadline:
    """Until when a guest may stand still, by the monotonic clock."""

    budget_seconds: float
    ends: float
    monotonic: Callable[[], float]

    @classmethod
    def begin(cls, budget_seconds: float, monotonic: Callable[[], float], stopped: Moment | None = None) -> Deadline:
        """A deadline that begins now, or began as the guest stopped."""
        since = monotonic() if stopped is None else stopped.monotonic
        return cls(budget_seconds, since + budget_seconds, monotonic)

    def left(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.ends - self.monotonic())

    def check(self, doing: str) -> None:
        """Raises Failed when the budget is used up: turn back while that is possible."""
        if self.left() == 0.0:
            raise Failed(
                doing,
                expected=f"to resume the guest within its budget of {self.budget_seconds:g} s",
                found="the budget used up",
                hint="the guest runs as before; allow more with --budget",
            )
