"""What the service says of guests: from libvirt's events, from looks, and from the journal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import called
import libvirt
import pytest
import sampled
from agents import KeptLog
from journals import NEW, OLD, Writer

from hostagent.agent.changes import changes, seen_on
from hostagent.agent.tail import Tail
from hostagent.agent.watch import BUSY_SECONDS, SETTLE_SECONDS, Watch
from hostagent.facts import Guest, GuestState, Host
from hostagent.hypervisor.events import GuestEvent, Happened, LineEvent
from hostagent.hypervisor.libvirt_events import happened
from hostagent.observed import Observed, observe
from hostagent.planning.guest_policy import Policies
from hostagent.update.journal import Outcome

PAUSED = GuestState.PAUSED_BY_OWNER
WEB = called.guest("web1")


def host(*guests: Guest) -> Host:
    return sampled.host(qemu=(OLD, NEW), guests=guests)


def observed(seen: Host) -> Observed:
    return observe(seen, (), Policies(), at=1.0)


def watch(tmp_path: Path, update_of: Callable[[str], str] = lambda _: "") -> tuple[Watch, KeptLog]:
    log = KeptLog()
    return Watch(log, tmp_path, update_of, look_seconds=60.0), log


def look(watch: Watch, *guests: Guest, now: float = 0.0, took: float = 0.0, at_work: bool = False) -> None:
    watch.begins(now - took)
    seen = host(*guests)
    watch.looked(seen, observed(seen), now, at_work=at_work)


# -- libvirt's events ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "detail", "what"),
    [
        (libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STARTED_BOOTED, Happened.STARTED),
        (libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STARTED_RESTORED, Happened.RESTORED),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED, Happened.SAVED),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED, Happened.CRASHED),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED, 99, Happened.SHUT_OFF),
        (99, 0, Happened.OTHER),
    ],
)
def test_libvirts_numbers(event: int, detail: int, what: Happened) -> None:
    assert happened(event, detail) is what


def test_an_event_is_a_line_with_its_update(tmp_path: Path) -> None:
    seen, log = watch(tmp_path, {"u": "update-1"}.__getitem__)
    seen.heard(GuestEvent("web1", "u", Happened.PAUSED), 0.0)
    assert log.events == [
        {"event": "guest event", "guest": "web1", "update": "update-1", "level": "info", "what": "paused"}
    ]


def test_whoever_touches_a_held_guest_is_told_of(tmp_path: Path) -> None:
    seen, log = watch(tmp_path)
    (tmp_path / "web1.held").touch()
    for what in (Happened.SAVED, Happened.RESTORED, Happened.RESUMED, Happened.FAILED, Happened.UNDEFINED):
        seen.heard(GuestEvent("web1", "u", what), 0.0)
    seen.heard(GuestEvent("../web1", "v", Happened.UNDEFINED), 0.0)
    assert [event["what"] for event in log.of("held guest touched")] == ["failed to start", "undefined"]
    assert log.of("held guest touched")[0]["level"] == "warning"
    assert len(log.of("guest event")) == 4


def test_a_libvirt_that_stays_away_is_said_once(tmp_path: Path) -> None:
    seen, log = watch(tmp_path)
    for up in (False, False, True, True, False):
        seen.heard(LineEvent(up, "gone"), 0.0)
    assert log.names() == ["libvirt is away", "libvirt answers", "libvirt is away"]


# -- when to look ------------------------------------------------------------------------------------------------------


def test_looks_at_first_then_now_and_then_and_soon_after_an_event(tmp_path: Path) -> None:
    seen, _ = watch(tmp_path)
    assert seen.due(0.0, at_work=False)
    look(seen, WEB, now=0.0)
    assert not seen.due(59.0, at_work=False)
    assert seen.due(60.0, at_work=False)
    seen.heard(GuestEvent("web1", WEB.uuid, Happened.PAUSED), 10.0)
    seen.heard(GuestEvent("web1", WEB.uuid, Happened.RESUMED), 10.9)
    assert not seen.due(10.5, at_work=False)
    assert seen.due(10.0 + SETTLE_SECONDS, at_work=False)
    look(seen, WEB, now=11.0)
    assert not seen.due(12.0, at_work=False)


def test_who_is_at_work_is_not_disturbed_for_a_while(tmp_path: Path) -> None:
    seen, _ = watch(tmp_path)
    assert not seen.due(0.0, at_work=True)
    look(seen, WEB, now=0.0)
    seen.heard(GuestEvent("web1", WEB.uuid, Happened.PAUSED), 1.0)
    assert not seen.due(61.0, at_work=True)
    assert seen.due(BUSY_SECONDS, at_work=True)


def test_who_is_at_work_from_the_beginning_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    seen, _ = watch(tmp_path)
    assert not seen.due(10.0, at_work=True)
    assert not seen.due(10.0 + BUSY_SECONDS - 1, at_work=True)
    assert seen.due(10.0 + BUSY_SECONDS, at_work=True)


def test_guests_that_come_and_go_all_the_time_do_not_keep_it_looking(tmp_path: Path) -> None:
    seen, _ = watch(tmp_path)
    look(seen, WEB, now=10.0, took=2.0)
    seen.heard(GuestEvent("web1", WEB.uuid, Happened.STARTED), 10.0)
    assert not seen.due(19.0, at_work=False)
    assert seen.due(20.0, at_work=False)
    look(seen, WEB, now=100.0, took=50.0)
    assert seen.due(160.0, at_work=False)


# -- what a look shows -------------------------------------------------------------------------------------------------


def test_a_qemu_that_became_outdated_is_said_once(tmp_path: Path) -> None:
    seen, log = watch(tmp_path)
    look(seen, WEB)
    assert log.names() == []
    for _ in range(2):
        look(seen, replace(WEB, qemu=NEW))
    look(seen, replace(WEB, qemu=None))
    look(seen, WEB)
    assert log.events == [
        {
            "event": "qemu outdated",
            "guest": "web1",
            "level": "info",
            "runs": NEW.package,
            "installed": OLD.package,
        },
        {"event": "qemu current", "guest": "web1", "level": "info", "runs": OLD.package},
    ]


def test_what_is_outdated_at_the_first_look_is_said(tmp_path: Path) -> None:
    seen, log = watch(tmp_path)
    look(seen, replace(WEB, qemu=NEW), called.shut_off("db9"))
    assert log.names() == ["qemu outdated"]


def test_what_nobody_has_told_is_found() -> None:
    before = seen_on(host(WEB, called.guest("db9"), called.guest("old")))
    now = seen_on(host(replace(WEB, state=PAUSED), called.guest("db9"), called.guest("new")))
    assert [(one.event, one.guest) for one in changes(before, now)] == [
        ("guest changed", "web1"),
        ("guest came", "new"),
        ("guest gone", "old"),
    ]
    told = [f"uuid of {name}" for name in ("web1", "new", "old")]
    assert list(changes(before, now, told=told)) == []


def test_a_guest_that_we_left_standing_is_an_error_said_once(tmp_path: Path) -> None:
    seen, log = watch(tmp_path, lambda uuid: "update-1" if uuid == WEB.uuid else "")
    paused = replace(WEB, state=PAUSED), replace(called.guest("db9"), state=PAUSED)
    look(seen, *paused, at_work=True)
    assert log.of("guest left paused") == []
    look(seen, *paused)
    look(seen, *paused)
    (told,) = log.of("guest left paused")
    assert told == {"event": "guest left paused", "guest": "web1", "update": "update-1", "level": "error"}


def test_a_look_that_fails_is_said_once_for_each_reason(tmp_path: Path) -> None:
    seen, log = watch(tmp_path)
    for why in ("a", "a", "b"):
        seen.failed(f"looking: {why}", 0.0)
    seen.heard(LineEvent(up=False), 0.0)
    seen.failed("looking: c", 0.0)
    assert [event["error"] for event in log.of("look failed")] == ["looking: a", "looking: b"]
    assert not seen.due(59.0, at_work=False)


# -- the journal's end ------------------------------------------------------------------------------------------------


def test_the_past_is_not_told_again_but_known(tmp_path: Path) -> None:
    writer = Writer()
    writer.updated("u1", "web1")
    writer.begin("u2", "web1", "db9")
    writer.end_guest("u2", "db9", Outcome.ROLLED_BACK)
    writer.save(tmp_path / "j")
    tail = Tail(tmp_path / "j")
    assert tail.news() == ()
    assert tail.last_ended is not None and tail.last_ended.update == "u1"
    assert tail.open_updates()["u2"].left == {"uuid of web1"}


def test_what_is_new_is_told_and_figures_with_it(tmp_path: Path) -> None:
    path = tmp_path / "j"
    tail = Tail(path)
    assert tail.news() == ()
    writer = Writer()
    writer.updated("u1", "web1")
    writer.save(path)
    told = tail.news()
    assert [(line.event, line.guest) for line in told] == [
        ("update begun", ""),
        ("guest begun", "web1"),
        ("guest measured", "web1"),
        ("guest ended", "web1"),
        ("update ended", ""),
    ]
    assert dict(told[2].more) == {"pause_ms": 18.2, "clock_offset_ms": -0.1, "clock": "corrected"}
    assert tail.news() == () and tail.open_updates() == {}


def test_what_went_wrong_stands_out(tmp_path: Path) -> None:
    path = tmp_path / "j"
    tail = Tail(path)
    tail.news()
    writer = Writer()
    writer.begin("u1", "web1")
    writer.end_guest("u1", "web1", Outcome.NEEDS_OPERATOR, "both have it", "needs-operator")
    writer.save(path)
    ended = tail.news()[-1]
    assert (ended.event, ended.level) == ("guest ended", "error")
    assert dict(ended.more)["reason"] == "both have it"
    (update,) = tail.open_updates().values()
    assert update.waiting == update.left == {"uuid of web1"}


def test_another_journal_in_its_place_is_said_and_its_past_is_not(tmp_path: Path) -> None:
    path = tmp_path / "j"
    one, other = Writer(), Writer(now=1.0)
    one.begin("u1", "web1")
    one.save(path)
    tail = Tail(path)
    tail.news()
    for file in tmp_path.glob("j*"):
        file.unlink()
    other.updated("u2", "web1")
    other.save(path)
    assert [line.event for line in tail.news()] == ["journal is another one"]
    assert tail.open_updates() == {}
