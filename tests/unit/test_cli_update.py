"""plan and update: what is shown, asked, refused, done, and how it ends."""

import os
import signal
from typing import Any

import pytest
import sampled
from called import Caller, guest, shut_off, with_private_ram
from journals import HANDOVER, MEASURED, NEW, OLD, Writer

from hostagent import wiring
from hostagent.errors import Failed
from hostagent.plan import Method
from hostagent.update.host_lock import HostLock
from hostagent.update.journal import Entry, Kind, Outcome
from hostagent.update.subject import Ports

PLAN = ("plan", "qemu", "--to", "10.0")
UPDATE = ("update", "qemu", "--to", "10.0")


def all_well(writer: Writer, update: str) -> None:
    writer.updated(update, "web1", "db9")


def ended(*outcomes: Outcome) -> Any:
    """An update whose guests end like this; one that needs a person stays open."""

    def fill(writer: Writer, update: str) -> None:
        names = [f"g{number}" for number in range(len(outcomes))]
        writer.begin(update, *names)
        for name, outcome in zip(names, outcomes, strict=True):
            writer.steps(update, name, *HANDOVER)
            writer.end_guest(update, name, outcome, "" if outcome is Outcome.UPDATED else f"because of {name}")
        if Outcome.NEEDS_OPERATOR not in outcomes:
            writer.end(update, outcomes[0])

    return fill


# -- plan


def test_a_plan_shows_every_guest_and_changes_nothing(hostagent: Caller) -> None:
    hostagent.host = sampled.host(qemu=(OLD, NEW), guests=(guest("web1"), with_private_ram("cache"), shut_off("old")))
    result = hostagent(*PLAN, "--budget", "500ms")
    assert result.exit_code == 0
    assert "in-place by handover, RAM kept" in result.stdout
    assert "500.0 ms" in result.stdout or "500 ms" in result.stdout
    assert "cache cannot be updated, and is left out:" in result.stdout
    assert "expected RAM in a shared file, found private file RAM" in result.stdout
    assert "nothing: not running" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert not hostagent.state.exists()


def test_a_plan_for_programs(hostagent: Caller) -> None:
    hostagent.host = sampled.host(qemu=(OLD, NEW), guests=(guest("web1"), with_private_ram("cache")))
    document = hostagent.json(*PLAN)
    assert document["to"] == {"name": NEW.name, "version": "10.0.2", "package": NEW.package}
    web1, cache = document["guests"]
    assert (web1["verdict"], web1["method"], web1["technique"]) == ("update", "in-place", "handover")
    assert web1["qemu"] == {"before": "7.2.22", "after": "10.0.2"}
    assert (cache["verdict"], cache["method"], cache["qemu"]["after"]) == ("blocked", None, "7.2.22")
    assert [blocker["reason"] for blocker in cache["blockers"]] == ["ram-not-shared"]


def test_a_plan_says_by_its_exit_code_that_an_update_would_be_refused(hostagent: Caller) -> None:
    hostagent.host = sampled.host(qemu=(OLD, NEW), guests=(with_private_ram("cache"),))
    assert hostagent(*PLAN).exit_code == 0
    assert hostagent(*PLAN, "--guest", "cache").exit_code == 3
    hostagent.host = sampled.host(qemu=(OLD, NEW), guests=(guest("web1"),), lock_manager="sanlock")
    result = hostagent(*PLAN)
    assert result.exit_code == 3
    assert "No guest of this host can be updated in place:" in result.stdout


@pytest.mark.parametrize(("words", "chosen"), [("handover", "handover"), ("hold", "hold"), ("auto", "handover")])
def test_a_technique_can_be_asked_for(hostagent: Caller, words: str, chosen: str) -> None:
    hostagent.host = sampled.host(qemu=(OLD, NEW), guests=(guest("web1"),), hold_hook=True)
    (web1,) = hostagent.json(*PLAN, "--technique", words)["guests"]
    assert web1["technique"] == chosen


@pytest.mark.parametrize("words", [("--guest", "nobody"), ("--to", "99")])
def test_what_is_not_there_is_named(hostagent: Caller, words: tuple[str, str]) -> None:
    result = hostagent(*PLAN, *words)
    assert result.exit_code == 2
    assert "expected one of" in result.stderr


# -- before anything is touched


def test_a_named_guest_that_is_blocked_refuses_it_all(hostagent: Caller) -> None:
    hostagent.host = sampled.host(qemu=(OLD, NEW), guests=(guest("web1"), with_private_ram("cache")))
    hostagent.updates_by(all_well)
    result = hostagent(*UPDATE, "--guest", "web1", "--guest", "cache", "--yes")
    assert (result.exit_code, hostagent.plans) == (3, [])
    assert "found cache: ram-not-shared" in result.stderr
    error = hostagent.json(*UPDATE, "--guest", "cache", "--yes", code=3)["error"]
    assert (error["kind"], error["guests"][0]["blockers"][0]["reason"]) == ("refused", "ram-not-shared")


def test_what_speaks_against_the_host_refuses_it_all(hostagent: Caller) -> None:
    hostagent.host = sampled.host(qemu=(OLD, NEW), guests=(guest("web1"),), lock_manager="sanlock")
    error = hostagent.json(*UPDATE, "--yes", code=3)["error"]
    assert [blocker["found"] for blocker in error["blockers"]] == ["sanlock"]


def test_a_guest_that_nobody_named_is_left_out_and_said(hostagent: Caller) -> None:
    hostagent.host = sampled.host(qemu=(OLD, NEW), guests=(guest("web1"), guest("db9"), with_private_ram("cache")))
    hostagent.updates_by(all_well)
    result = hostagent(*UPDATE, "--yes")
    assert result.exit_code == 0
    assert result.stdout.endswith("2 guests updated to QEMU 10.0.2, RAM kept. Left out: cache.\n")
    document = hostagent.json(*UPDATE, "--yes")
    assert [(guest["name"], guest["blockers"][0]["reason"]) for guest in document["skipped"]] == [
        ("cache", "ram-not-shared")
    ]


def test_nothing_to_do_is_done(hostagent: Caller) -> None:
    hostagent.host = sampled.host(qemu=(OLD, NEW), guests=(guest("web1", qemu=NEW), shut_off("old")))
    hostagent.updates_by(all_well)
    result = hostagent(*UPDATE)
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "Nothing to do.")
    document = hostagent.json(*UPDATE)
    assert (document["outcome"], document["guests"], document["id"]) == ("nothing-to-do", [], None)
    assert hostagent.plans == []


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_without_a_terminal_it_wants_yes(hostagent: Caller, words: tuple[str, ...]) -> None:
    hostagent.updates_by(all_well)
    result = hostagent(*UPDATE, *words, answer="y\n")
    assert (result.exit_code, hostagent.plans) == (2, [])
    assert "--yes" in result.output


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("Yes\n", 0), ("n\n", 3), ("\n", 3), ("", 3)])
def test_a_person_is_asked(hostagent: Caller, monkeypatch: pytest.MonkeyPatch, answer: str, code: int) -> None:
    monkeypatch.setattr("hostagent.cli.output.Output.can_ask", lambda _: True)
    hostagent.updates_by(all_well)
    result = hostagent(*UPDATE, answer=answer)
    assert result.exit_code == code
    assert "Update 2 guests, each paused for at most 30 s? [y/N]" in result.stdout
    assert len(hostagent.plans) == (1 if code == 0 else 0)


def test_a_second_update_is_refused_with_who_and_since_when(hostagent: Caller) -> None:
    lock = hostagent.held_by_somebody("update qemu")
    result = hostagent(*UPDATE, "--yes")
    assert result.exit_code == 3
    assert f"'update qemu' by process {os.getpid()} since 2026-11-22 05:40:00 UTC" in result.stderr
    lock.release()


def test_nothing_is_begun_on_top_of_what_is_open(hostagent: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    def left_open(writer: Writer) -> None:
        writer.begin("u1", "web1")
        writer.end_guest("u1", "web1", Outcome.NEEDS_OPERATOR, "no idea")

    hostagent.write(left_open)
    records = Writer()
    left_open(records)
    monkeypatch.setattr("hostagent.session.recover", lambda *_, **__: records.records())
    hostagent.updates_by(all_well)
    result = hostagent(*UPDATE, "--yes")
    assert (result.exit_code, hostagent.plans) == (5, [])
    assert "update u1 is still open: web1: no idea (hint: hostagent status; then: hostagent recover)" in result.stderr


# -- how it ends


def test_the_table_has_what_a_person_wants_to_know(hostagent: Caller) -> None:
    hostagent.updates_by(all_well)
    result = hostagent(*UPDATE, "--yes", "--budget", "10s")
    table = result.stdout[result.stdout.index("update 2") :]
    (web1,) = [line for line in table.splitlines() if line.startswith("web1")]
    assert " ".join(web1.split()) == ("web1 kept 18.2 ms 10 s +0.3 ms -18.0 ms -0.1 ±0.6 ms 7.2.22 → 10.0.2 updated")
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert hostagent.plans[0].to_update[0].budget_seconds == 10.0


def test_progress_goes_to_stderr_and_the_report_to_stdout(hostagent: Caller) -> None:
    hostagent.updates_by(all_well)
    result = hostagent(*UPDATE, "--yes", "--json")
    assert result.stderr.splitlines() == [
        "web1: paused: device state crosses",
        "db9: paused: device state crosses",
        "libvirt: bringing libvirt's daemon back",
    ]
    document = hostagent.json(*UPDATE, "--yes")
    assert [guest["name"] for guest in document["guests"]] == ["web1", "db9"]
    assert document["guests"][0]["clock_offset_seconds"]["synced"] == MEASURED["clock_synced_seconds"]


def test_over_budget_is_flagged(hostagent: Caller) -> None:
    hostagent.updates_by(lambda writer, update: writer.updated(update, "web1", pause_seconds=12.5))
    assert "12.5 s  10 s OVER" in hostagent(*UPDATE, "--yes").stdout


def test_a_guest_that_did_not_come_back_is_said_to_be_elsewhere(hostagent: Caller) -> None:
    """The report has its place and the reason, and the exit code is that of a lower rung."""

    def fill(writer: Writer, update: str) -> None:
        writer.begin(update, "web1", method=Method.LIVE_MIGRATE)
        writer.measured(update, "web1", runs_on="host2", qemu_after="7.2.22", pause_seconds=0.2)
        writer.measured(update, "web1", left_disks=["/srv/1.raw"], left_disks_on="")
        writer.end_guest(update, "web1", Outcome.UPDATED, "it runs on host2, and stays there: too slow")
        writer.end(update, Outcome.UPDATED)

    hostagent.updates_by(fill)
    result = hostagent(*UPDATE, "--yes")
    assert result.exit_code == 1
    assert "web1 runs on host2 now." in result.stdout
    assert "and stays there: too slow" in result.stdout
    assert "what this host has of its disks is past, and stays: /srv/1.raw" in result.stdout


U, R, G, L, N = (
    *(Outcome.UPDATED, Outcome.ROLLED_BACK, Outcome.GONE),
    *(Outcome.LOST, Outcome.NEEDS_OPERATOR),
)


@pytest.mark.parametrize(
    ("outcomes", "code", "signalled"),
    [
        ((U,), 0, 0),
        ((U, U), 0, 0),
        ((U, R), 4, 143),
        ((G,), 4, 143),
        ((U, L), 5, 5),
        ((R, N), 5, 5),
    ],
)
def test_the_worst_decides_the_exit_code(
    hostagent: Caller, outcomes: tuple[Outcome, ...], code: int, signalled: int
) -> None:
    hostagent.host = sampled.host(qemu=(OLD, NEW), guests=tuple(guest(f"g{n}") for n in range(len(outcomes))))
    fill = ended(*outcomes)
    hostagent.updates_by(fill)
    result = hostagent(*UPDATE, "--yes")
    assert result.exit_code == code
    for number, outcome in enumerate(outcomes):
        assert outcome is U or f"g{number}: because of g{number}" in result.stdout
    assert ("hostagent recover" in result.stdout) == (N in outcomes)

    def interrupted(writer: Writer, update: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # a second one changes nothing
        fill(writer, update)

    hostagent.updates_by(interrupted)
    assert hostagent(*UPDATE, "--yes").exit_code == signalled


def test_a_rehearsal_that_fails_is_said_and_no_guest_was_touched(hostagent: Caller) -> None:
    hostagent.updates_by(Failed("rehearsing", found="it left: no such machine", hint="no guest was touched"))
    result = hostagent(*UPDATE, "--yes")
    assert result.exit_code == 4
    assert "hostagent: rehearsing: it left: no such machine (hint: no guest was touched)" in result.stderr


def test_the_guard_stays_when_an_error_breaks_out_of_an_open_update(
    hostagent: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def update(ports: Ports, *_: object, **__: object) -> None:
        ports.journal.append("u1", Entry(Kind.UPDATE_BEGUN))
        raise KeyError("nobody foresaw this")

    monkeypatch.setattr("hostagent.cli.roll.update_qemu", update)
    assert hostagent(*UPDATE, "--yes").exit_code == 70
    assert hostagent.dismissed == []
    assert HostLock.at(wiring.host_lock_path(hostagent.config())).held_by()  # until the guard has taken over


@pytest.mark.parametrize("error", [Failed("rehearsing"), KeyError("before anything")])
def test_the_guard_leaves_when_nothing_is_open(
    hostagent: Caller, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def update(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("hostagent.cli.roll.update_qemu", update)
    assert hostagent(*UPDATE, "--yes").exit_code != 0
    assert hostagent.dismissed == ["dismissed"]
    assert not HostLock.at(wiring.host_lock_path(hostagent.config())).held_by()


def test_names_cannot_reach_the_terminal(hostagent: Caller) -> None:
    name = "[bold]a\x1b[2J\u202e\n"
    hostagent.host = sampled.host(qemu=(OLD, NEW), guests=(guest(name),))
    hostagent.updates_by(lambda writer, update: writer.updated(update, name))
    result = hostagent(*UPDATE, "--yes")
    assert result.exit_code == 0
    assert "[bold]a\\x1b[2J\\u202e" in result.stdout
    assert result.output.replace("\n", "").isprintable()
    assert hostagent.json(*UPDATE, "--yes")["guests"][0]["name"] == name
