"""The journal: durable, private, appended to only; and the fold over its rows."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostagent.errors import Failed, NeedsOperator
from hostagent.update import journal as journal_module
from hostagent.update.journal import (
    SCHEMA_VERSION,
    Entry,
    Kind,
    Outcome,
    Progress,
    Row,
    SqliteJournal,
    fold,
)

GUEST = "4592f1c0-1b97-579e-b7b6-0cf4de9305ad"


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[SqliteJournal]:
    opened = SqliteJournal(tmp_path / "journal.sqlite", "boot-1", lambda: 1234.5)
    yield opened
    opened.close()


def again(journal: SqliteJournal, boot_id: str = "boot-1") -> SqliteJournal:
    return SqliteJournal(journal._path, boot_id, lambda: 0.0)


def rows(*entries: Entry, update: str = "u1", boot_id: str = "boot-1") -> list[Row]:
    return [Row(number, float(number), boot_id, update, entry) for number, entry in enumerate(entries)]


def begun(*entries: Entry) -> list[Row]:
    """An open update with one guest, and what happened to it."""
    return rows(
        Entry(Kind.UPDATE_BEGUN, body={"to": "10.0"}), Entry(Kind.GUEST_BEGUN, GUEST, body={"name": "web1"}), *entries
    )


def step(kind: Kind, name: str) -> Entry:
    return Entry(kind, GUEST, name)


# -- the file ------------------------------------------------------------------------------------------------


def test_what_was_appended_is_read_back_in_its_order(journal: SqliteJournal) -> None:
    first = Entry(Kind.UPDATE_BEGUN, body={"ä": ["<x>", None, 1.5]})
    journal.append("u1", first, Entry(Kind.STEP_BEGUN, GUEST, "start"))
    journal.append("u2", Entry(Kind.UPDATE_ENDED, body={"outcome": "updated"}))
    found = list(again(journal, "boot-2").rows())
    assert [(row.update, row.entry.kind, row.boot_id, row.at) for row in found] == [
        ("u1", Kind.UPDATE_BEGUN, "boot-1", 1234.5),
        ("u1", Kind.STEP_BEGUN, "boot-1", 1234.5),
        ("u2", Kind.UPDATE_ENDED, "boot-1", 1234.5),
    ]
    assert found[0].entry == first
    assert [row.seq for row in found] == sorted({row.seq for row in found})


def test_a_commit_is_on_the_disk_when_append_returns(journal: SqliteJournal) -> None:
    assert journal._db.execute("pragma journal_mode").fetchone() == ("wal",)
    assert journal._db.execute("pragma synchronous").fetchone() == (2,)  # FULL


def test_a_killed_writer_leaves_what_it_committed_and_nothing_of_the_rest(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from hostagent.update.journal import Entry, Kind, SqliteJournal\n"
        "journal = SqliteJournal(Path(sys.argv[1]), 'b', lambda: 0.0)\n"
        "journal.append('u1', Entry(Kind.UPDATE_BEGUN), Entry(Kind.STEP_BEGUN, 'g', 's'))\n"
        "journal._db.execute('begin immediate')\n"
        'journal._db.execute("insert into journal (at, boot_id, update_id, kind, guest, step, body)'
        " values (0, '', 'u1', 'noted', '', '', '{}')\")\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "journal.sqlite"
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -9
    opened = SqliteJournal(path, "b", lambda: 0.0)
    assert [row.entry.kind for row in opened.rows()] == [Kind.UPDATE_BEGUN, Kind.STEP_BEGUN]


def test_private_even_with_a_mild_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        SqliteJournal(tmp_path / "journal.sqlite", "b", lambda: 0.0).append("u1", Entry(Kind.UPDATE_BEGUN))
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():  # what sqlite makes beside it takes its mode
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_not_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Failed, match="opening the journal"):
        SqliteJournal(tmp_path / "journal.sqlite", "b", lambda: 0.0)
    assert not (tmp_path / "elsewhere").exists()


def test_entries_of_one_append_are_one_commit(journal: SqliteJournal) -> None:
    journal.append("u1", Entry(Kind.UPDATE_BEGUN))
    unwritable = Entry(Kind.NOTED, GUEST, step=None)  # type: ignore[arg-type]
    with pytest.raises(Failed, match="writing the journal"):
        journal.append("u1", Entry(Kind.GUEST_BEGUN, GUEST, body={"name": "x"}), unwritable)
    assert len(again(journal).rows()) == 1
    journal.append("u1", Entry(Kind.NOTED))  # and it goes on
    assert len(again(journal).rows()) == 2


def test_a_full_disk_fails_and_later_there_is_room(journal: SqliteJournal) -> None:
    pages = journal._db.execute("pragma page_count").fetchone()[0]
    journal._db.execute(f"pragma max_page_count={pages}")
    with pytest.raises(Failed, match="full") as caught:
        for _ in range(100):
            journal.append("u1", Entry(Kind.NOTED, body={"much": "x" * 4096}))
    assert "make room" in str(caught.value)
    before = len(again(journal).rows())
    journal._db.execute("pragma max_page_count=100000")
    journal.append("u1", Entry(Kind.NOTED))
    assert len(again(journal).rows()) == before + 1


def test_only_what_was_asked_for_is_read(journal: SqliteJournal) -> None:
    """A journal of years is not read for the sake of one update."""
    for update in ("u1", "u2", "u3"):
        journal.append(update, Entry(Kind.UPDATE_BEGUN), Entry(Kind.NOTED, body={"of": update}))
    journal.append("u2", Entry(Kind.UPDATE_ENDED, body={"outcome": "updated"}))
    assert {row.update for row in journal.rows(updates=["u1", "u3"])} == {"u1", "u3"}
    assert len(journal.rows(kinds=[Kind.NOTED])) == 3
    assert [row.entry.body for row in journal.rows(updates=["u3"], kinds=[Kind.NOTED])] == [{"of": "u3"}]
    assert journal.rows(updates=[]) == []
    assert journal.open_updates() == fold(journal.rows(updates=["u1", "u3"]))


def test_another_writer_in_between(journal: SqliteJournal) -> None:
    """The guard takes over where the updater stopped."""
    other = again(journal)
    journal.append("u1", Entry(Kind.UPDATE_BEGUN))
    other.append("u1", Entry(Kind.NOTED))
    journal.append("u1", Entry(Kind.NOTED))
    assert [row.entry.kind for row in journal.rows()] == [Kind.UPDATE_BEGUN, Kind.NOTED, Kind.NOTED]


def test_opens_and_is_read_while_nobody_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever recovers on a full disk must get as far as resuming the guest."""
    monkeypatch.setattr(journal_module, "BUSY_SECONDS", 0.0)
    path = tmp_path / "journal.sqlite"
    SqliteJournal(path, "boot-1", lambda: 1.0).append("u1", Entry(Kind.UPDATE_BEGUN))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("begin exclusive")
    journal = SqliteJournal(path, "boot-1", lambda: 1.0)
    assert [row.update for row in journal.rows()] == ["u1"]
    with pytest.raises(Failed):
        journal.append("u1", Entry(Kind.UPDATE_ENDED))


def test_a_newer_format_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    SqliteJournal(path, "b", lambda: 0.0).close()
    with sqlite3.connect(path) as db:
        db.execute(f"pragma user_version={SCHEMA_VERSION + 1}")
    with pytest.raises(Failed, match="newer hostagent"):
        SqliteJournal(path, "b", lambda: 0.0)
    assert sqlite3.connect(path).execute("pragma user_version").fetchone() == (SCHEMA_VERSION + 1,)


def test_a_file_that_is_no_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"not a database, and long enough to be looked at" * 100)
    with pytest.raises(Failed, match="opening the journal"):
        SqliteJournal(path, "b", lambda: 0.0)


@pytest.mark.parametrize(("column", "value"), [("body", "{"), ("kind", "unheard-of")])
def test_a_row_that_is_not_understood_needs_a_person(journal: SqliteJournal, column: str, value: str) -> None:
    journal.append("u1", Entry(Kind.UPDATE_BEGUN))
    journal._db.execute(f"update journal set {column} = ?", (value,))
    with pytest.raises(NeedsOperator, match="reading the journal"):
        journal.rows()


def test_a_directory_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="opening the journal"):
        SqliteJournal(tmp_path / "none" / "journal.sqlite", "b", lambda: 0.0)


# -- the fold ------------------------------------------------------------------------------------------------


def test_an_open_update() -> None:
    (update,) = fold(begun())
    assert (update.id, update.is_open, update.boot_id, update.order) == ("u1", True, "boot-1", {"to": "10.0"})
    assert update.guests[GUEST].name == "web1"
    assert update.guests[GUEST].progress == Progress()


def test_steps_of_guest_and_host_are_kept_apart() -> None:
    (update,) = fold(begun(step(Kind.STEP_BEGUN, "start"), Entry(Kind.STEP_BEGUN, "", "detach")))
    assert update.guests[GUEST].progress.begun == ("start",)
    assert update.host.begun == ("detach",)
    assert [(guest, name) for guest, name, _ in update.step_times] == [(GUEST, "start"), ("", "detach")]


def test_begun_done_undone() -> None:
    (update,) = fold(
        begun(
            step(Kind.STEP_BEGUN, "a"),
            step(Kind.STEP_DONE, "a"),
            step(Kind.STEP_BEGUN, "b"),
            step(Kind.STEP_FAILED, "b"),
            step(Kind.UNDO_BEGUN, "b"),
            step(Kind.UNDO_DONE, "b"),
            step(Kind.UNDO_BEGUN, "a"),
        )
    )
    progress = update.guests[GUEST].progress
    assert progress == Progress(("a", "b"), frozenset({"a"}), frozenset({"b"}))
    assert progress.open == ("a",)  # an undo that only began may not have got through


def test_done_again_after_it_was_undone() -> None:
    kinds = (Kind.STEP_BEGUN, Kind.STEP_DONE, Kind.UNDO_DONE, Kind.STEP_BEGUN)
    (update,) = fold(begun(*(step(kind, "a") for kind in kinds)))
    assert update.guests[GUEST].progress == Progress(("a",))
    assert update.guests[GUEST].progress.open == ("a",)


def test_begun_twice_is_no_longer_done() -> None:
    (update,) = fold(begun(step(Kind.STEP_BEGUN, "a"), step(Kind.STEP_DONE, "a"), step(Kind.STEP_BEGUN, "a")))
    assert update.guests[GUEST].progress == Progress(("a",))


def test_a_step_that_begins_again_keeps_its_place() -> None:
    """Undoing goes against the order of the table, also where recovery did some of it again."""
    names = ("a", "b", "a")
    (update,) = fold(begun(*(step(Kind.STEP_BEGUN, name) for name in names)))
    assert update.guests[GUEST].progress.begun == ("a", "b")


def test_later_notes_overlay_earlier_ones() -> None:
    (update,) = fold(
        begun(
            Entry(Kind.NOTED, GUEST, body={"old": 1, "new": None}),
            Entry(Kind.NOTED, GUEST, body={"new": 2}),
            Entry(Kind.NOTED, "", body={"host": True}),
            Entry(Kind.MEASURED, GUEST, body={"pause_seconds": 0.1}),
            Entry(Kind.MEASURED, GUEST, body={"moved_bytes": 5}),
        )
    )
    assert update.guests[GUEST].notes == {"old": 1, "new": 2}
    assert update.guests[GUEST].measured == {"pause_seconds": 0.1, "moved_bytes": 5}
    assert update.host_notes == {"host": True}


def test_ends() -> None:
    ended = {"outcome": "rolled-back", "reason": "it left", "kind": "failed"}
    (update,) = fold(begun(Entry(Kind.GUEST_ENDED, GUEST, body=ended), Entry(Kind.UPDATE_ENDED, body=ended)))
    guest = update.guests[GUEST]
    assert (guest.outcome, guest.reason, guest.reason_kind) == (Outcome.ROLLED_BACK, "it left", "failed")
    assert (guest.ended_at, update.ended_at) == (2.0, 3.0)
    assert not update.is_open


def test_a_guest_that_waited_for_a_person_ends_later_otherwise() -> None:
    outcomes = ("needs-operator", "updated")
    (update,) = fold(begun(*(Entry(Kind.GUEST_ENDED, GUEST, body={"outcome": outcome}) for outcome in outcomes)))
    assert update.guests[GUEST].outcome is Outcome.UPDATED


def test_rows_of_unknown_updates_and_guests_are_passed_over() -> None:
    assert fold(rows(Entry(Kind.NOTED, GUEST, body={"x": 1}), update="never-begun")) == ()
    (update,) = fold([*begun(), *rows(Entry(Kind.NOTED, "another", body={"x": 1}))])
    assert list(update.guests) == [GUEST]


def test_updates_side_by_side() -> None:
    mixed = [*begun(), *rows(Entry(Kind.UPDATE_BEGUN), update="u2"), *rows(step(Kind.STEP_BEGUN, "a"))]
    first, second = fold(mixed)
    assert (first.id, second.id) == ("u1", "u2")
    assert first.guests[GUEST].progress.begun == ("a",)
    assert second.guests == {}


_NAMES = st.sampled_from(["a", "b", "c"])
_KINDS = st.sampled_from([Kind.STEP_BEGUN, Kind.STEP_DONE, Kind.STEP_FAILED, Kind.UNDO_BEGUN, Kind.UNDO_DONE])


@given(st.lists(st.tuples(_KINDS, _NAMES), max_size=30))
def test_what_is_open_has_begun_since_it_was_last_undone(history: list[tuple[Kind, str]]) -> None:
    (update,) = fold(begun(*(step(kind, name) for kind, name in history)))
    progress = update.guests[GUEST].progress
    assert len(set(progress.begun)) == len(progress.begun)
    for name in ("a", "b", "c"):
        told = [kind for kind, of in history if of == name and kind in (Kind.STEP_BEGUN, Kind.UNDO_DONE)]
        begun_ever = Kind.STEP_BEGUN in told
        assert (name in progress.open) is (begun_ever and told[-1] is Kind.STEP_BEGUN)


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(), st.lists))
def test_any_body_comes_back(value: object) -> None:
    assert json.loads(json.dumps({"x": value}, sort_keys=True, ensure_ascii=False)) == {"x": value}
