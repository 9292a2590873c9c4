"""What goes wrong by itself during an update, and how each guest must end: design, "Faults to survive"."""

import pytest

from hostagent.hypervisor.fake import FaultKind
from hostagent.update.journal import Outcome
from tests.crash.judge import outcomes, problems, reason
from tests.crash.rig import JOURNAL, Points, Rig, Scenario, journal_full, rig

UPDATED, ROLLED_BACK, LOST = Outcome.UPDATED, Outcome.ROLLED_BACK, Outcome.LOST
NEEDS_OPERATOR = Outcome.NEEDS_OPERATOR
K = FaultKind

SCENARIOS = (Scenario(), Scenario(paused=("web1",)))
BEFORE_THE_PAUSE = (
    *(K.NEW_EXITS, K.NEW_REFUSES_MACHINE, K.NEW_HANGS),
    *(K.BLOCKED, K.DIFFERENT, K.OLD_SILENT, K.DISK_SLOW, K.QUESTION_FAILS),
)
TURNS_BACK = (
    *BEFORE_THE_PAUSE,
    *(K.LOAD_EXITS_EARLY, K.LOAD_EXITS_LATE, K.LOAD_HANGS_EARLY, K.LOAD_HANGS_LATE, K.LOAD_SLOW, K.LOAD_COPIES),
)


def web1_and_db1(host: Rig) -> tuple[Outcome | None, Outcome | None]:
    ended = outcomes(host)
    return ended["web1"], ended["db1"]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
@pytest.mark.parametrize("kind", TURNS_BACK, ids=str)
def test_one_guest_turns_back_and_the_other_is_updated(scenario: Scenario, kind: FaultKind) -> None:
    with rig(scenario) as host:
        host.host.fault(kind, host.uuids["web1"])
        assert host.update() == ""
        assert (web1_and_db1(host), problems(host)) == ((ROLLED_BACK, UPDATED), []), reason(host, "web1")


@pytest.mark.parametrize("kind", BEFORE_THE_PAUSE, ids=str)
def test_what_is_seen_before_the_pause_costs_no_pause(kind: FaultKind) -> None:
    with rig(Scenario()) as host:
        host.host.fault(kind, host.uuids["web1"])
        host.update()
        (old,) = host.host.processes(host.uuids["web1"])
        assert old.stopped_ns == 0


@pytest.mark.parametrize("kind", [K.CONT_UNHEARD, K.QUIT_HANGS, K.NO_AGENT], ids=str)
def test_overcome(kind: FaultKind) -> None:
    with rig(Scenario()) as host:
        host.host.fault(kind, host.uuids["web1"])
        assert host.update() == ""
        assert (web1_and_db1(host), problems(host)) == ((UPDATED, UPDATED), [])


def test_new_one_exits_at_cont() -> None:
    """The old one's state is past: it must not run, and nobody may think that it does."""
    with rig(Scenario()) as host:
        host.host.fault(K.CONT_EXITS, host.uuids["web1"])
        assert host.update() == ""
        assert (web1_and_db1(host), problems(host)) == ((LOST, UPDATED), [])


@pytest.mark.parametrize("kind", [K.CONT_FAILS, K.CONT_LOST], ids=str)
def test_cont_fails_after_the_intent(kind: FaultKind) -> None:
    """Only forward: it waits for a person, and recovery carries it on."""
    with rig(Scenario()) as host:
        host.host.fault(kind, host.uuids["web1"], times=-1)
        assert host.update() == ""
        assert (web1_and_db1(host), problems(host)) == ((NEEDS_OPERATOR, UPDATED), [])
        host.host.no_more_faults()
        assert host.recover() == ""
        assert (web1_and_db1(host), problems(host)) == ((UPDATED, UPDATED), [])


@pytest.mark.parametrize("kind", [K.CONT_FAILS, K.CONT_LOST], ids=str)
def test_cont_fails_and_an_operator_resumes_what_he_sees(kind: FaultKind) -> None:
    with rig(Scenario()) as host:
        host.host.fault(kind, host.uuids["web1"])
        assert host.update() == ""
        if web1_and_db1(host)[0] is NEEDS_OPERATOR:
            host.host.resume(host.uuids["web1"])
        assert host.recover() == ""
        assert (web1_and_db1(host), problems(host)) == ((UPDATED, UPDATED), [])


def test_cont_on_the_old_one_fails() -> None:
    """The undo of the switch does not get through at first."""
    with rig(Scenario()) as host:
        host.host.fault(K.LOAD_EXITS_LATE, host.uuids["web1"])
        host.host.fault(K.CONT_FAILS, host.uuids["web1"])
        assert host.update() == ""
        assert host.host.violations() == []
        assert host.recover() == ""
        assert (web1_and_db1(host), problems(host)) == ((ROLLED_BACK, UPDATED), [])


@pytest.mark.parametrize("kind", [K.LOAD_HANGS_EARLY, K.LOAD_HANGS_LATE, K.NEW_HANGS], ids=str)
def test_killed_one_stays(kind: FaultKind) -> None:
    """A QEMU that does not even die when killed: the old one must not be resumed beside it."""
    with rig(Scenario()) as host:
        host.host.fault(kind, host.uuids["web1"])
        host.host.fault(K.KILL_HANGS, host.uuids["web1"], times=-1)
        assert host.update() == ""
        assert (web1_and_db1(host)[0], host.host.violations()) == (NEEDS_OPERATOR, [])
        host.host.no_more_faults()
        assert host.recover() == ""
        assert (web1_and_db1(host), problems(host)) == ((ROLLED_BACK, UPDATED), [])


def test_daemon_does_not_stop() -> None:
    with rig(Scenario()) as host:
        host.host.fault(K.DAEMON_STAYS_UP)
        assert host.update() == ""
        assert (web1_and_db1(host), problems(host)) == ((ROLLED_BACK, ROLLED_BACK), [])


def test_daemon_does_not_start() -> None:
    """The guests run; somebody is told the command; then recovery finishes."""
    with rig(Scenario()) as host:
        host.host.fault(K.DAEMON_STAYS_DOWN, times=-1)
        assert host.update() == ""
        assert web1_and_db1(host) == (NEEDS_OPERATOR, NEEDS_OPERATOR)
        assert host.host.daemon.restart_hint() in reason(host, "web1")
        assert problems(host, daemon_up=False) == []
        assert host.recover() == ""
        assert web1_and_db1(host) == (NEEDS_OPERATOR, NEEDS_OPERATOR)
        host.host.no_more_faults()
        assert host.recover() == ""
        assert (web1_and_db1(host), problems(host)) == ((UPDATED, UPDATED), [])


def test_daemon_does_not_start_and_one_had_turned_back() -> None:
    with rig(Scenario()) as host:
        host.host.fault(K.LOAD_EXITS_LATE, host.uuids["web1"])
        host.host.fault(K.DAEMON_STAYS_DOWN)
        host.update()
        assert host.host.violations() == []
        assert host.recover() == ""
        assert (web1_and_db1(host), problems(host)) == ((ROLLED_BACK, UPDATED), [])


@pytest.mark.parametrize("times", [1, -1], ids=["once", "always"])
def test_a_question_that_libvirt_will_ask_is_refused_late(times: int) -> None:
    """libvirt would kill the guest as it comes back to it: it is kept away until the guest is safe."""
    with rig(Scenario()) as host:
        host.host.fault(K.QUESTION_FAILS_LATE, host.uuids["web1"], times=times)
        assert host.update() == ""
        assert web1_and_db1(host) == (NEEDS_OPERATOR, NEEDS_OPERATOR)
        assert "hostagent recover" in reason(host, "web1")
        assert problems(host, daemon_up=False) == []
        if times < 0:
            assert host.recover() == ""
            assert web1_and_db1(host) == (NEEDS_OPERATOR, NEEDS_OPERATOR)
            assert problems(host, daemon_up=False) == []
        host.host.no_more_faults()
        assert host.recover() == ""
        assert (web1_and_db1(host), problems(host)) == ((UPDATED, UPDATED), [])


def test_journal_fails_at_a_figure() -> None:
    """A pause that cannot be written down at once is no reason to ask for a person, and is written down later."""
    with rig(Scenario()) as host:
        points = Points(only=(JOURNAL,))

        def act() -> None:
            resumed = any("step-begun:resume" in label for label in points.labels)
            if resumed and points.labels[-1] == "journal before measured":
                points.act = lambda: None
                journal_full()

        points.act = act
        assert host.update(points) == ""
        assert (web1_and_db1(host), problems(host)) == ((UPDATED, UPDATED), [])
        (update,) = host.updates()
        assert all("pause_seconds" in guest.measured for guest in update.guests.values())


def test_both_fail() -> None:
    with rig(Scenario()) as host:
        host.host.fault(K.NEW_EXITS, times=2)
        assert host.update() == ""
        assert (web1_and_db1(host), problems(host)) == ((ROLLED_BACK, ROLLED_BACK), [])


# -- RAM that is copied -----------------------------------------------------------------------------------------

COPIED = (Scenario(copied=("web1",)), Scenario(copied=("web1",), kvm=True))
CROSSING = (K.LOAD_EXITS_EARLY, K.LOAD_EXITS_LATE, K.LOAD_HANGS_EARLY, K.LOAD_HANGS_LATE, K.LOAD_SLOW)


@pytest.mark.parametrize("scenario", COPIED, ids=str)
@pytest.mark.parametrize("kind", [*BEFORE_THE_PAUSE, *CROSSING, K.COPY_BREAKS, K.DIRTY_FAST], ids=str)
def test_a_copy_turns_back_and_the_other_is_updated(scenario: Scenario, kind: FaultKind) -> None:
    with rig(scenario) as host:
        host.host.fault(kind, host.uuids["web1"])
        assert host.update() == ""
        assert (web1_and_db1(host), problems(host)) == ((ROLLED_BACK, UPDATED), []), reason(host, "web1")


@pytest.mark.parametrize("kind", [*BEFORE_THE_PAUSE, K.COPY_BREAKS, K.DIRTY_FAST, K.COPY_STALLS], ids=str)
def test_a_copy_that_fails_costs_no_pause(kind: FaultKind) -> None:
    """But of a guest whose QEMU misses writes: see update/copying.py."""
    with rig(Scenario(copied=("web1",), kvm=True)) as host:
        host.host.fault(kind, host.uuids["web1"], times=-1 if kind is K.COPY_STALLS else 1)
        assert host.update() == ""
        assert (web1_and_db1(host), problems(host)) == ((ROLLED_BACK, UPDATED), []), reason(host, "web1")
        (old,) = host.host.processes(host.uuids["web1"])
        assert old.stopped_ns == 0


@pytest.mark.parametrize("kind", [K.COPY_STALLS, K.DIRTY_FAST], ids=str)
def test_one_that_writes_too_fast_is_told_what_helps(kind: FaultKind) -> None:
    with rig(Scenario(copied=("web1",), kvm=True)) as host:
        host.host.fault(kind, host.uuids["web1"], times=-1)
        host.update()
        assert "hostagent guest adopt web1 --next-boot" in reason(host, "web1")


def test_a_copy_takes_too_long() -> None:
    with rig(Scenario(copied=("web1",), kvm=True)) as host:
        host.host.fault(K.COPY_SLOW, host.uuids["web1"], times=-1)
        assert host.update() == ""
        assert (web1_and_db1(host), problems(host)) == ((ROLLED_BACK, UPDATED), [])
        assert "all of it to cross in 20 s" in reason(host, "web1")


def test_definitions_of_those_that_were_copied_are_changed() -> None:
    with rig(Scenario(copied=("web1",))) as host:
        assert host.update() == ""
        with host.host.world.look() as state:
            changed = {guest.name: guest.shared_from_next_boot for guest in state.guests.values()}
        assert changed == {"web1": True, "db1": False}
