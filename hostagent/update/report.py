"""What became of an update, in values that tables, --json and metrics are made of: a fold over the journal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from hostagent.errors import NeedsOperator
from hostagent.facts import QemuTree
from hostagent.plan import Method, Place, Technique
from hostagent.planning.prediction import Past
from hostagent.update.host_hold import step_name
from hostagent.update.journal import GuestRecord, Json, Outcome, UpdateRecord
from hostagent.update.landing import booted_after
from hostagent.update.order import OrderedGuest, OrderKind, UpdateOrder
from hostagent.update.paused import PAUSE_STEP, PAUSED_AT

ROLL_STOPPED = "roll_stopped"  # a note of the host's: why a roll went no further after that update
OPEN = "open"  # the outcome, in words, of what has none yet


@dataclass(frozen=True)
class ClockOffsets:
    """Guest minus host, seconds: before the pause, after it, after setting. The truth is at most `bound` away."""

    before: float | None
    after: float | None
    synced: float | None
    bound: float | None


@dataclass(frozen=True)
class GuestReport:
    """What became of one guest. None is what is not known."""

    name: str
    uuid: str
    method: str
    technique: str | None  # of a method in place
    outcome: Outcome | None  # None: open
    reason: str
    reason_kind: str
    ram: str | None  # "kept", "copied" or "fresh", of a guest that was updated
    pause_seconds: float | None
    pause_source: str | None
    budget_seconds: float | None
    clock: ClockOffsets
    clock_outcome: str | None
    clock_reason: str | None
    qemu_before: str | None
    qemu_after: str | None
    moved_bytes: int | None
    phases: Mapping[str, float]  # step -> seconds, in their order
    xml_differences: tuple[str, ...]
    ended_at: float | None
    halt_seconds: float | None = None  # that it stood still as its RAM began to be copied, besides the pause
    down_seconds: float | None = None  # that one which was rebooted was shut off
    boot_seconds: float | None = None  # and then took until it showed that it had booted
    runs_on: str | None = None  # the peer that it has migrated to; "": it came back; None: it never left
    left_disks: tuple[str, ...] = ()  # files of disks that were copied, and are past
    left_disks_on: str = ""  # the peer that they are on; "": this host
    definition: str | None = None  # what became of the persistent one of a guest whose RAM was copied
    suspend_seconds: float | None = None  # of one that was held: that it stood still in the step that paused it

    @property
    def over_budget(self) -> bool | None:
        """Whether it stood still for longer than allowed."""
        if self.pause_seconds is None or self.budget_seconds is None:
            return None
        return self.pause_seconds > self.budget_seconds

    def to_json(self) -> dict[str, object]:
        """As `--json` gives it."""
        return {
            "name": self.name,
            "uuid": self.uuid,
            "method": self.method,
            "technique": self.technique,
            "outcome": self.outcome or OPEN,
            "reason": self.reason,
            "ram": self.ram,
            "pause_seconds": self.pause_seconds,
            "pause_source": self.pause_source,
            "halt_seconds": self.halt_seconds,
            "down_seconds": self.down_seconds,
            "boot_seconds": self.boot_seconds,
            "felt_seconds": None,  # only somebody who watches the guest from outside can say
            "budget_seconds": self.budget_seconds,
            "over_budget": self.over_budget,
            "clock_offset_seconds": {
                "before": self.clock.before,
                "after": self.clock.after,
                "synced": self.clock.synced,
                "bound": self.clock.bound,
            },
            "clock_outcome": self.clock_outcome,
            "clock_reason": self.clock_reason,
            "qemu": {"before": self.qemu_before, "after": self.qemu_after},
            "moved_bytes": self.moved_bytes,
            "runs_on": self.runs_on,
            "left_disks": {"on": self.left_disks_on, "paths": list(self.left_disks)} if self.left_disks else None,
            "definition": self.definition,
            "phases": dict(self.phases),
            "xml_differences": list(self.xml_differences),
        }


@dataclass(frozen=True)
class UpdateReport:
    """What became of one update."""

    id: str
    component: str
    kind: OrderKind | None  # None: another version of hostagent wrote it
    outcome: Outcome | None
    reason: str
    begun: float  # Unix time, like `ended`
    ended: float | None
    to: QemuTree | None
    guests: tuple[GuestReport, ...]
    undoes: str = ""  # the update that this one brought guests back from
    boot_seconds: float | None = None  # of the pauses, what a new kernel's boot took until hostagent ran again
    place: Place | None = None  # in a roll
    roll_stopped: str = ""  # why the roll went no further after it
    swap_seconds: float | None = None  # that all components together took which were swapped while guests were held

    @property
    def is_open(self) -> bool:
        """Whether something is left to finish or undo."""
        return self.outcome is None

    @property
    def standing(self) -> str:
        """The outcome in one word, also of an update that has none yet."""
        if self.outcome is None and any(guest.outcome is Outcome.NEEDS_OPERATOR for guest in self.guests):
            return Outcome.NEEDS_OPERATOR
        return self.outcome or OPEN

    def to_json(self) -> dict[str, object]:
        """As `--json` gives it."""
        to = self.to
        return {
            "id": self.id,
            "component": self.component,
            "kind": self.kind,
            "undoes": self.undoes or None,
            "outcome": self.standing,
            "reason": self.reason,
            "begun": timestamp(self.begun),
            "ended": None if self.ended is None else timestamp(self.ended),
            "to": None if to is None else {"name": to.name, "version": str(to.version), "package": to.package},
            "boot_seconds": self.boot_seconds,
            "roll": self.place
            and {
                "id": self.place.roll,
                "group": self.place.group,
                "groups": self.place.groups,
                "stopped": self.roll_stopped or None,
            },
            "guests": [guest.to_json() for guest in self.guests],
        }


def report_of(update: UpdateRecord) -> UpdateReport:
    """The report of an update as the journal has it now; readable also when another version wrote it."""
    try:
        order = UpdateOrder.of(update)
    except NeedsOperator:
        order = None
    phases = _phases(update)
    return UpdateReport(
        id=update.id,
        component=order.component if order else "unknown",
        kind=order.kind if order else None,
        outcome=update.outcome,
        reason=update.reason,
        begun=update.begun_at,
        ended=update.ended_at,
        to=order.to if order else None,
        guests=tuple(
            _guest(record, order, phases.get(uuid, {}), _suspended(update, record, phases.get(uuid, {})))
            for uuid, record in update.guests.items()
        ),
        undoes=order.undoes if order else "",
        boot_seconds=booted_after(update),
        place=Place(order.roll, order.group, order.groups) if order and order.roll else None,
        roll_stopped=_text(update.host_notes, ROLL_STOPPED) or "",
        swap_seconds=sum(swapped.values()) if (swapped := _swapped(update)) else None,
    )


def past_of(updates: Sequence[UpdateRecord]) -> Past:
    """What updates of this host have measured."""
    pauses: dict[Technique | Method, dict[str, list[float]]] = {}
    speeds: list[float] = []
    swaps: dict[str, list[float]] = {}
    for update in updates:
        if update.order.get("kind") not in (OrderKind.UPDATE, OrderKind.ADOPTION):
            continue
        ways, swapped = _ways(update), _swapped(update)
        held = list(ways.values()).count(Technique.HOLD)
        if update.outcome is Outcome.UPDATED:
            for name, took in swapped.items():
                swaps.setdefault(name, []).append(took)
        for record in update.guests.values():
            way = ways.get(record.uuid, Technique.HANDOVER)
            own = _own_pause(update, record, held, swapped) if way is Technique.HOLD else _pause(record)
            if record.outcome is Outcome.UPDATED and own is not None:
                alike = pauses.setdefault(way, {})
                alike.setdefault(record.uuid, []).append(own)
            copied, seconds = (_number(record.measured, name) for name in ("copied_bytes", "copy_seconds"))
            if copied and seconds:
                speeds.append(copied / seconds)
    return Past(
        pauses=pauses.get(Technique.HANDOVER, {}),
        holds=pauses.get(Technique.HOLD, {}),
        migrations=pauses.get(Method.LIVE_MIGRATE, {}),
        copy_speeds=speeds,
        swaps=swaps,
    )


def _swapped(update: UpdateRecord) -> Mapping[str, float]:
    """How long each component took that was swapped while its guests were held, seconds."""
    names, took = update.order.get("swaps"), _phases(update).get("", {})
    return {
        name: took[step_name(name)] for name in (names if isinstance(names, list) else ()) if step_name(name) in took
    }


def _own_pause(update: UpdateRecord, record: GuestRecord, held: int, swapped: Mapping[str, float]) -> float | None:
    """How long a guest stood still for itself: one held with all others waits for them, and for the swap."""
    pause = _pause(record)
    if pause is None or not update.order.get("swaps"):
        return pause
    return max(0.0, pause - sum(swapped.values())) / held if swapped and held else None


def _pause(record: GuestRecord) -> float | None:
    return _number(record.measured, "pause_seconds")


def _ways(update: UpdateRecord) -> Mapping[str, Technique | Method]:
    """How it took its guests, by uuid: pauses of one way say nothing of those of another."""
    try:
        guests = UpdateOrder.of(update).guests
    except NeedsOperator:  # written by another version
        return {}
    return {guest.uuid: guest.technique or guest.method for guest in guests}


def timestamp(at: float) -> str:
    """Unix time as ISO 8601 in UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


_RAM = {Method.IN_PLACE: "kept", Method.IN_PLACE_COPY: "copied", Method.REBOOT: "fresh"}


def _guest(
    record: GuestRecord, order: UpdateOrder | None, phases: Mapping[str, float], suspended: float | None
) -> GuestReport:
    ordered = next((guest for guest in order.guests if guest.uuid == record.uuid), None) if order else None
    before, after = _qemu_names(ordered, order)
    measured = record.measured
    updated = record.outcome is Outcome.UPDATED
    runs_on = {Outcome.UPDATED: after, Outcome.ROLLED_BACK: before}
    moved = measured.get("moved_bytes")
    copying = _number(measured, "copy_seconds")
    differences, left_disks = measured.get("xml_differences"), measured.get("left_disks")
    return GuestReport(
        name=record.name,
        uuid=record.uuid,
        method=ordered.method if ordered else "unknown",
        technique=ordered.technique if ordered else "unknown",
        outcome=record.outcome,
        reason=record.reason,
        reason_kind=record.reason_kind,
        ram=_RAM.get(ordered.method) if updated and ordered is not None else None,
        pause_seconds=_number(measured, "pause_seconds"),
        pause_source=_text(measured, "pause_source"),
        budget_seconds=ordered.budget_seconds if ordered else None,
        clock=_clock(measured),
        clock_outcome=_text(measured, "clock_outcome"),
        clock_reason=_text(measured, "clock_reason") or _text(measured, "clock_before_reason"),
        qemu_before=before,
        qemu_after=(_text(measured, "qemu_after") if updated else None) or runs_on.get(record.outcome or Outcome.GONE),
        runs_on=on_peer if updated and isinstance(on_peer := measured.get("runs_on"), str) else None,
        left_disks=tuple(map(str, left_disks)) if isinstance(left_disks, list) else (),
        left_disks_on=_text(measured, "left_disks_on") or "",
        moved_bytes=moved if isinstance(moved, int) else None,
        definition=_text(measured, "definition"),
        halt_seconds=_number(measured, "halt_seconds"),
        down_seconds=_number(measured, "down_seconds"),
        boot_seconds=_number(measured, "boot_seconds"),
        suspend_seconds=suspended,
        phases=phases if copying is None else {**phases, "copy": copying},
        xml_differences=tuple(map(str, differences)) if isinstance(differences, list) else (),
        ended_at=record.ended_at,
    )


def _suspended(update: UpdateRecord, record: GuestRecord, phases: Mapping[str, float]) -> float | None:
    """How long it stood still in the step that paused it: most of that comes before, and it runs meanwhile."""
    since = _number(record.notes, PAUSED_AT)
    if not since or PAUSE_STEP not in phases:
        return None
    begun = next(at for guest, step, at in update.step_times if (guest, step) == (record.uuid, PAUSE_STEP))
    return max(0.0, round(begun + phases[PAUSE_STEP] - since, 6))


def _qemu_names(ordered: OrderedGuest | None, order: UpdateOrder | None) -> tuple[str | None, str | None]:
    """What a guest ran on and what it was to run on: versions, or packages where the versions are the same."""
    before = ordered.before if ordered else None
    after = (order.to or before) if order else None
    same = before is not None and after is not None and before.version == after.version
    return _qemu_name(before, by_package=same), _qemu_name(after, by_package=same)


def _qemu_name(tree: QemuTree | None, *, by_package: bool) -> str | None:
    if tree is None:
        return None
    return (tree.package or tree.name) if by_package else str(tree.version)


def _clock(measured: Json) -> ClockOffsets:
    """The bound is that of the last reading there is."""
    bounds = (_number(measured, f"clock_{when}_bound_seconds") for when in ("synced", "after", "before"))
    return ClockOffsets(
        before=_number(measured, "clock_before_seconds"),
        after=_number(measured, "clock_after_seconds"),
        synced=_number(measured, "clock_synced_seconds"),
        bound=next((bound for bound in bounds if bound is not None), None),
    )


def _phases(update: UpdateRecord) -> Mapping[str, Mapping[str, float]]:
    """Guest -> step -> seconds. Steps follow one another, so one lasts until the update's next one begins.

    Guests that are held together, or that are taken each for itself, go side by side: a step of one lasts until its own
    next one, or the host's. Left out: the last step, whose end is not written down, and steps that a crash made begin
    twice.
    """
    lengths: dict[str, dict[str, float]] = {}
    begins = Counter((guest, step) for guest, step, _ in update.step_times)
    together = _side_by_side(update)
    following: dict[str, float] = {}  # when the next step of that guest, or of the host, begins
    next_of_any: float | None = None
    for guest, step, begun in reversed(update.step_times):
        own = [following[key] for key in (guest, "") if key in following]
        ends = min(own, default=None) if guest in together else next_of_any
        if begins[guest, step] == 1 and ends is not None:
            lengths.setdefault(guest, {})[step] = round(ends - begun, 6)
        following[guest] = next_of_any = begun
    return {guest: dict(reversed(steps.items())) for guest, steps in lengths.items()}


def _side_by_side(update: UpdateRecord) -> frozenset[str]:
    """The guests whose steps come between those of others, by uuid."""
    if update.order.get("swaps"):
        return frozenset(guest for guest, _, _ in update.step_times if guest)
    try:
        guests = UpdateOrder.of(update).guests
    except NeedsOperator:  # written by another version
        return frozenset()
    return frozenset(guest.uuid for guest in guests if not guest.method.in_place)


def _number(measured: Json, name: str) -> float | None:
    value = measured.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number that is longer than any float
        return None


def _text(measured: Json, name: str) -> str | None:
    value = measured.get(name)
    return value if isinstance(value, str) and value else None
