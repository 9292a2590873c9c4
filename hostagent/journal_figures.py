"""What the journal says, counted: one function for each metric of `metrics.py`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from hostagent import __version__
from hostagent.plan import Method, Technique
from hostagent.update.journal import Outcome, UpdateRecord
from hostagent.update.order import OrderKind
from hostagent.update.paused import paused_in
from hostagent.update.report import GuestReport, UpdateReport, report_of

PAUSE_PHASES = ("switch", "record", "resume")  # the steps of a handover that a guest stands still in
FINAL = (Outcome.UPDATED, Outcome.ROLLED_BACK, Outcome.GONE, Outcome.LOST)
ROLLBACK_REASONS = ("failed", "refused", "needs-operator", "outcome-unknown", "usage", "error")
OTHER = "other"
_IN_PLACE = (Method.IN_PLACE, Technique.HANDOVER, "qemu")

Labels = tuple[str, ...]
Values = Mapping[Labels, float]
Lengths = Mapping[Labels, Sequence[float]]


@dataclass
class Fold:
    """What the journal says, sorted by what is asked of it."""

    updates: tuple[UpdateReport, ...]
    rehearsals: tuple[UpdateReport, ...]
    paused: Mapping[str, float] = field(default_factory=dict)  # guest -> since when, Unix time
    guests: list[tuple[UpdateReport, GuestReport]] = field(init=False)  # of updates, ended for good, oldest first

    def __post_init__(self) -> None:
        ended = [(update, guest) for update in self.updates for guest in update.guests if guest.outcome in FINAL]
        self.guests = sorted(ended, key=lambda pair: pair[1].ended_at or 0.0)

    @property
    def updated(self) -> list[tuple[UpdateReport, GuestReport]]:
        """Those that run on what they were to run on."""
        return [(update, guest) for update, guest in self.guests if guest.outcome is Outcome.UPDATED]


def fold_of(updates: Iterable[UpdateRecord]) -> Fold:
    """Read the journal's updates."""
    records = tuple(updates)
    reports = [report_of(update) for update in records]
    return Fold(
        paused={name: since for update in records for name, since in paused_in(update).items()},
        updates=tuple(report for report in reports if report.kind in (OrderKind.UPDATE, OrderKind.ADOPTION)),
        rehearsals=tuple(report for report in reports if report.kind is OrderKind.REHEARSAL),
    )


def build_info(_: Fold) -> Values:
    """The version that runs."""
    return {(__version__,): 1}


def pauses(fold: Fold) -> Lengths:
    """Pauses of updated guests, by method, technique and component."""
    found: dict[Labels, list[float]] = {_IN_PLACE: []}
    for update, guest in fold.updated:
        if guest.pause_seconds is not None:
            labels = (guest.method, guest.technique or "none", update.component)
            found.setdefault(labels, []).append(guest.pause_seconds)
    return found


def phases(fold: Fold) -> Lengths:
    """What the pauses of updated guests are made of."""
    # Where RAM is copied the switch begins before the pause: what the guest has written meanwhile crosses first.
    kept = [guest for _, guest in fold.updated if guest.method == Method.IN_PLACE]
    measured = [guest.phases for guest in kept if guest.pause_seconds is not None]
    return {(phase,): [phases[phase] for phases in measured if phase in phases] for phase in PAUSE_PHASES}


def reboots(fold: Fold) -> Lengths:
    """How long guests that were updated by a reboot were shut off, and how long they took to boot."""
    found: dict[Labels, list[float]] = {("down",): [], ("boot",): []}
    for _, guest in fold.updated:
        for phase, seconds in (("down", guest.down_seconds), ("boot", guest.boot_seconds)):
            if seconds is not None:
                found[phase,].append(seconds)
    return found


def clock_offsets(fold: Fold) -> Values:
    """Each guest's clock at its last update, by when it was read."""
    found: dict[Labels, float] = {}
    for _, guest in fold.guests:
        clock = guest.clock
        for when, offset in (("before", clock.before), ("resumed", clock.after), ("synced", clock.synced)):
            if offset is not None:
                found[guest.name, when] = offset
    return found


def clock_bounds(fold: Fold) -> Values:
    """How far off the last reading of each guest's clock may be."""
    return {(guest.name,): guest.clock.bound for _, guest in fold.guests if guest.clock.bound is not None}


def guest_updates(fold: Fold) -> Values:
    """Guests by how their updates ended."""
    known = [(method, "qemu", outcome) for method in Method for outcome in FINAL]
    return _counted(known, ((guest.method, update.component, str(guest.outcome)) for update, guest in fold.guests))


def over_budget(fold: Fold) -> Values:
    """Guests that stood still for too long."""
    return _counted(
        [(method,) for method in Method], ((guest.method,) for _, guest in fold.guests if guest.over_budget)
    )


def rollbacks(fold: Fold) -> Values:
    """Guests that were brought back, by the kind of error."""
    kinds = [guest.reason_kind for _, guest in fold.guests if guest.outcome is Outcome.ROLLED_BACK]
    known = [(reason,) for reason in (*ROLLBACK_REASONS, OTHER)]
    return _counted(known, ((_bounded(kind),) for kind in kinds))


def last_pauses(fold: Fold) -> Values:
    """Each guest's last pause."""
    return {
        (guest.name, guest.method): guest.pause_seconds for _, guest in fold.updated if guest.pause_seconds is not None
    }


def open_updates(fold: Fold) -> Values:
    """Updates and rehearsals that have not ended."""
    return {(): sum(update.is_open for update in (*fold.updates, *fold.rehearsals))}


def last_updates(fold: Fold) -> Values:
    """When the last update ended, by outcome."""
    ended = [(update.ended, update.outcome) for update in fold.updates if update.ended and update.outcome]
    return {(outcome,): at for at, outcome in sorted(ended)}


def rehearsals(fold: Fold) -> Values:
    """Rehearsals by how they ended."""
    known = [(outcome,) for outcome in FINAL]
    return _counted(known, ((update.outcome,) for update in fold.rehearsals if update.outcome))


def fallbacks(fold: Fold) -> Values:
    """Guests that went further down their ladder, in the same roll as the update that was undone."""
    known = [(one, other, "failed") for at, one in enumerate(Method) for other in list(Method)[at + 1 :]]
    undone: dict[tuple[str, str], GuestReport] = {}  # roll and guest -> what was undone last
    found: list[Labels] = []
    for update in fold.updates:
        for guest in update.guests:
            if update.place is None:
                continue
            before = undone.pop((update.place.roll, guest.uuid), None)
            if before is not None and before.method != guest.method:
                found.append((before.method, guest.method, _bounded(before.reason_kind)))
            if guest.outcome is Outcome.ROLLED_BACK:
                undone[update.place.roll, guest.uuid] = guest
    return _counted(known, found)


def budgets(fold: Fold) -> Values:
    """What each guest was allowed last."""
    return {(guest.name,): guest.budget_seconds for _, guest in fold.guests if guest.budget_seconds is not None}


def paused_since(fold: Fold) -> Values:
    """Guests that stand still now."""
    return {(name,): since for name, since in fold.paused.items()}


class State(StrEnum):
    """What goes on, as far as the journal knows."""

    IDLE = "idle"
    REHEARSING = "rehearsing"
    UPDATING = "updating"
    NEEDS_OPERATOR = "needs-operator"


def update_state(fold: Fold) -> Values:
    """What goes on: the worst of it is 1, everything else 0."""
    return {(state,): float(state is _state(fold)) for state in State}


def _state(fold: Fold) -> State:
    going_on = [update for update in fold.updates if update.is_open]
    if any(update.standing == Outcome.NEEDS_OPERATOR for update in going_on):
        return State.NEEDS_OPERATOR
    if going_on:
        return State.UPDATING
    return State.REHEARSING if any(one.is_open for one in fold.rehearsals) else State.IDLE


def _bounded(kind: str) -> str:
    return kind if kind in ROLLBACK_REASONS else OTHER


def _counted(known: Iterable[Labels], found: Iterable[Labels]) -> Values:
    """How often each was found; what is known to be possible is there from the start, at 0."""
    counts: dict[Labels, float] = dict.fromkeys(known, 0)
    for labels in found:
        counts[labels] = counts.get(labels, 0) + 1
    return counts
