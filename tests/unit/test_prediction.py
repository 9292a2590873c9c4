"""How long a guest will probably stand still, and what is refused because of it."""

import pytest
from called import Caller
from journals import Writer

from hostagent.plan import Technique
from hostagent.planning.prediction import FIRST_BYTES_PER_SECOND, FIRST_SECONDS, Past, over_budget, predict

PLAN = ("plan", "qemu", "--to", "10.0")


def test_its_own_pauses_say_most() -> None:
    predicted = predict("a", Past({"a": [9.0, 0.02, 0.03, 0.05, 0.02, 0.04], "b": [1.0]}))
    assert (predicted.pause_seconds, predicted.measured, predicted.of_itself) == (0.05, 5, True)


def test_else_those_of_others() -> None:
    predicted = predict("new", Past({"a": [0.02, 0.03], "b": [0.08]}))
    assert (predicted.pause_seconds, predicted.measured, predicted.of_itself) == (0.08, 3, False)


def test_else_a_first_estimate() -> None:
    predicted = predict("new", Past())
    first = FIRST_SECONDS[Technique.HANDOVER]
    assert (predicted.pause_seconds, predicted.measured, predicted.of_itself) == (first, 0, False)
    assert predict("new", Past(), technique=Technique.HOLD).pause_seconds == FIRST_SECONDS[Technique.HOLD]


def test_copying_takes_as_long_as_it_did() -> None:
    assert predict("a", Past(copy_speeds=[1e9, 2e8]), 4 * 10**8).copy_seconds == 2.0  # the slowest of the last ones
    assert predict("a", Past(), 3 * 10**8).copy_seconds == 3e8 / FIRST_BYTES_PER_SECOND
    assert predict("a", Past(), 0).copy_seconds is None


@pytest.mark.parametrize(
    ("pauses", "rests_on"),
    [
        ({"a": [0.5]}, "about 500 ms predicted (from 1 of its own pauses)"),
        ({"b": [0.5]}, "about 500 ms predicted (from 1 of other guests' pauses)"),
        ({}, "about 250 ms predicted (a first estimate)"),
    ],
)
def test_over_budget_is_refused_with_what_it_rests_on(pauses: dict[str, list[float]], rests_on: str) -> None:
    blocker = over_budget(predict("a", Past(pauses)), 0.1)
    assert blocker is not None
    assert (blocker.found, blocker.hint) == (rests_on, "allow more with --budget")
    assert over_budget(predict("a", Past(pauses)), 1.0) is None


def test_the_journal_is_what_plans_rest_on(hostagent: Caller) -> None:
    hostagent.write(lambda writer: writer.updated("u1", "web1", pause_seconds=0.04))
    web1, db9 = hostagent.json(*PLAN)["guests"]
    assert web1["predicted"] == {"pause_seconds": 0.04, "measured": 1, "of_itself": True, "copy_seconds": None}
    assert db9["predicted"] == {"pause_seconds": 0.04, "measured": 1, "of_itself": False, "copy_seconds": None}
    assert hostagent(*PLAN).stdout.count("about 40.0 ms") == 2


def test_an_update_that_would_be_over_budget_is_not_begun(hostagent: Caller) -> None:
    def slow(writer: Writer) -> None:
        writer.updated("u1", "web1", pause_seconds=3.0)
        writer.updated("u2", "db9", pause_seconds=0.04)

    hostagent.write(slow)
    hostagent.updates_by(lambda writer, update: writer.updated(update, "db9"))
    words = ("update", "qemu", "--to", "10.0", "--budget", "1s", "--yes")
    assert hostagent(*words).exit_code == 0
    assert [planned.name for planned in hostagent.plans[0].to_update] == ["db9"]
    result = hostagent(*words, "--guest", "web1")
    assert result.exit_code == 3
    assert "budget" in result.stderr


def test_nothing_measured_yet(hostagent: Caller) -> None:
    assert hostagent(*PLAN).stdout.count("about 250 ms") == 2
