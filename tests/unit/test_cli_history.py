"""history: all updates in a line each, and one of them step by step."""

import pytest
from called import Caller
from journals import Writer

from hostagent.update.journal import Outcome
from hostagent.update.order import OrderKind


def two_and_a_rehearsal(writer: Writer) -> None:
    writer.updated("20261101-1", "web1", "db9", pause_seconds=0.25)
    writer.updated("20261102-2", "throw-away", kind=OrderKind.REHEARSAL)
    writer.begin("20261103-3", "web1", "db9")
    writer.steps("20261103-3", "web1", "prepare", "start", "reconcile")
    writer.end_guest("20261103-3", "web1", Outcome.ROLLED_BACK, "it would not")
    writer.end_guest("20261103-3", "db9", Outcome.UPDATED)
    writer.end("20261103-3", Outcome.ROLLED_BACK)


@pytest.fixture
def past(hostagent: Caller) -> Caller:
    hostagent.write(two_and_a_rehearsal)
    return hostagent


def test_every_update_in_a_line(past: Caller) -> None:
    result = past("history")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines() if line.startswith("2026")]
    assert result.exit_code == 0
    assert lines[0].startswith("20261101-1 2026-11-22 05:40:00 UTC 10.0.2 2 of 2 250 ms updated")
    assert lines[1].endswith("10.0.2 1 of 2 – rolled back")
    assert len(lines) == 2


def test_one_step_by_step(past: Caller) -> None:
    result = past("history", "20261101")
    steps = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line.endswith(" ms")}
    assert result.exit_code == 0
    assert steps["switch"] == ["10.0", "ms", "10.0", "ms"]
    assert "updated" in result.stdout


def test_for_programs(past: Caller) -> None:
    assert [update["id"] for update in past.json("history")["updates"]] == ["20261101-1", "20261103-3"]
    (update,) = past.json("history", "20261103")["updates"]
    assert set(update["guests"][0]["phases"]) == {"prepare", "start"}  # when the last ended is not written down


@pytest.mark.parametrize("wanted", ["2026", "nothing", "20261102-2"])
def test_which_one_is_not_clear(past: Caller, wanted: str) -> None:
    result = past("history", wanted)
    assert result.exit_code == 2
    assert "choosing an update" in result.stderr


def test_nothing_yet(hostagent: Caller) -> None:
    assert hostagent("history").stdout == "No update was made on this host yet.\n"


def test_steps_of_every_method_are_in_their_turn(hostagent: Caller) -> None:
    def write(writer: Writer) -> None:
        writer.begin("20261104-4", "web1", "db9")
        writer.steps("20261104-4", "web1", "prepare", "shut-down", "boot", "prove")
        writer.steps("20261104-4", "db9", "prepare", "migrate", "resume", "look", "return", "resume-at-home")
        for name in ("web1", "db9"):
            writer.end_guest("20261104-4", name, Outcome.UPDATED)
        writer.end("20261104-4", Outcome.UPDATED)

    hostagent.write(write)
    said = hostagent("history", "20261104").stdout.splitlines()
    steps = [line.split()[0] for line in said if line.endswith((" ms", "–"))]
    assert [step for step in steps if step in ("prepare", "shut-down", "boot")] == ["prepare", "shut-down", "boot"]
    others = ("migrate", "resume", "look", "return")
    assert [step for step in steps if step in others] == list(others)
