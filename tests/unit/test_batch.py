"""Where a batch sends a guest whose step failed; the ways through it are swept in tests/crash."""

from __future__ import annotations

from typing import cast

import pytest

from hostagent.errors import Failed, NeedsOperator
from hostagent.update.batch import Member
from hostagent.update.journal import GuestRecord, Outcome, Progress
from hostagent.update.swap import GuestSwap


class Swap:
    """As much of a guest's swap as a member looks at here."""

    saved: object = "notes of before"
    read_notes = GuestSwap.read_notes


def member(progress: Progress | None = None) -> Member:
    return Member(cast(GuestSwap, Swap()), progress or Progress())


def member_of(record: GuestRecord) -> Member:
    one = member()
    one.take_up(record)
    return one


def test_a_member_takes_part_until_it_ends() -> None:
    one = member()
    assert one.active
    one.end(Outcome.ROLLED_BACK, Failed("starting", found="it left"))
    assert (one.active, one.reason, one.reason_kind) == (False, "starting: it left", "failed")


def test_an_end_without_an_error() -> None:
    one = member()
    one.end(Outcome.UPDATED)
    assert (one.reason, one.reason_kind) == ("", "")
    one.end(Outcome.GONE, "ended by somebody")
    assert (one.reason, one.reason_kind) == ("ended by somebody", "")


@pytest.mark.parametrize("begun", [("reconcile", "switch", "record"), ("reconcile", "switch", "record", "resume")])
def test_committed_from_the_intent_on(begun: tuple[str, ...]) -> None:
    assert member(Progress(begun)).committed is ("resume" in begun)


@pytest.mark.parametrize("outcome", [None, Outcome.NEEDS_OPERATOR])
def test_who_is_tried_again(outcome: Outcome | None) -> None:
    record = GuestRecord("uuid", "web1", Progress(("prepare",)), outcome=outcome, reason="stuck")
    one = member_of(record)
    assert (one.active, one.closed, one.progress, one.reason) == (True, False, Progress(("prepare",)), "")
    assert one.swap.saved is None  # nothing was noted, whatever this process thought


@pytest.mark.parametrize("outcome", sorted(set(Outcome) - {Outcome.NEEDS_OPERATOR}))
def test_who_has_ended_is_left_alone(outcome: Outcome) -> None:
    one = member_of(GuestRecord("uuid", "web1", outcome=outcome, reason="so"))
    assert (one.active, one.closed, one.outcome, one.reason) == (False, True, outcome, "so")


def test_notes_of_another_version_need_a_person() -> None:
    record = GuestRecord("uuid", "web1", notes={"old": "something else"})
    with pytest.raises(NeedsOperator, match="notes of a handover"):
        member_of(record)
