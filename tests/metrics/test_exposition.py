"""The exposition as Prometheus' own tool reads it: nothing to complain of, whatever guests are called."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.metrics import GUESTS_AT_ONCE, Host, observed
from hostagent.metrics import Names, exposition
from hostagent.observed import Observed
from hostagent.update.journal import Entry, Kind, SqliteJournal, UpdateRecord, fold
from tests.metrics.promtool import PROMTOOL, fetch

NAMES = ("web1", 'x"} 1\nhostagent_fake{a="', "\\", "\x1b[2J\u202e", "\x00", "x" * 100_000, "\u5c0f\U0001f9ca", " ")


@pytest.fixture(scope="module", autouse=True)
def promtool() -> None:
    fetch()


def complaints(text: str) -> str:
    """What `promtool check metrics` says; its lint's findings come with exit status 3."""
    said = subprocess.run(
        [PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True, check=False, timeout=60
    )
    return f"{said.returncode}: {said.stdout}{said.stderr}"


@pytest.fixture
def updates(tmp_path: Path) -> Iterator[tuple[UpdateRecord, ...]]:
    """One that has ended, of guests with plain names, and one under way, of others."""
    journal = SqliteJournal(tmp_path / "journal.sqlite", "boot", lambda: 1_795_326_000.0)
    host = Host(journal, GUESTS_AT_ONCE)
    host.update()
    begun, *more = host.entries()
    named = [
        Entry(Kind.GUEST_BEGUN, entry.guest, body={"name": name}) for entry, name in zip(begun[1:], NAMES, strict=False)
    ]
    host.append(begun[0], *named)
    for entries in more[:-1]:
        host.append(*entries)
    yield fold(journal.rows())
    journal.close()


def seen() -> Observed:
    return observed(3)


@pytest.mark.parametrize("names", Names)
def test_it_is_right(updates: tuple[UpdateRecord, ...], names: Names) -> None:
    text = exposition(updates, seen(), names)
    assert complaints(text) == "0: "
    series = [line.rsplit(" ", 1)[0] for line in text.splitlines()]
    assert len(set(series)) == len(series)  # which promtool does not look at, and Prometheus refuses


def test_so_it_is_of_a_host_that_never_saw_an_update() -> None:
    assert complaints(exposition([])) == "0: "


def test_what_is_wrong_would_be_said(updates: tuple[UpdateRecord, ...]) -> None:
    text = exposition(updates)
    assert complaints(text + 'hostagent_fake{a="x} 1\n') != "0: "
    assert complaints(text + "# TYPE hostagent_fake counter\nhostagent_fake 1\n") != "0: "
