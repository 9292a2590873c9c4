"""What is known of single guests from their last updates; of so many guests that memory has an end. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from hostagent.clock import Outcome as ClockOutcome
from hostagent.clock import Reason as ClockReason
from hostagent.update.journal import Outcome
from hostagent.update.report import ClockOffsets, GuestReport

CLOCK_REASONS = (*map(str, ClockReason), "paused")
OTHER = "other"
KEPT = 1000  # guests; of more those whose last update is longest ago are forgotten


@dataclass(frozen=True)
class LastOfGuest:
    """A guest at its last update, however that ended."""

    ended_at: float
    clock: ClockOffsets
    budget_seconds: float | None
    uncorrected: str = ""  # why its clock was left as it was; "": it was not
    pauses: Mapping[str, float] = field(default_factory=dict)  # method -> of its last update that went well

    def followed_by(self, guest: GuestReport, at: float) -> LastOfGuest:
        """After one more update, which may have ended before this one."""
        pauses = self.pauses
        if guest.outcome is Outcome.UPDATED and guest.pause_seconds is not None:
            newer = at >= self.ended_at or guest.method not in pauses
            pauses = {**pauses, guest.method: guest.pause_seconds} if newer else pauses
        if at < self.ended_at:
            return replace(self, pauses=pauses)
        return LastOfGuest(at, guest.clock, guest.budget_seconds, _uncorrected(guest), pauses)


def _uncorrected(guest: GuestReport) -> str:
    if guest.clock_outcome != ClockOutcome.UNCORRECTED:
        return ""
    return guest.clock_reason if guest.clock_reason in CLOCK_REASONS else OTHER


@dataclass
class LastOfGuests:
    """By name."""

    known: dict[str, LastOfGuest] = field(default_factory=dict)

    def add(self, guest: GuestReport) -> None:
        """One that has ended for good."""
        at = guest.ended_at or 0.0
        before = self.known.get(guest.name, LastOfGuest(at, guest.clock, guest.budget_seconds))
        self.known[guest.name] = before.followed_by(guest, at)
        if len(self.known) > KEPT:
            del self.known[min(self.known, key=lambda name: self.known[name].ended_at)]

    def copy(self) -> LastOfGuests:
        """What is added to one is not in the other."""
        return LastOfGuests(dict(self.known))

    def __iter__(self) -> Iterator[tuple[str, LastOfGuest]]:
        """Whose update is longest ago comes first."""
        return iter(sorted(self.known.items(), key=lambda item: item[1].ended_at))
