"""How long a guest will probably stand still, from what was measured on this host. Pure.

What a pause depends on (devices, cores, load) differs from host to host far more than from one swap of a
guest to the next, so the guest's own history says most; the longest of its last ones, since a budget is to be kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hostagent.plan import Blocker, Prediction, Reason, Technique

# Where nothing was measured yet: longer than nearly all seen so far.
FIRST_SECONDS = {Technique.HANDOVER: 0.25, Technique.HOLD: 2.0}
FIRST_MIGRATION_SECONDS = 2.0  # there and back
_LAST = 5  # of the guest's own
_LAST_OF_ANY = 20

FIRST_BYTES_PER_SECOND = 300e6  # of RAM copied within a host, where nothing was measured yet


@dataclass(frozen=True)
class Past:
    """What was measured on this host."""

    pauses: Mapping[str, Sequence[float]] = field(default_factory=dict)  # of handovers, by uuid; seconds, oldest first
    holds: Mapping[str, Sequence[float]] = field(default_factory=dict)  # the same of holds
    migrations: Mapping[str, Sequence[float]] = field(default_factory=dict)  # the same of live migrations
    copy_speeds: Sequence[float] = ()  # bytes of RAM per second, oldest first
    swaps: Mapping[str, Sequence[float]] = field(default_factory=dict)  # of the host's components, by name; seconds

    def swap_seconds(self, component: str, first: float) -> float:
        """How long its next swap will take: as its longest of late, or `first`."""
        return max(list(self.swaps.get(component, ()))[-_LAST:], default=first)

    def followed_by(self, later: Past) -> Past:
        """Both, as far as predictions look back."""
        return Past(
            _lasts(self.pauses, later.pauses),
            _lasts(self.holds, later.holds),
            _lasts(self.migrations, later.migrations),
            [*self.copy_speeds, *later.copy_speeds][-_LAST:],
            _lasts(self.swaps, later.swaps),
        )


def _lasts(
    before: Mapping[str, Sequence[float]], later: Mapping[str, Sequence[float]]
) -> Mapping[str, Sequence[float]]:
    return {name: [*before.get(name, ()), *later.get(name, ())][-_LAST:] for name in (*before, *later)}


def predict(uuid: str, past: Past, copied_bytes: int = 0, technique: Technique = Technique.HANDOVER) -> Prediction:
    """The guest's next pause by that technique, and how long its RAM is copied for beforehand."""
    pauses = past.holds if technique is Technique.HOLD else past.pauses
    own, known = _known(uuid, pauses)
    speed = min(past.copy_speeds[-_LAST:], default=FIRST_BYTES_PER_SECOND)
    copy_seconds = copied_bytes / speed if copied_bytes else None
    return Prediction(
        max(known, default=FIRST_SECONDS[technique]), len(known), of_itself=bool(own), copy_seconds=copy_seconds
    )


def predict_migration(uuid: str, past: Past) -> Prediction:
    """The guest's next pause by a live migration, the longer one if it comes back."""
    own, known = _known(uuid, past.migrations)
    return Prediction(max(known, default=FIRST_MIGRATION_SECONDS), len(known), of_itself=bool(own))


def _known(uuid: str, pauses: Mapping[str, Sequence[float]]) -> tuple[list[float], list[float]]:
    """The guest's own pauses of late, and those to go by: its own, or else the others'."""
    own = list(pauses.get(uuid, ()))[-_LAST:]
    return own, own or [pause for others in pauses.values() for pause in others[-_LAST:]][-_LAST_OF_ANY:]


def over_budget(predicted: Prediction, budget_seconds: float) -> Blocker | None:
    """Why a guest should not be begun with: it would only be turned back."""
    if predicted.pause_seconds <= budget_seconds:
        return None
    whose = "its own" if predicted.of_itself else "other guests'"
    rests_on = f"from {predicted.measured} of {whose} pauses" if predicted.measured else "a first estimate"
    return Blocker(
        Reason.BUDGET,
        expected=f"a pause within the budget of {budget_seconds * 1000:g} ms",
        found=f"about {predicted.pause_seconds * 1000:.0f} ms predicted ({rests_on})",
        hint="allow more with --budget",
    )
