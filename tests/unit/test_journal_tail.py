"""Reading on in a journal, whatever becomes of it meanwhile."""

import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from journals import Writer

from hostagent.errors import NeedsOperator
from hostagent.update.journal import Entry, Kind, Row, SqliteJournal
from hostagent.update.journal_tail import JournalTail


@pytest.fixture
def journal(path: Path) -> Iterator[SqliteJournal]:
    moments = count(1000)
    journal = SqliteJournal(path, "boot", lambda: float(next(moments)))
    yield journal
    journal.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def read(tail: JournalTail) -> list[Row | str]:
    """What is new, with "anew" where the journal is another one."""
    found: list[Row | str] = []
    for news in tail.news():
        found += ["anew", *news.rows] if news.anew else news.rows
    return found


def steps(found: list[Row | str]) -> list[str]:
    return [one if isinstance(one, str) else one.entry.step for one in found]


def write(journal: SqliteJournal, *names: str) -> None:
    for name in names:
        journal.append("u1", Entry(Kind.STEP_BEGUN, "g", name))


def test_without_a_journal_nothing_is_new(path: Path) -> None:
    assert read(JournalTail(path)) == []
    assert not path.exists()


def test_each_row_is_new_once(path: Path, journal: SqliteJournal) -> None:
    tail = JournalTail(path)
    write(journal, "one", "two")
    assert steps(read(tail)) == ["one", "two"]
    assert read(tail) == []
    write(journal, "three")
    assert steps(read(tail)) == ["three"]
    journal.close()
    assert read(tail) == []


@pytest.mark.parametrize("at_once", [1, 2, 3, 4, 5, 6])
def test_many_rows_come_a_few_at_a_time(path: Path, journal: SqliteJournal, at_once: int) -> None:
    tail = JournalTail(path, rows_at_once=at_once)
    write(journal, *"abcde")
    pieces = [news.rows for news in tail.news()]
    assert [row.entry.step for rows in pieces for row in rows] == list("abcde")
    assert all(1 <= len(rows) <= at_once for rows in pieces)
    write(journal, "f")
    assert steps(read(tail)) == ["f"]


def test_a_journal_that_is_removed_is_another_one(path: Path, journal: SqliteJournal) -> None:
    tail = JournalTail(path)
    write(journal, "one")
    journal.close()
    read(tail)
    path.unlink()
    assert read(tail) == ["anew"]
    assert read(tail) == []
    Writer().save(path)
    assert read(tail) == []


def test_a_journal_that_is_moved_aside_and_begun_again_is_read_from_its_beginning(
    path: Path, journal: SqliteJournal
) -> None:
    tail = JournalTail(path)
    write(journal, "one", "two")
    journal.close()
    read(tail)
    path.rename(path.with_name("aside"))
    writer = Writer()
    for name in ("three", "four", "five"):
        writer.append("u2", Entry(Kind.STEP_BEGUN, "g", name))
    writer.save(path)
    assert steps(read(tail)) == ["anew", "three", "four", "five"]
    assert read(tail) == []


def test_an_earlier_copy_put_back_in_its_place_is_read_from_its_beginning(path: Path, journal: SqliteJournal) -> None:
    tail = JournalTail(path)
    write(journal, "one")
    journal.close()
    shutil.copy(path, path.with_name("copy"))
    again = SqliteJournal(path, "boot", lambda: 2000.0)
    write(again, "two")
    again.close()
    assert steps(read(tail)) == ["one", "two"]
    path.write_bytes(path.with_name("copy").read_bytes())  # the same file, with what it had before
    assert steps(read(tail)) == ["anew", "one"]


def test_a_journal_that_cannot_be_read_says_so_and_is_read_on_once_it_can(path: Path, journal: SqliteJournal) -> None:
    tail = JournalTail(path)
    write(journal, "one")
    journal.close()
    read(tail)
    whole = path.read_bytes()
    path.write_bytes(b"not a journal, and long enough to be none" * 100)
    with pytest.raises(NeedsOperator, match="journal"):
        read(tail)
    path.write_bytes(whole)
    assert read(tail) == []


def test_reading_leaves_nothing_behind(path: Path, journal: SqliteJournal) -> None:
    write(journal, "one")
    journal.close()
    before = {file.name for file in path.parent.iterdir()}
    read(JournalTail(path))
    assert {file.name for file in path.parent.iterdir()} == before
