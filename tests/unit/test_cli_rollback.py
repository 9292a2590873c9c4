"""rollback: which update is meant, which guests go back, how it ends."""

import pytest
import sampled
from called import Caller, guest
from journals import NEW, OLD, Writer

from hostagent.update.journal import Outcome
from hostagent.update.order import OrderKind


def earlier(writer: Writer) -> None:
    """Two updates to the newer QEMU, of which the last failed for db9; and a rehearsal since."""
    writer.updated("20261101-1", "web1")
    writer.begin("20261102-2", "cache", "db9")
    writer.end_guest("20261102-2", "cache", Outcome.UPDATED)
    writer.end_guest("20261102-2", "db9", Outcome.ROLLED_BACK, "it would not")
    writer.end("20261102-2", Outcome.ROLLED_BACK)
    writer.updated("20261103-3", "throw-away", kind=OrderKind.REHEARSAL)


@pytest.fixture
def moved(hostagent: Caller) -> Caller:
    hostagent.write(earlier)
    hostagent.host = sampled.host(
        qemu=(OLD, NEW), guests=(guest("web1", qemu=NEW), guest("cache", qemu=NEW), guest("db9"))
    )
    hostagent.updates_by(lambda writer, update: writer.updated(update, "web1"))
    return hostagent


def went_back(moved: Caller) -> list[tuple[str, list[str]]]:
    return [(plan.to.name, [planned.name for planned in plan.to_update]) for plan in moved.plans]


def test_the_last_one_and_only_those_that_it_moved(moved: Caller) -> None:
    assert moved("rollback", "--yes").exit_code == 0
    assert went_back(moved) == [("system", ["cache"])]


def test_one_of_that_id_or_the_beginning_of_it(moved: Caller) -> None:
    document = moved.json("rollback", "20261101", "--yes")
    assert went_back(moved) == [("system", ["web1"])]
    assert [update["outcome"] for update in document["updates"]] == ["updated"]


def test_some_of_its_guests(moved: Caller) -> None:
    result = moved("rollback", "20261101-1", "--guest", "cache", "--yes")
    assert (result.exit_code, went_back(moved)) == (0, [])
    assert result.stdout.endswith("Nothing to do.\n")


@pytest.mark.parametrize("words", [("2026",), ("nothing",), ("20261103-3",)])
def test_which_one_is_not_clear(moved: Caller, words: tuple[str, ...]) -> None:
    result = moved("rollback", *words, "--yes")
    assert (result.exit_code, went_back(moved)) == (2, [])
    assert "20261101-1, 20261102-2" in result.stderr


def test_nothing_was_ever_updated(hostagent: Caller) -> None:
    result = hostagent("rollback", "--yes")
    assert result.exit_code == 2
    assert "none in the journal" in result.stderr


def test_an_update_that_went_well_for_some_says_how_to_go_back(moved: Caller) -> None:
    def half(writer: Writer, update: str) -> None:
        writer.begin(update, "web1", "cache")
        writer.end_guest(update, "web1", Outcome.UPDATED)
        writer.end_guest(update, "cache", Outcome.ROLLED_BACK, "it would not")
        writer.end(update, Outcome.ROLLED_BACK)

    moved.updates_by(half)
    result = moved("update", "qemu", "--to", "7.2", "--yes")
    assert "1 of 2 guests updated. To bring it back: hostagent rollback 2" in result.stdout


def test_said_twice_it_does_not_go_forward_again(moved: Caller) -> None:
    def and_back(writer: Writer) -> None:
        earlier(writer)
        writer.begin("20261104-4", "cache", to=OLD, undoes="20261102-2")
        writer.end_guest("20261104-4", "cache", Outcome.UPDATED)
        writer.end("20261104-4", Outcome.UPDATED)

    moved.write(and_back)
    result = moved("rollback", "--yes")
    assert (result.exit_code, went_back(moved)) == (2, [])
    assert "20261104-4, which went back from 20261102-2" in result.stderr
    assert "to undo that one: hostagent rollback 20261104-4" in result.stderr
    assert moved.json("history", "20261104")["updates"][0]["undoes"] == "20261102-2"
