"""Accidents and people, one after the other: each once ended in a guest lost, stopped, doubled or misreported."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hostagent import processes
from hostagent.errors import Failed
from hostagent.hypervisor import RunState
from hostagent.hypervisor.fake import FaultKind
from hostagent.hypervisor.fake_monitor import FakeMonitor
from hostagent.hypervisor.fake_world import Process
from hostagent.update.journal import GuestRecord, Outcome
from hostagent.update.recovery import recover
from tests.crash import shapes
from tests.crash.judge import outcomes, problems, reason
from tests.crash.rig import JOURNAL, WORLD, Points, Rig, Scenario, journal_full, kill_me, rig

ALONE = Scenario(guests=("web1",))
OLD = 1001  # pid of web1's old QEMU
K = FaultKind


def when(words: str, act: Callable[[], None]) -> Points:
    """`act` once, at the first journal write with these words."""
    points = Points(only=(JOURNAL,))

    def look() -> None:
        if words in points.labels[-1]:
            points.act = lambda: None
            act()

    points.act = look
    return points


def killed(host: Rig, words: str) -> None:
    """The updater, and its guard, die at the journal write with these words."""
    assert host.update_killed(when(words, kill_me)) == -signal.SIGKILL


def never_again() -> Points:
    """Nothing can be written to the journal."""
    points = Points(only=(JOURNAL,))
    points.act = lambda: journal_full() if points.labels[-1].startswith("journal before") else None
    return points


def living(host: Rig) -> list[Process]:
    return host.host.processes(host.uuids["web1"])


def running(host: Rig) -> list[int]:
    return [process.pid for process in living(host) if process.state is RunState.RUNNING]


def web1(host: Rig) -> GuestRecord:
    return host.updates()[-1].guests[host.uuids["web1"]]


def boot_anew(host: Rig) -> int:
    """Its owner ends it and starts it again; the pid of its new life."""
    uuid = host.uuids["web1"]
    host.host.destroy(uuid)
    host.host.boot(shapes.q35(), "web1")
    guest = host.host.libvirt.guest(uuid)
    assert guest is not None and guest.process is not None
    return guest.process.pid


# -- the intent, and a world that is otherwise -------------------------------------------------------------------


def test_the_intent_was_refused_and_is_there_all_the_same() -> None:
    """The disk fails at the intent: the updater turns back. At the next opening of the journal the row is there."""
    with rig(ALONE) as host:
        points, failing = Points(only=(JOURNAL,)), []

        def act() -> None:
            label = points.labels[-1]
            if label.startswith("journal after") and "step-begun:resume" in label:
                failing.append(label)
            if failing:
                journal_full()

        points.act = act
        host.update(points)
        assert running(host) == [OLD]
        assert host.recover() == ""
        assert running(host) == [OLD]
        assert (outcomes(host)["web1"], problems(host)) == (Outcome.ROLLED_BACK, [])


def test_all_die_at_the_intent_and_somebody_resumes_what_libvirt_shows() -> None:
    with rig(ALONE) as host:
        killed(host, "after step-done:record step-begun:resume")
        host.host.somebody_starts_daemon()
        host.host.resume(host.uuids["web1"])
        before = running(host)
        assert (host.recover(), host.host.violations()) == ("", [])
        assert running(host) == before
        assert (outcomes(host)["web1"], problems(host)) == (Outcome.ROLLED_BACK, [])


# -- the guest was started anew ----------------------------------------------------------------------------------


def test_undo_was_stuck_and_the_guest_is_started_anew() -> None:
    """The new QEMU could not be ended. Its owner ends and starts the guest: the record is that of another life."""
    with rig(ALONE) as host:
        host.host.fault(K.KILL_HANGS, host.uuids["web1"], times=-1)
        host.update(when("before step-done:record", journal_full))
        host.host.no_more_faults()
        fresh = boot_anew(host)
        host.recover()
        guest = host.host.libvirt.guest(host.uuids["web1"])
        assert guest is not None and guest.process is not None and guest.process.pid == fresh
        assert running(host) == [fresh]


@pytest.mark.parametrize("words", ["before step-done:switch", "before step-done:record", "after step-done:record"])
def test_all_die_and_the_guest_is_started_anew(words: str) -> None:
    with rig(ALONE) as host:
        killed(host, words)
        host.host.somebody_starts_daemon()
        fresh = boot_anew(host)
        host.recover()
        guest = host.host.libvirt.guest(host.uuids["web1"])
        assert guest is not None and guest.process is not None and guest.process.pid == fresh
        assert running(host) == [fresh]


def test_all_die_and_the_guest_is_destroyed() -> None:
    """libvirt knew of the new QEMU only: what is left of the old one is named, with the command that ends it."""
    with rig(ALONE) as host:
        killed(host, "before step-done:record")
        host.host.somebody_starts_daemon()
        host.host.destroy(host.uuids["web1"])
        host.recover()
        assert running(host) == []
        if outcomes(host)["web1"] is Outcome.NEEDS_OPERATOR:
            assert f"kill -9 {OLD}" in reason(host, "web1")
            host.host.kill(OLD)
            host.recover()
        assert problems(host, gone={"web1"}) == []


COPIED = Scenario(guests=("web1",), copied=("web1",))


@pytest.mark.parametrize("words", ["after noted", "step-begun:start", "before step-done:copy", "after step-done:copy"])
def test_all_die_over_a_copy_and_another_life_has_its_ram_there(words: str) -> None:
    """libvirt's daemon was started anew without guests, and counts them from 1 again; the guest has file RAM now."""
    with rig(COPIED) as host:
        killed(host, words)
        host.host.destroy(host.uuids["web1"])
        host.host.daemon_crashes()
        host.host.somebody_starts_daemon()
        host.host.boot(shapes.q35(), "web1", domain_id=1)
        assert host.recover() == ""
        assert host.host.violations() == []
        assert (len(running(host)), outcomes(host)["web1"]) == (1, Outcome.GONE)
        assert not (host.root / "ram" / "hostagent").exists()


SETS = ("take_link_down", "end_at_reboot")


@pytest.mark.parametrize("does", SETS)
@pytest.mark.parametrize(
    "words", ["before step-begun:prepare", "step-begun:start", "step-done:copy", "step-begun:detach"]
)
def test_its_owner_changes_what_the_state_does_not_carry(words: str, does: str) -> None:
    """A copy takes minutes: a guest that was cut off its network meanwhile must stay so."""
    with rig(COPIED) as host:
        host.update(when(words, lambda: getattr(host.host, does)(host.uuids["web1"])))
        assert (outcomes(host)["web1"], problems(host)) == (Outcome.UPDATED, [])


@pytest.mark.parametrize("does", ["unplug_card", "change_card"])
@pytest.mark.parametrize("words", ["before step-done:start", "step-done:copy", "step-begun:detach"])
def test_its_owner_takes_its_network_card_out(words: str, does: str) -> None:
    """The tap is gone with it: there is none to put right, and the new QEMU's leads nowhere."""
    with rig(COPIED) as host:
        assert host.update(when(words, lambda: getattr(host.host, does)(host.uuids["web1"]))) == ""
        assert (outcomes(host)["web1"], problems(host)) == (Outcome.ROLLED_BACK, []), reason(host, "web1")


@pytest.mark.parametrize("name", ["drop_ballast", "set_capabilities"])
def test_the_new_one_s_settings_are_not_put_right_at_first(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left so, its next migration would break, and so would its next handover."""
    put_right, refused = getattr(FakeMonitor, name), []

    def refuses(monitor: FakeMonitor, *words: dict[str, bool]) -> None:
        if monitor.pid != OLD and monitor.run_state() is RunState.RUNNING and len(refused) < 2:
            refused.append(words)
            raise Failed(f"asking QEMU {monitor.pid}", found="not now")
        put_right(monitor, *words)

    monkeypatch.setattr(FakeMonitor, name, refuses)
    with rig(COPIED) as host:
        assert host.update() == ""
        assert outcomes(host)["web1"] is Outcome.NEEDS_OPERATOR
        assert host.recover() == ""
        assert (outcomes(host)["web1"], problems(host)) == (Outcome.UPDATED, [])


# -- a guest that stands still so that its QEMU misses nothing that it writes (update/copying.py) ----------------------


def halted(host: Rig, act: Callable[[], None]) -> Points:
    """`act` once, when web1 first stands still."""
    points = Points(only=(WORLD,))

    def look() -> None:
        if living(host)[0].state is RunState.PAUSED:
            points.act = lambda: None
            act()

    points.act = look
    return points


def test_libvirt_ends_while_a_guest_stands_still_for_its_copy() -> None:
    """Nobody would start the daemon again, and the guest would wait for that."""
    with rig(COPIED) as host:
        host.update(halted(host, host.host.daemon_crashes))
        assert running(host) == [OLD]
        assert (outcomes(host)["web1"], problems(host)) == (Outcome.ROLLED_BACK, [])


def test_all_die_while_a_guest_stands_still_for_its_copy_and_the_new_one_cannot_be_ended() -> None:
    with rig(COPIED) as host:
        assert host.update_killed(halted(host, kill_me)) == -signal.SIGKILL
        assert running(host) == []
        host.host.fault(K.KILL_HANGS, host.uuids["web1"], times=-1)
        host.recover()
        assert (running(host), outcomes(host)["web1"]) == ([OLD], Outcome.NEEDS_OPERATOR)
        host.host.no_more_faults()
        assert host.recover() == ""
        assert (outcomes(host)["web1"], problems(host)) == (Outcome.ROLLED_BACK, [])


def test_the_guard_hears_that_a_guest_goes_on_whose_copy_did_not_begin() -> None:
    """Else it ends the updater some seconds later, in the midst of the others' copies."""
    with rig(COPIED) as host:

        def act() -> None:
            (new,) = (one for one in living(host) if one.pid != OLD)
            host.host.kill(new.pid)

        assert host.update(halted(host, act)) == ""
        assert (outcomes(host)["web1"], problems(host)) == (Outcome.ROLLED_BACK, [])
        assert host.guard.until is None


@pytest.mark.parametrize("words", ["before noted", "after noted"])
@pytest.mark.parametrize("number", [4, 5])  # the old one's settings, and that it is about to stand still
def test_its_owner_pauses_it_just_before_it_stands_still_for_its_copy(words: str, number: int) -> None:
    with rig(COPIED) as host:
        points, seen = Points(only=(JOURNAL,)), []

        def act() -> None:
            seen.extend(label for label in points.labels[-1:] if words in label)
            if len(seen) == number:
                seen.append("")
                host.host.pause(host.uuids["web1"])

        points.act = act
        assert host.update(points) == ""
        assert (running(host), len(living(host)), host.host.violations()) == ([], 1, [])
        assert outcomes(host)["web1"] is Outcome.ROLLED_BACK


# -- the disk of the journal is full -----------------------------------------------------------------------------


def test_killed_in_the_pause_with_the_disk_full() -> None:
    with rig(ALONE) as host:
        killed(host, "before step-done:switch")
        host.recover(never_again())
        assert running(host) == [OLD]
        with host.host.world.look() as state:
            assert state.daemon.up
        assert host.recover() == ""
        assert (outcomes(host)["web1"], problems(host)) == (Outcome.ROLLED_BACK, [])


def test_old_one_dies_with_the_disk_full() -> None:
    """There is only forward, and the intent cannot be written: the new one is kept, and libvirt kept from it."""
    with rig(ALONE) as host:
        points, dead = Points(only=(JOURNAL,)), []

        def act() -> None:
            label = points.labels[-1]
            if "before step-done:switch" in label and not dead:
                host.host.kill(OLD)
                dead.append(label)
            if dead and label.startswith("journal before"):
                journal_full()

        points.act = act
        assert not host.update(points).startswith("CRASHED")
        assert [process.state for process in living(host)] == [RunState.PAUSED]
        assert (host.recover(), outcomes(host)["web1"], problems(host)) == ("", Outcome.UPDATED, [])


def test_full_at_the_last_row() -> None:
    """Exit code 4 would say that it was rolled back."""
    with rig(ALONE) as host:
        assert host.update(when("before guest-ended", journal_full)).startswith("NeedsOperator")
        assert (host.recover(), outcomes(host)["web1"], problems(host)) == ("", Outcome.UPDATED, [])


# -- QEMUs that do not do as they are told -----------------------------------------------------------------------


def test_old_one_dies_and_the_new_one_is_slow() -> None:
    """Memory is short: the kernel ends the old one after the crossing, and the new one misses an answer."""
    with rig(ALONE) as host:

        def act() -> None:
            host.host.kill(OLD)
            with host.host.world.change() as state:
                for process in state.living(host.uuids["web1"]):
                    process.hung = True

        assert host.update(when("before step-done:switch", act)) == ""
        (new,) = living(host)
        assert outcomes(host)["web1"] is Outcome.NEEDS_OPERATOR
        with host.host.world.change() as state:
            state.processes[new.pid].hung = False
        assert (host.recover(), outcomes(host)["web1"], problems(host)) == ("", Outcome.UPDATED, [])


def test_old_one_cannot_be_ended_after_the_commit() -> None:
    """The guest runs on the new one: a save of it must not lose its RAM meanwhile."""
    with rig(ALONE) as host:
        host.host.fault(K.KILL_HANGS, host.uuids["web1"], times=-1)
        host.update()
        (new,) = [process for process in living(host) if process.state is RunState.RUNNING]
        assert not new.capabilities["x-ignore-shared"]
        assert new.capabilities["events"]


@pytest.mark.parametrize("faults", [(K.CONT_FAILS,), (K.LOAD_EXITS_LATE, K.CONT_FAILS)], ids=["new", "old"])
def test_resume_fails_and_somebody_resumes(faults: tuple[FaultKind, ...]) -> None:
    with rig(ALONE) as host:
        for fault in faults:
            host.host.fault(fault, host.uuids["web1"])
        host.update()
        host.host.resume(host.uuids["web1"])
        (process,) = living(host)
        assert process.state is RunState.RUNNING
        assert not process.capabilities["x-ignore-shared"]


# -- what the guest and its owner do -----------------------------------------------------------------------------


def test_a_guest_that_stood_still_and_was_turned_back_has_its_clock_set() -> None:
    with rig(ALONE) as host:
        host.host.fault(K.LOAD_HANGS_LATE, host.uuids["web1"])
        host.update()
        assert outcomes(host)["web1"] is Outcome.ROLLED_BACK
        with host.host.world.look() as state:
            assert state.guests[host.uuids["web1"]].lag_ns < 10_000_000
        assert web1(host).measured["clock_outcome"] == "corrected"


@pytest.mark.parametrize("paused", [(), ("web1",)], ids=["pauses it", "resumes it"])
@pytest.mark.parametrize(
    ("words", "expected"), [("step-begun:detach", Outcome.ROLLED_BACK), ("step-begun:look", Outcome.UPDATED)]
)
def test_owner_changes_his_mind(paused: tuple[str, ...], words: str, expected: Outcome) -> None:
    with rig(Scenario(guests=("web1",), paused=paused)) as host:
        act = host.host.resume if paused else host.host.pause
        assert host.update(when(words, lambda: act(host.uuids["web1"]))) == ""
        assert (outcomes(host)["web1"], host.host.violations()) == (expected, [])


def test_a_guest_that_shuts_itself_down_before_the_switch_stays_down() -> None:
    with rig(ALONE) as host:

        def act() -> None:
            with host.host.world.change() as state:
                state.processes[OLD].state = RunState.OTHER

        host.update(when("step-begun:switch", act))
        assert running(host) == []


def test_ended_after_libvirt_had_it_back() -> None:
    with rig(ALONE) as host:
        uuid = host.uuids["web1"]
        assert host.update(when("after step-done:attach", lambda: host.host.libvirt.destroy(uuid))) == ""
        assert outcomes(host)["web1"] is Outcome.GONE


def test_turned_back_and_ended_later() -> None:
    with rig(ALONE) as host:
        host.host.fault(K.LOAD_EXITS_LATE, host.uuids["web1"])
        host.host.fault(K.DAEMON_STAYS_DOWN)
        host.update()
        host.host.kill(OLD)
        host.recover()
        assert outcomes(host)["web1"] is Outcome.GONE


# -- the host ----------------------------------------------------------------------------------------------------


def test_after_a_restart_nothing_is_kept() -> None:
    with rig(ALONE) as host:
        killed(host, "before step-done:switch")
        host._run(lambda ports: recover(ports, boot_id="another", tell=lambda *_: None), Points(only=()))
        assert list((host.root / "state" / "held").iterdir()) == []
        assert not (host.root / "ram" / "hostagent").exists()


def test_daemon_does_not_start_after_a_rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 3 would say that nothing was touched, with libvirt down."""
    monkeypatch.setattr(processes, "run", lambda argv, **_: Path(argv[5]).touch())
    with rig(Scenario(guests=("web1",), rehearse=True)) as host:
        host.host = replace(host.host, throw_away=shapes.q35())
        host.host.fault(K.DAEMON_STAYS_DOWN, times=-1)
        assert host.update().startswith("NeedsOperator")
        assert host.recover() == ""
        host.host.no_more_faults()
        assert (host.recover(), problems(host)) == ("", [])


PERSON = ("resume", "pause", "destroy")
MOMENTS = (
    *("after noted", "before step-done:reconcile", "after step-done:reconcile", "before step-done:switch"),
    *("after step-done:switch", "after step-done:resume", "before step-done:retire", "after step-done:retire"),
    *("before step-done:prove", "before step-begun:attach", "after step-begun:attach"),
)


@pytest.mark.parametrize("does", PERSON)
@pytest.mark.parametrize("words", MOMENTS)
def test_all_die_and_somebody_starts_libvirt_and_acts(words: str, does: str) -> None:
    with rig(ALONE) as host:
        uuid = host.uuids["web1"]
        killed(host, words)
        host.host.somebody_starts_daemon()
        _try(lambda: getattr(host.host, does)(uuid))
        before = host.host.violations()
        assert host.recover() == ""
        assert host.recover() == ""
        assert host.host.violations() == before
        if does == "destroy":
            assert (living(host), outcomes(host)["web1"] in {Outcome.GONE, Outcome.LOST}) == ([], True)
        if does == "resume":
            assert [process.state for process in living(host)] == [RunState.RUNNING]


def _try(act: Callable[[], object]) -> None:
    """libvirt may refuse it."""
    try:
        act()
    except Exception as error:
        print(error)
