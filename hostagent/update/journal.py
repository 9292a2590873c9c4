"""The durable record of what was begun and done: the only state there is.

Append-only rows in sqlite (WAL, synchronous=FULL: a commit is on the disk when `append` returns). Nothing is ever
changed or removed; where an update stands is a fold over its rows. Rows written in one `append` are one commit.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from hostagent.errors import Failed, NeedsOperator

Json = Mapping[str, object]
SCHEMA_VERSION = 1
BUSY_SECONDS = 0.25  # whoever changes the host holds its lock and writes alone; a guest may stand still meanwhile


class Kind(StrEnum):
    """What a row says."""

    UPDATE_BEGUN = "update-begun"
    GUEST_BEGUN = "guest-begun"
    STEP_BEGUN = "step-begun"
    STEP_DONE = "step-done"
    STEP_FAILED = "step-failed"
    UNDO_BEGUN = "undo-begun"
    UNDO_DONE = "undo-done"
    NOTED = "noted"
    MEASURED = "measured"
    GUEST_ENDED = "guest-ended"
    UPDATE_ENDED = "update-ended"


class Outcome(StrEnum):
    """How a guest, or a whole update, ended."""

    UPDATED = "updated"
    ROLLED_BACK = "rolled-back"  # runs as before
    GONE = "gone"  # its operator ended it meanwhile; left alone
    LOST = "lost"  # its RAM is gone; the reason says by what
    NEEDS_OPERATOR = "needs-operator"


@dataclass(frozen=True)
class Entry:
    """A row to be written."""

    kind: Kind
    guest: str = ""  # uuid, "" for what concerns the host
    step: str = ""
    body: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A row as it stands in the journal; `at` is Unix time in seconds."""

    seq: int
    at: float
    boot_id: str
    update: str
    entry: Entry


class Journal(Protocol):
    """Where updates write; tests put one that kills the writer at any row."""

    def append(self, update: str, *entries: Entry) -> None:
        """Write all entries as one durable commit; raises Failed when they are not on the disk."""
        ...

    def rows(self, *, updates: Collection[str] | None = None, kinds: Collection[Kind] | None = None) -> Sequence[Row]:
        """Oldest first; of those updates and of those kinds alone, where they are given."""
        ...

    def open_updates(self) -> Sequence[UpdateRecord]:
        """Those that have not ended, oldest first."""
        ...


class WallClock(Protocol):
    """Unix time in seconds."""

    def __call__(self) -> float: ...


class SqliteJournal:
    """The journal in a file of its own, mode 0600."""

    def __init__(self, path: Path, boot_id: str, wall: WallClock) -> None:
        self._boot_id = boot_id
        self._wall = wall
        self._path = path
        self._turn = threading.Lock()  # guests are held side by side
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False)
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma synchronous=full")
            self._migrate()
        except (OSError, sqlite3.Error) as error:
            raise Failed(f"opening the journal {path}", found=str(error)) from error

    def _migrate(self) -> None:
        (version,) = self._db.execute("pragma user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise Failed(
                f"opening the journal {self._path}",
                expected=f"format {SCHEMA_VERSION}",
                found=f"format {version}",
                hint="a newer hostagent wrote it; use that one",
            )
        if version == SCHEMA_VERSION:
            return  # nothing is written: it must open on a full disk, to resume a guest
        self._db.execute(
            "create table if not exists journal (seq integer primary key autoincrement, at real not null,"
            " boot_id text not null, update_id text not null, kind text not null, guest text not null,"
            " step text not null, body text not null)"
        )
        self._db.execute("create index if not exists journal_update on journal (update_id)")
        self._db.execute(f"pragma user_version={SCHEMA_VERSION}")

    def append(self, update: str, *entries: Entry) -> None:
        rows = [
            (self._wall(), self._boot_id, update, str(entry.kind), entry.guest, entry.step, _text(entry.body))
            for entry in entries
        ]
        try:
            with self._turn:
                self._insert(rows)
        except sqlite3.Error as error:
            raise Failed(
                f"writing the journal {self._path}",
                found=str(error),
                hint="make room on its disk, then: hostagent recover",
            ) from error

    def _insert(self, rows: Sequence[tuple[object, ...]]) -> None:
        try:
            self._db.execute("begin immediate")
            self._db.executemany(
                "insert into journal (at, boot_id, update_id, kind, guest, step, body) values (?,?,?,?,?,?,?)", rows
            )
            self._db.execute("commit")
        except sqlite3.Error:
            if self._db.in_transaction:
                self._db.execute("rollback")
            raise

    def rows(
        self,
        since: int = 0,
        limit: int = -1,
        *,
        updates: Collection[str] | None = None,
        kinds: Collection[Kind] | None = None,
    ) -> Sequence[Row]:
        """From that number on, and not more than so many; a negative limit is none, as sqlite has it."""
        where, values = "seq >= ?", list[object]([since])
        for column, wanted in (("update_id", updates), ("kind", kinds)):
            if wanted is not None:
                where += f" and {column} in ({', '.join('?' * len(wanted))})"
                values += wanted
        with self._reading():
            found = self._db.execute(
                f"select seq, at, boot_id, update_id, kind, guest, step, body from journal where {where}"  # noqa: S608
                " order by seq limit ?",
                (*values, limit),
            ).fetchall()
            return [
                Row(seq, at, boot_id, update, Entry(Kind(kind), guest, step, json.loads(body)))
                for seq, at, boot_id, update, kind, guest, step, body in found
            ]

    def open_updates(self) -> Sequence[UpdateRecord]:
        with self._reading():
            found = self._db.execute(
                "select update_id from journal where kind = ? and update_id not in"
                " (select update_id from journal where kind = ?)",
                (Kind.UPDATE_BEGUN, Kind.UPDATE_ENDED),
            ).fetchall()
        return fold(self.rows(updates=[update for (update,) in found]))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError) as error:
            raise NeedsOperator(
                f"reading the journal {self._path}",
                found=str(error),
                hint=f"move {self._path} aside and report it",
            ) from error

    def close(self) -> None:
        self._db.close()


def _text(body: Json) -> str:
    return json.dumps(body, sort_keys=True, ensure_ascii=False)


# -- the fold ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """The steps of one table that were begun, done and undone, each in the order it happened."""

    begun: tuple[str, ...] = ()
    done: frozenset[str] = frozenset()
    undone: frozenset[str] = frozenset()

    @property
    def open(self) -> tuple[str, ...]:
        """Begun and not undone: what may have effects in the world."""
        return tuple(step for step in self.begun if step not in self.undone)


@dataclass(frozen=True)
class GuestRecord:
    """Where one guest of an update stands."""

    uuid: str
    name: str
    progress: Progress = Progress()
    notes: Json = field(default_factory=dict)  # later notes overlay earlier ones
    measured: Json = field(default_factory=dict)
    failure: str = ""  # why a step failed, and the kind of that; the first failure is the reason for what followed
    failure_kind: str = ""
    outcome: Outcome | None = None
    reason: str = ""
    reason_kind: str = ""
    ended_at: float | None = None


@dataclass(frozen=True)
class UpdateRecord:
    """Where one update stands."""

    id: str
    begun_at: float
    boot_id: str
    order: Json  # what was asked for; update/host.py writes and reads it
    guests: Mapping[str, GuestRecord] = field(default_factory=dict)
    host: Progress = Progress()
    host_notes: Json = field(default_factory=dict)
    outcome: Outcome | None = None
    reason: str = ""
    ended_at: float | None = None
    step_times: tuple[tuple[str, str, float], ...] = ()  # (guest, step, Unix time it began)

    @property
    def is_open(self) -> bool:
        """Whether something may be left to finish or undo."""
        return self.outcome is None


def fold(rows: Sequence[Row]) -> tuple[UpdateRecord, ...]:
    """Every update in the journal, oldest first."""
    updates: dict[str, UpdateRecord] = {}
    for row in rows:
        folded(updates, row)
    return tuple(updates.values())


def folded(updates: MutableMapping[str, UpdateRecord], row: Row) -> None:
    """One more row; one of an update that is not among `updates` changes nothing."""
    if row.entry.kind is Kind.UPDATE_BEGUN:
        updates[row.update] = UpdateRecord(row.update, row.at, row.boot_id, row.entry.body)
    elif row.update in updates:
        updates[row.update] = _apply(updates[row.update], row)


def _apply(update: UpdateRecord, row: Row) -> UpdateRecord:
    entry = row.entry
    if entry.kind is Kind.UPDATE_ENDED:
        outcome, reason = Outcome(str(entry.body["outcome"])), str(entry.body.get("reason", ""))
        return replace(update, outcome=outcome, reason=reason, ended_at=row.at)
    if entry.kind is Kind.STEP_BEGUN:
        update = replace(update, step_times=(*update.step_times, (entry.guest, entry.step, row.at)))
    if not entry.guest:
        if entry.kind is Kind.NOTED:
            return replace(update, host_notes={**update.host_notes, **entry.body})
        return replace(update, host=progressed(update.host, entry))
    if entry.kind is Kind.GUEST_BEGUN:
        record = GuestRecord(entry.guest, str(entry.body["name"]))
    elif entry.guest in update.guests:
        record = _guest_applied(update.guests[entry.guest], row)
    else:
        return update
    return replace(update, guests={**update.guests, entry.guest: record})


def _guest_applied(record: GuestRecord, row: Row) -> GuestRecord:
    body = row.entry.body
    match row.entry.kind:
        case Kind.NOTED:
            return replace(record, notes={**record.notes, **body})
        case Kind.MEASURED:
            return replace(record, measured={**record.measured, **body})
        case Kind.GUEST_ENDED:
            return replace(
                record,
                outcome=Outcome(str(body["outcome"])),
                reason=str(body.get("reason", "")),
                reason_kind=str(body.get("kind", "")),
                ended_at=row.at,
            )
        case Kind.STEP_FAILED if not record.failure:
            return replace(record, failure=str(body.get("error", "")), failure_kind=str(body.get("kind", "")))
        case _:
            return replace(record, progress=progressed(record.progress, row.entry))


def progressed(progress: Progress, entry: Entry) -> Progress:
    """How far a subject is once the entry is written."""
    step = entry.step
    match entry.kind:
        case Kind.STEP_BEGUN:
            begun = progress.begun if step in progress.begun else (*progress.begun, step)
            return Progress(begun, progress.done - {step}, progress.undone - {step})
        case Kind.STEP_DONE:
            return replace(progress, done=progress.done | {step})
        case Kind.UNDO_DONE:
            return replace(progress, undone=progress.undone | {step}, done=progress.done - {step})
        case _:
            return progress
