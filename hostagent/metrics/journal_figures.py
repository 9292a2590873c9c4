"""What updates amount to, counted, and one function for each metric of `table.py` that the journal tells. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from hostagent import __version__
from hostagent.metrics.guest_figures import OTHER, LastOfGuests
from hostagent.plan import Method, Technique
from hostagent.update.journal import Outcome
from hostagent.update.order import OrderKind
from hostagent.update.report import GuestReport, UpdateReport

PAUSE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60)
# The steps of a handover, and of a hold, that a guest stands still in; with what is swapped for the host meanwhile.
SWAP_PHASE = "swap"
PAUSE_PHASES = ("switch", "record", "pause", "save", SWAP_PHASE, "restore", "resume")
REBOOT_PHASES = ("down", "boot")
FINAL = (Outcome.UPDATED, Outcome.ROLLED_BACK, Outcome.GONE, Outcome.LOST)
ROLLBACK_REASONS = ("failed", "refused", "needs-operator", "outcome-unknown", "usage", "error")
_IN_PLACE = (Method.IN_PLACE, Technique.HANDOVER, "qemu")
_LOWER = tuple((one, other) for at, one in enumerate(Method) for other in tuple(Method)[at + 1 :])

Labels = tuple[str, ...]
Values = Mapping[Labels, float]


@dataclass
class Lengths:
    """How many were how long: all that a histogram says, however many there were."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(PAUSE_BUCKETS) + 1))  # up to each bucket's bound
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """One more; nothing takes less than no time."""
        self.counts[bisect_left(PAUSE_BUCKETS, seconds)] += 1
        self.seconds += max(0.0, seconds)

    def with_those_of(self, other: Lengths) -> Lengths:
        """Both together."""
        counts = [one + more for one, more in zip(self.counts, other.counts, strict=True)]
        return Lengths(counts, self.seconds + other.seconds)

    def copy(self) -> Lengths:
        """What is added to one is not in the other."""
        return Lengths(list(self.counts), self.seconds)


Histogram = Mapping[Labels, Lengths]


class State(StrEnum):
    """What goes on, as far as the journal knows."""

    IDLE = "idle"
    REHEARSING = "rehearsing"
    UPDATING = "updating"
    NEEDS_OPERATOR = "needs-operator"


@dataclass
class Fallen:
    """Guests of the roll that is, or was last, under way, that were undone: by which method, and why."""

    roll: str = ""
    undone: dict[str, tuple[str, str]] = field(default_factory=dict)  # uuid -> method and kind of error

    def copy(self) -> Fallen:
        """What is added to one is not in the other."""
        return Fallen(self.roll, dict(self.undone))


@dataclass
class Figures:
    """What updates amount to. It grows with guests, up to a number, and not with updates."""

    pauses: dict[Labels, Lengths] = field(default_factory=lambda: {_IN_PLACE: Lengths()})
    phases: dict[Labels, Lengths] = field(default_factory=lambda: {(phase,): Lengths() for phase in PAUSE_PHASES})
    reboots: dict[Labels, Lengths] = field(default_factory=lambda: {(phase,): Lengths() for phase in REBOOT_PHASES})
    # What is known to be possible is there from the start, at 0.
    guest_updates: Counter[Labels] = field(
        default_factory=lambda: _zeros((method, "qemu", outcome) for method in Method for outcome in FINAL)
    )
    over_budget: Counter[Labels] = field(default_factory=lambda: _zeros((method,) for method in Method))
    rollbacks: Counter[Labels] = field(
        default_factory=lambda: _zeros((reason,) for reason in (*ROLLBACK_REASONS, OTHER))
    )
    fallbacks: Counter[Labels] = field(default_factory=lambda: _zeros((one, other, "failed") for one, other in _LOWER))
    rehearsals: Counter[Labels] = field(default_factory=lambda: _zeros((outcome,) for outcome in FINAL))
    last_updates: dict[Labels, float] = field(default_factory=dict)
    guests: LastOfGuests = field(default_factory=LastOfGuests)
    fallen: Fallen = field(default_factory=Fallen)
    open: int = 0
    state: State = State.IDLE
    paused: dict[Labels, float] = field(default_factory=dict)  # guest -> since when, Unix time

    def copy(self) -> Figures:
        """What is added to one is not in the other."""
        return Figures(
            pauses=_copied(self.pauses),
            phases=_copied(self.phases),
            reboots=_copied(self.reboots),
            guest_updates=self.guest_updates.copy(),
            over_budget=self.over_budget.copy(),
            rollbacks=self.rollbacks.copy(),
            fallbacks=self.fallbacks.copy(),
            rehearsals=self.rehearsals.copy(),
            last_updates=dict(self.last_updates),
            guests=self.guests.copy(),
            fallen=self.fallen.copy(),
            open=self.open,
            state=self.state,
            paused=dict(self.paused),
        )

    def add(self, update: UpdateReport) -> None:
        """One more; of one that is open, what is certain already."""
        match update.kind:
            case OrderKind.UPDATE | OrderKind.ADOPTION:
                self._add_update(update)
            case OrderKind.REHEARSAL:
                self._add_rehearsal(update)
            case None:  # another version wrote it
                pass

    def _add_rehearsal(self, rehearsal: UpdateReport) -> None:
        if rehearsal.outcome is not None:
            self.rehearsals[rehearsal.outcome,] += 1
        else:
            self.open += 1
            self.state = State.REHEARSING if self.state is State.IDLE else self.state

    def _add_update(self, update: UpdateReport) -> None:
        if update.outcome is None:
            self.open += 1
            stuck = update.standing == Outcome.NEEDS_OPERATOR or self.state is State.NEEDS_OPERATOR
            self.state = State.NEEDS_OPERATOR if stuck else State.UPDATING
        elif update.ended is not None:
            self.last_updates[update.outcome,] = max(update.ended, self.last_updates.get((update.outcome,), 0.0))
        self._add_fallbacks(update)
        for guest in update.guests:
            if guest.outcome in FINAL:
                self._add_guest(update, guest)

    def _add_guest(self, update: UpdateReport, guest: GuestReport) -> None:
        self.guest_updates[guest.method, update.component, str(guest.outcome)] += 1
        self.guests.add(guest)
        if guest.over_budget:
            self.over_budget[guest.method,] += 1
        if guest.outcome is Outcome.ROLLED_BACK:
            self.rollbacks[_bounded(guest.reason_kind),] += 1
        if guest.outcome is Outcome.UPDATED:
            self._add_lengths(update, guest)

    def _add_lengths(self, update: UpdateReport, guest: GuestReport) -> None:
        if guest.pause_seconds is not None:
            labels = (guest.method, guest.technique or "none", update.component)
            self.pauses.setdefault(labels, Lengths()).add(guest.pause_seconds)
            for phase, took in _stood_in(update, guest, guest.pause_seconds).items():
                self.phases[phase,].add(took)
        for phase, seconds in zip(REBOOT_PHASES, (guest.down_seconds, guest.boot_seconds), strict=True):
            if seconds is not None:
                self.reboots[phase,].add(seconds)

    def _add_fallbacks(self, update: UpdateReport) -> None:
        """Guests that go on in this update where another one of the same roll was undone for them."""
        roll = update.place.roll if update.place else ""
        if roll != self.fallen.roll:
            self.fallen = Fallen(roll)
        if not roll:
            return
        for guest in update.guests:
            method, kind = self.fallen.undone.pop(guest.uuid, (guest.method, ""))
            if method != guest.method:
                self.fallbacks[method, guest.method, _bounded(kind)] += 1
            if guest.outcome is Outcome.ROLLED_BACK:
                self.fallen.undone[guest.uuid] = (guest.method, guest.reason_kind)


# -- one for each metric ---------------------------------------------------------------------------------------------


def build_info(_: Figures) -> Values:
    """The version that runs."""
    return {(__version__,): 1}


def pauses(figures: Figures) -> Histogram:
    """Pauses of updated guests, by method, technique and component."""
    return figures.pauses


def phases(figures: Figures) -> Histogram:
    """What the pauses of updated guests are made of."""
    return figures.phases


def reboots(figures: Figures) -> Histogram:
    """How long guests that were updated by a reboot were shut off, and how long they took to boot."""
    return figures.reboots


def clock_offsets(figures: Figures) -> Values:
    """Each guest's clock at its last update, by when it was read."""
    found: dict[Labels, float] = {}
    for name, last in figures.guests:
        read = (("before", last.clock.before), ("resumed", last.clock.after), ("synced", last.clock.synced))
        found |= {(name, when): offset for when, offset in read if offset is not None}
    return found


def clock_bounds(figures: Figures) -> Values:
    """How far off the last reading of each guest's clock may be."""
    return {(name,): last.clock.bound for name, last in figures.guests if last.clock.bound is not None}


def uncorrected_clocks(figures: Figures) -> Values:
    """Guests whose clock was left as it was by their last update, and why."""
    return {(name, last.uncorrected): 1 for name, last in figures.guests if last.uncorrected}


def guest_updates(figures: Figures) -> Values:
    """Guests by how their updates ended."""
    return figures.guest_updates


def over_budget(figures: Figures) -> Values:
    """Guests that stood still for too long."""
    return figures.over_budget


def rollbacks(figures: Figures) -> Values:
    """Guests that were brought back, by the kind of error."""
    return figures.rollbacks


def fallbacks(figures: Figures) -> Values:
    """Guests that went further down their ladder."""
    return figures.fallbacks


def last_pauses(figures: Figures) -> Values:
    """Each guest's last pause by each method."""
    return {(name, method): pause for name, last in figures.guests for method, pause in last.pauses.items()}


def budgets(figures: Figures) -> Values:
    """What each guest was allowed last."""
    return {(name,): last.budget_seconds for name, last in figures.guests if last.budget_seconds is not None}


def paused_since(figures: Figures) -> Values:
    """Guests that stand still now."""
    return figures.paused


def update_state(figures: Figures) -> Values:
    """What goes on: the worst of it is 1, everything else 0."""
    return {(state,): float(state is figures.state) for state in State}


def open_updates(figures: Figures) -> Values:
    """Updates and rehearsals that have not ended."""
    return {(): figures.open}


def last_updates(figures: Figures) -> Values:
    """When the last update ended, by outcome."""
    return figures.last_updates


def rehearsals(figures: Figures) -> Values:
    """Rehearsals by how they ended."""
    return figures.rehearsals


def _stood_in(update: UpdateReport, guest: GuestReport, pause: float) -> Mapping[str, float]:
    """What the pause of a guest that was updated in place is made of, as far as that is known."""
    took = guest.phases
    if guest.method != Method.IN_PLACE:  # where RAM is copied the switch begins before the pause
        return {}
    if guest.technique != Technique.HOLD:
        return {phase: took[phase] for phase in PAUSE_PHASES if phase in took}
    if guest.suspend_seconds is None or "save" not in took or "restore" not in took:
        return {}
    known = {"pause": guest.suspend_seconds, "save": took["save"], "restore": took["restore"]}
    if update.swap_seconds is not None:
        known[SWAP_PHASE] = update.swap_seconds
    return {**known, "resume": max(0.0, pause - sum(known.values()))}  # what is left of it


def _bounded(kind: str) -> str:
    return kind if kind in ROLLBACK_REASONS else OTHER


def _zeros(known: Iterable[Labels]) -> Counter[Labels]:
    return Counter(dict.fromkeys(known, 0))


def _copied(lengths: Mapping[Labels, Lengths]) -> dict[Labels, Lengths]:
    return {labels: one.copy() for labels, one in lengths.items()}
