"""Follows the journal, whoever writes it: what updates do, also from a terminal, is told as they do it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hostagent.agent.log import Level, Value
from hostagent.update.journal import Json, Kind, Outcome, Row
from hostagent.update.journal_tail import JournalTail

_BAD = {Outcome.NEEDS_OPERATOR: Level.ERROR, Outcome.LOST: Level.ERROR, Outcome.ROLLED_BACK: Level.WARNING}
_FIGURES = {  # what is measured -> what a line calls it, milliseconds
    "pause_seconds": "pause_ms",
    "halt_seconds": "halt_ms",
    "down_seconds": "down_ms",
    "boot_seconds": "boot_ms",
    "clock_synced_seconds": "clock_offset_ms",
}


@dataclass(frozen=True)
class Told:
    """A line for the log."""

    event: str
    update: str
    guest: str = ""
    level: Level = Level.INFO
    more: tuple[tuple[str, Value], ...] = ()


@dataclass(frozen=True)
class OpenUpdate:
    """An update that has no end in the journal yet."""

    id: str
    component: str
    left: frozenset[str]  # its guests that have not ended for good, by uuid
    waiting: frozenset[str]  # those of them that a person has to see to


@dataclass
class _Open:
    component: str
    names: dict[str, str] = field(default_factory=dict)  # by uuid
    left: set[str] = field(default_factory=set)
    waiting: set[str] = field(default_factory=set)


class Tail:
    """The journal's end, and what stands open in it. Not for two threads at a time."""

    def __init__(self, path: Path) -> None:
        self._journal = JournalTail(path)
        self._begun = False
        self._open: dict[str, _Open] = {}
        self.last_ended: Told | None = None  # of an update

    def news(self) -> tuple[Told, ...]:
        """What was written since the last call, as lines; of what was there at the first call none is made.

        Raises NeedsOperator or Refused when it cannot be read.
        """
        found: list[Told] = []
        past = not self._begun
        for news in self._journal.news():
            if news.anew:
                self._open.clear()
                found, past = [Told("journal is another one", "", level=Level.WARNING)], True
            told = [self._told(row) for row in news.rows]
            found += [] if past else [line for line in told if line is not None]
        self._begun = True
        return tuple(found)

    def open_updates(self) -> Mapping[str, OpenUpdate]:
        """Those that have no end, by id, as they are now."""
        return {
            id: OpenUpdate(id, update.component, frozenset(update.left), frozenset(update.waiting))
            for id, update in self._open.items()
        }

    def _told(self, row: Row) -> Told | None:
        kind, body = row.entry.kind, row.entry.body
        if kind is Kind.UPDATE_BEGUN:
            self._open[row.update] = _Open(str(body.get("component", "")))
            return _begun(row, body)
        opened = self._open.get(row.update)
        if opened is None:
            return None
        if kind is Kind.UPDATE_ENDED:
            del self._open[row.update]
            told = Told("update ended", row.update, "", _level(body), _ending(body))
            self.last_ended = told
            return told
        if kind is Kind.GUEST_BEGUN:
            opened.names[row.entry.guest] = str(body.get("name", ""))
            opened.left.add(row.entry.guest)
        name = opened.names.get(row.entry.guest, "")
        if kind is Kind.GUEST_ENDED:
            if body.get("outcome") == Outcome.NEEDS_OPERATOR:
                opened.waiting.add(row.entry.guest)
            else:
                opened.left.discard(row.entry.guest)
                opened.waiting.discard(row.entry.guest)
        return _of_guest(row, name)


def _begun(row: Row, body: Json) -> Told:
    guests, pid = body.get("guests"), body.get("pid")
    more: list[tuple[str, Value]] = [
        ("kind", _word(body, "kind")),
        ("component", _word(body, "component")),
        ("guests", len(guests) if isinstance(guests, list) else None),
        ("pid", pid if isinstance(pid, int) else None),
    ]
    return Told("update begun", row.update, more=tuple(more))


def _of_guest(row: Row, name: str) -> Told | None:
    kind, body, step = row.entry.kind, row.entry.body, row.entry.step
    match kind:
        case Kind.GUEST_BEGUN:
            return Told("guest begun", row.update, name)
        case Kind.MEASURED:
            figures = _figures(body)
            return Told("guest measured", row.update, name, more=figures) if figures else None
        case Kind.STEP_FAILED:
            more = (("step", step), ("error", _word(body, "error")), ("kind", _word(body, "kind")))
            return Told("step failed", row.update, name, Level.WARNING, more)
        case Kind.UNDO_BEGUN:
            return Told("undoing", row.update, name, Level.WARNING, (("step", step),))
        case Kind.GUEST_ENDED:
            return Told("guest ended", row.update, name, _level(body), _ending(body))
        case _:
            return None


def _figures(body: Json) -> tuple[tuple[str, Value], ...]:
    found: list[tuple[str, Value]] = []
    for key, name in _FIGURES.items():
        value = body.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found.append((name, round(float(value) * 1000, 3)))
    if found and "clock_outcome" in body:
        found.append(("clock", _word(body, "clock_outcome")))
    return tuple(found)


def _ending(body: Json) -> tuple[tuple[str, Value], ...]:
    return (("outcome", _word(body, "outcome")), ("reason", _word(body, "reason")), ("kind", _word(body, "kind")))


def _level(body: Json) -> Level:
    return next((level for outcome, level in _BAD.items() if body.get("outcome") == outcome), Level.INFO)


def _word(body: Json, key: str) -> str | None:
    value = body.get(key)
    return value if isinstance(value, str) and value else None
