"""How long a guest will probably stand still, from what was measured on this host. Pure.

What a handover's pause depends on (devices, cores, load) differs from host to host far more than from one swap of a
guest to the next, so the guest's own history says most; the longest of its last ones, since a budget is to be kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hostagent.plan import Blocker, Prediction, Reason

FIRST_SECONDS = 0.25  # where nothing was measured yet: longer than any undisturbed handover seen so far
_LAST = 5  # of the guest's own
_LAST_OF_ANY = 20

Pauses = Mapping[str, Sequence[float]]  # by a guest's uuid, seconds, oldest first


def predict(uuid: str, pauses: Pauses) -> Prediction:
    """The guest's pause at its next handover."""
    own = list(pauses.get(uuid, ()))[-_LAST:]
    known = own or [pause for others in pauses.values() for pause in others[-_LAST:]][-_LAST_OF_ANY:]
    return Prediction(max(known, default=FIRST_SECONDS), len(known), of_itself=bool(own))


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
