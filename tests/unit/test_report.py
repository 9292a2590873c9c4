"""From the journal's records to the values that people and programs get."""

import json
import os
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from journals import BEGIN, HANDOVER, Writer

from hostagent.errors import NeedsOperator
from hostagent.facts import QemuTree, Version
from hostagent.plan import Method, Technique
from hostagent.update.journal import Entry, GuestRecord, Kind, Outcome, SqliteJournal, UpdateRecord
from hostagent.update.journal_reader import read_updates
from hostagent.update.order import OrderedGuest, OrderKind, UpdateOrder
from hostagent.update.report import UpdateReport, _phases, past_of, report_of, timestamp


def only(writer: Writer) -> UpdateReport:
    (record,) = writer.records()
    return report_of(record)


def test_the_json_of_an_updated_guest_is_exactly_this() -> None:
    writer = Writer()
    writer.updated("u1", "web1")
    assert json.loads(json.dumps(only(writer).to_json())) == {
        "id": "u1",
        "component": "qemu",
        "kind": "update",
        "undoes": None,
        "outcome": "updated",
        "reason": "",
        "begun": timestamp(BEGIN + 0.01),
        "ended": timestamp(writer.now),
        "to": {"name": "10.0.2+ds-2", "version": "10.0.2", "package": "1:10.0.2+ds-2"},
        "boot_seconds": None,
        "roll": None,
        "guests": [
            {
                "name": "web1",
                "uuid": "uuid of web1",
                "method": "in-place",
                "technique": "handover",
                "outcome": "updated",
                "reason": "",
                "ram": "kept",
                "pause_seconds": 0.0182,
                "pause_source": "qemu",
                "halt_seconds": None,
                "down_seconds": None,
                "boot_seconds": None,
                "felt_seconds": None,
                "budget_seconds": 10.0,
                "over_budget": False,
                "clock_offset_seconds": {"before": 0.0003, "after": -0.018, "synced": -0.0001, "bound": 0.0006},
                "clock_outcome": "corrected",
                "clock_reason": None,
                "qemu": {"before": "7.2.22", "after": "10.0.2"},
                "moved_bytes": 640_000,
                "runs_on": None,
                "left_disks": None,
                "definition": None,
                "phases": {step: pytest.approx(0.01) for step in HANDOVER[:-1]},
                "xml_differences": [],
            }
        ],
    }


REBOOT = ("prepare", "shut-down", "start", "boot")


def test_a_reboot_is_no_pause() -> None:
    writer = Writer()
    writer.begin("u1", "web1", method=Method.REBOOT)
    writer.steps("u1", "web1", *REBOOT)
    writer.measured("u1", "web1", down_seconds=0.5, boot_seconds=7.0)
    writer.end_guest("u1", "web1", Outcome.UPDATED)
    (guest,) = only(writer).guests
    assert (guest.method, guest.technique, guest.ram) == ("reboot", None, "fresh")
    assert (guest.down_seconds, guest.boot_seconds) == (0.5, 7.0)
    assert (guest.pause_seconds, guest.over_budget) == (None, None)
    assert not past_of(writer.records()).pauses


def test_steps_of_guests_that_go_side_by_side_last_until_their_own_next_one() -> None:
    writer = Writer()
    writer.begin("u1", "web1", "db9", method=Method.REBOOT)
    for step in REBOOT:
        writer.steps("u1", "web1", step)
        writer.now += 1.0
        writer.steps("u1", "db9", step)
    for guest in only(writer).guests:
        assert guest.phases == {step: pytest.approx(1.02) for step in REBOOT[:-1]}


@pytest.mark.parametrize("outcome", [Outcome.ROLLED_BACK, Outcome.GONE, Outcome.LOST, Outcome.NEEDS_OPERATOR])
def test_ram_is_kept_only_where_the_guest_was_updated(outcome: Outcome) -> None:
    writer = Writer()
    writer.begin("u1", "web1")
    writer.end_guest("u1", "web1", outcome, "why", "failed")
    (guest,) = only(writer).guests
    assert guest.ram is None
    assert guest.qemu_after == ("7.2.22" if outcome is Outcome.ROLLED_BACK else None)
    assert (guest.reason, guest.reason_kind) == ("why", "failed")


def test_an_open_update_says_so() -> None:
    writer = Writer()
    writer.begin("u1", "web1", "db9")
    report = only(writer)
    assert (report.is_open, report.standing, report.to_json()["outcome"]) == (True, "open", "open")
    assert [guest.to_json()["outcome"] for guest in report.guests] == ["open", "open"]
    writer.end_guest("u1", "web1", Outcome.NEEDS_OPERATOR, "stuck")
    assert only(writer).standing == "needs-operator"


@pytest.mark.parametrize(("pause", "over"), [(9.999, False), (10.0, False), (10.001, True), (None, None)])
def test_a_pause_over_its_budget_is_flagged(pause: float | None, over: bool | None) -> None:
    writer = Writer()
    writer.updated("u1", "web1", pause_seconds=pause)
    assert only(writer).guests[0].over_budget is over


def test_versions_that_are_the_same_are_told_apart_by_package() -> None:
    writer = Writer()
    rebuilt = QemuTree("7.2-8", Version(7, 2, 22), "1:7.2+dfsg-8", "/x")
    writer.begin("u1", "web1", to=rebuilt)
    writer.end_guest("u1", "web1", Outcome.UPDATED)
    (guest,) = only(writer).guests
    assert (guest.qemu_before, guest.qemu_after) == ("1:7.2+dfsg-7+deb12u18", "1:7.2+dfsg-8")


def test_a_step_lasts_until_the_next_of_the_update_begins_and_one_cut_off_has_no_length() -> None:
    writer = Writer()
    writer.begin("u1", "web1", "db9")
    writer.steps("u1", "web1", "prove")
    writer.now += 1.0
    writer.steps("u1", "db9", "switch", "resume")
    writer.now += 600.0  # the updater was killed
    writer.steps("u1", "db9", "resume", "retire")
    web1, db9 = only(writer).guests
    assert web1.phases == {"prove": pytest.approx(1.01)}
    assert db9.phases == {"switch": pytest.approx(0.01)}


@pytest.mark.parametrize("bad", ["1", True, float("nan"), float("inf"), [], None])
def test_what_is_no_figure_is_not_known(bad: object) -> None:
    writer = Writer()
    writer.updated("u1", "web1", pause_seconds=bad, clock_synced_bound_seconds=bad, clock_after_bound_seconds=bad)
    (guest,) = only(writer).guests
    assert guest.pause_seconds is None
    assert guest.clock.bound == 0.0004  # that of the reading before


def test_an_order_of_another_version_can_still_be_read() -> None:
    writer = Writer()
    writer.append("u1", Entry(Kind.UPDATE_BEGUN, body={"of": "the future"}))
    writer.append("u1", Entry(Kind.GUEST_BEGUN, "uuid", body={"name": "web1"}))
    report = only(writer)
    assert (report.kind, report.component, report.to, report.guests[0].name) == (None, "unknown", None, "web1")
    json.dumps(report.to_json())


def test_a_rehearsal_is_one() -> None:
    writer = Writer()
    writer.updated("u1-rehearsal", "throw-away", kind=OrderKind.REHEARSAL)
    assert only(writer).kind is OrderKind.REHEARSAL


# -- reading it from the disk, changing nothing


def test_no_journal_is_no_updates_and_none_is_made(tmp_path: Path) -> None:
    assert read_updates(tmp_path / "none" / "journal.sqlite") == ()
    assert list(tmp_path.iterdir()) == []


def test_reading_leaves_nothing_behind(tmp_path: Path) -> None:
    writer, path = Writer(), tmp_path / "a ?#% journal.sqlite"
    writer.updated("u1", "web1")
    writer.save(path)
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    assert [update.id for update in read_updates(path)] == ["u1"]
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_what_a_writer_has_committed_is_read_while_it_is_at_work(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    writer = Writer()
    writer.begin("u1", "web1")
    journal = SqliteJournal(path, "boot", lambda: BEGIN)
    for row in writer.rows:
        journal.append(row.update, row.entry)
    assert [update.is_open for update in read_updates(path)] == [True]
    journal.append("u1", Entry(Kind.UPDATE_ENDED, body={"outcome": "updated"}))
    assert [update.is_open for update in read_updates(path)] == [False]
    journal.close()


def test_the_log_of_a_writer_that_was_killed_is_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    Writer().save(path)
    child = os.fork()
    if child == 0:
        journal = SqliteJournal(path, "boot", lambda: BEGIN)
        journal.append("u1", Entry(Kind.UPDATE_BEGUN, body={}))
        os._exit(0)
    os.waitpid(child, 0)
    files = sorted(found.name for found in tmp_path.iterdir())
    assert len(files) == 3
    assert [update.id for update in read_updates(path)] == ["u1"]
    assert sorted(found.name for found in tmp_path.iterdir()) == files


def test_a_journal_of_a_newer_hostagent_or_a_broken_one_is_said(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    Writer().save(path)
    with sqlite3.connect(path) as db:
        db.execute("pragma user_version=99")
    db.close()
    with pytest.raises(NeedsOperator, match="expected format 1, found format 99"):
        read_updates(path)
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(NeedsOperator, match="journal"):
        read_updates(path)


def test_what_a_guest_waited_for_others_and_for_the_swap_is_no_pause_of_its_own() -> None:
    """Else the next swap would be predicted to take as often as long as there are guests."""
    times = (("a", "pause", 10.0), ("b", "pause", 10.0), ("", "swap kernel", 14.0), ("a", "restore", 134.0))
    guests = [
        OrderedGuest(uuid=uuid, name=uuid, before=None, technique=Technique.HOLD, budget_seconds=300.0) for uuid in "ab"
    ]
    order = UpdateOrder(kind=OrderKind.UPDATE, component="kernel", swaps=("kernel",), guests=tuple(guests), pid=1)
    records = {
        uuid: GuestRecord(uuid, uuid, measured={"pause_seconds": pause}, outcome=Outcome.UPDATED)
        for uuid, pause in (("a", 128.0), ("b", 130.0))
    }
    update = UpdateRecord(
        "u1", 9.0, "boot", order.body(), guests=records, outcome=Outcome.UPDATED, ended_at=140.0, step_times=times
    )
    past = past_of([update])
    assert past.swaps == {"kernel": [120.0]}
    assert past.holds == {"a": [4.0], "b": [5.0]}
    assert past_of([replace(update, step_times=())]).holds == {}  # the swap's share is not known


def test_a_guest_that_migrated_meanwhile_waited_for_nobody() -> None:
    times = (("a", "pause", 10.0), ("", "swap kernel", 14.0), ("a", "restore", 134.0))
    held = OrderedGuest(uuid="a", name="a", before=None, technique=Technique.HOLD, budget_seconds=300.0)
    left = held.model_copy(update={"uuid": "b", "name": "b", "technique": None, "method": Method.LIVE_MIGRATE})
    order = UpdateOrder(kind=OrderKind.UPDATE, component="kernel", swaps=("kernel",), guests=(held, left), pid=1)
    records = {
        uuid: GuestRecord(uuid, uuid, measured={"pause_seconds": pause}, outcome=Outcome.UPDATED)
        for uuid, pause in (("a", 128.0), ("b", 0.5))
    }
    past = past_of(
        [UpdateRecord("u1", 9.0, "boot", order.body(), guests=records, outcome=Outcome.UPDATED, step_times=times)]
    )
    assert (past.holds, past.migrations) == ({"a": [8.0]}, {"b": [0.5]})


def test_steps_of_guests_that_are_held_together_last_until_their_own_next_one() -> None:
    """Or the host's: they go side by side."""
    times = (
        *(("a", "save", 10.0), ("b", "save", 10.1), ("", "swap modules", 11.0)),
        *(
            ("b", "restore", 13.0),
            ("a", "restore", 13.1),
            ("b", "resume", 14.0),
            ("a", "resume", 14.5),
            ("a", "look", 14.6),
        ),
    )
    update = UpdateRecord("u1", 9.0, "boot", {"swaps": ["modules"]}, step_times=times)
    assert _phases(update) == {
        "a": {"save": 1.0, "restore": 1.4, "resume": 0.1},
        "b": {"save": 0.9, "restore": 1.0},
        "": {"swap modules": 2.0},
    }
