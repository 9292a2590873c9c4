"""Guests that are rebooted for an update: what goes wrong by itself, what others do, and the updater's death."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from hostagent.hypervisor.fake import FaultKind
from hostagent.update.journal import Outcome
from tests.crash import shapes
from tests.crash.judge import outcomes, problems, reason
from tests.crash.rig import FILE, JOURNAL, WORLD, Points, Rig, Scenario, disk_full, journal_full, rig
from tests.crash.sweep import Share, sweep

K = FaultKind
UPDATED, ROLLED_BACK, GONE = Outcome.UPDATED, Outcome.ROLLED_BACK, Outcome.GONE
NEEDS_OPERATOR = Outcome.NEEDS_OPERATOR
ANYWHERE = (JOURNAL, FILE, WORLD)
BOTH = Scenario(rebooted=("web1", "db1"))
FORCED = replace(BOTH, force=True)
Found = Iterator[tuple[str, Sequence[str]]]


def ends(host: Rig) -> tuple[Outcome | None, Outcome | None]:
    ended = outcomes(host)
    return ended["web1"], ended["db1"]


def boots(host: Rig, name: str = "web1") -> int:
    with host.host.world.look() as state:
        return state.guests[host.uuids[name]].boots


def emulator(host: Rig, name: str = "web1") -> str:
    """What runs it; "" when nothing does."""
    return "".join(host.host.world.argv(one)[0] for one in host.host.processes(host.uuids[name]))


# -- by itself ----------------------------------------------------------------------------------------------------


def test_one_after_the_other_and_what_it_took_is_measured() -> None:
    with rig(BOTH) as host:
        assert host.update() == ""
        assert (ends(host), problems(host)) == ((UPDATED, UPDATED), [])
        (update,) = host.updates()
        for guest in update.guests.values():
            assert {"down_seconds", "boot_seconds"} <= set(guest.measured)
            assert "pause_seconds" not in guest.measured
            assert "clock_before_seconds" not in guest.measured


def test_one_that_ignores_the_request_runs_on() -> None:
    with rig(BOTH) as host:
        host.host.fault(K.SHUTDOWN_IGNORED, host.uuids["web1"], times=-1)
        assert host.update() == ""
        assert (ends(host), problems(host)) == ((ROLLED_BACK, UPDATED), [])
        assert (boots(host), emulator(host)) == (1, shapes.OLD.emulator)
        said = reason(host, "web1")
        assert "expected it to shut itself down within 60 s, found that it runs on" in said
        assert f"cannot be taken back: should it do so later, virsh start {host.uuids['web1']}" in said


def test_one_that_obeys_too_late_is_told_of() -> None:
    """It was left alone when its time was over: nobody starts it then, as its reason has said."""
    with rig(BOTH) as host:
        host.host.fault(K.SHUTDOWN_LATE, host.uuids["web1"])
        assert host.update() == ""
        assert ends(host) == (ROLLED_BACK, UPDATED)
        assert "cannot be taken back" in reason(host, "web1")


def test_one_that_ignores_the_request_is_ended_where_that_is_allowed() -> None:
    with rig(FORCED) as host:
        host.host.fault(K.SHUTDOWN_IGNORED, host.uuids["web1"], times=-1)
        assert host.update() == ""
        assert (ends(host), problems(host)) == ((UPDATED, UPDATED), [])


@pytest.mark.parametrize("kind", [K.SHUTDOWN_UNHEARD, K.SHUTDOWN_CUTS_AGENT_OFF, K.START_UNHEARD], ids=str)
def test_an_answer_that_is_lost_is_overcome(kind: FaultKind) -> None:
    with rig(BOTH) as host:
        host.host.fault(kind, host.uuids["web1"])
        assert host.update() == ""
        assert (ends(host), problems(host)) == ((UPDATED, UPDATED), [])


def test_its_power_button_where_its_agent_is_deaf() -> None:
    """The agent has answered, and does not see to it: half of the time later the button is pressed."""
    with rig(BOTH) as host:
        host.host.fault(K.SHUTDOWN_IGNORED, host.uuids["web1"])
        assert host.update() == ""
        assert (ends(host), problems(host)) == ((UPDATED, UPDATED), [])


def test_a_request_that_is_refused_touches_nothing() -> None:
    with rig(BOTH) as host:
        host.host.fault(K.SHUTDOWN_REFUSED, host.uuids["web1"], times=-1)
        assert host.update() == ""
        assert (ends(host), problems(host)) == ((ROLLED_BACK, UPDATED), [])
        assert boots(host) == 1
        assert "taken back" not in reason(host, "web1")


@pytest.mark.parametrize("kind", [K.START_FAILS, K.START_HANGS], ids=str)
def test_one_that_does_not_start_runs_again_on_what_it_ran_on(kind: FaultKind) -> None:
    with rig(BOTH) as host:
        host.host.fault(kind, host.uuids["web1"])
        assert host.update() == ""
        assert (ends(host), problems(host)) == ((ROLLED_BACK, UPDATED), [])
        assert (boots(host), emulator(host)) == (2, shapes.OLD.emulator)
        assert "it was shut down, and started again" in reason(host, "web1")


def test_one_that_does_not_start_on_its_old_qemu_either_starts_as_defined() -> None:
    with rig(BOTH) as host:
        host.host.fault(K.START_FAILS, host.uuids["web1"], times=2)
        assert host.update() == ""
        assert (ends(host), problems(host)) == ((ROLLED_BACK, UPDATED), [])
        assert reason(host, "web1").endswith("started again, on what its definition names")


def test_one_that_starts_nowhere_needs_a_person_and_recovery_tries_again() -> None:
    with rig(BOTH) as host:
        host.host.fault(K.START_FAILS, host.uuids["web1"], times=-1)
        assert host.update() == ""
        assert ends(host) == (NEEDS_OPERATOR, UPDATED)
        assert f"virsh start {host.uuids['web1']}" in reason(host, "web1")
        assert host.recover() == ""
        assert ends(host) == (NEEDS_OPERATOR, UPDATED)
        host.host.no_more_faults()
        assert host.recover() == ""
        assert (ends(host), problems(host)) == ((ROLLED_BACK, UPDATED), [])
        assert emulator(host) == shapes.OLD.emulator


def test_one_that_is_not_seen_to_boot_is_never_ended() -> None:
    with rig(BOTH) as host:
        host.host.fault(K.BOOT_SILENT, host.uuids["web1"])
        assert host.update() == ""
        assert (ends(host), problems(host)) == ((NEEDS_OPERATOR, UPDATED), [])
        assert (boots(host), emulator(host)) == (2, shapes.NEW.emulator)
        said = reason(host, "web1")
        assert f"virsh console {host.uuids['web1']}" in said
        assert "hostagent recover" in said
        host.host.no_more_faults()
        assert host.recover() == ""
        assert (ends(host), problems(host)) == ((UPDATED, UPDATED), [])
        assert boots(host) == 2


def test_one_that_is_not_seen_to_boot_and_that_its_owner_ends() -> None:
    with rig(BOTH) as host:
        host.host.fault(K.BOOT_SILENT, host.uuids["web1"])
        host.update()
        host.host.destroy(host.uuids["web1"])
        assert host.recover() == ""
        assert (ends(host), problems(host, gone={"web1"})) == ((GONE, UPDATED), [])


def test_one_whose_qemu_exits_as_it_boots() -> None:
    with rig(BOTH) as host:
        host.host.fault(K.BOOT_EXITS, host.uuids["web1"])
        assert host.update() == ""
        assert (ends(host), problems(host)) == ((ROLLED_BACK, UPDATED), [])
        assert emulator(host) == shapes.OLD.emulator


def test_without_an_agent_a_tcp_port_shows_that_it_has_booted() -> None:
    with rig(BOTH) as host:
        host.host.fault(K.NO_AGENT, host.uuids["web1"], times=-1)
        assert host.update() == ""
        assert (ends(host), problems(host)) == ((UPDATED, UPDATED), [])
        (update,) = host.updates()
        assert update.guests[host.uuids["web1"]].notes["boot_tcp"] == "web1:22"
        assert update.guests[host.uuids["db1"]].notes["boot_tcp"] == ""


def test_nothing_is_asked_of_one_whose_boot_could_not_be_proved() -> None:
    with rig(BOTH) as host:
        with host.host.world.change() as state:
            state.guests[host.uuids["web1"]].silent = True
        assert host.update() == ""
        assert (ends(host), problems(host)) == ((ROLLED_BACK, UPDATED), [])
        assert boots(host) == 1
        assert "expected its agent to answer, or web1:22, found neither" in reason(host, "web1")


def test_a_cancelled_update_finishes_the_guest_in_hand_and_begins_no_other() -> None:
    with rig(BOTH) as host:
        points = Points(only=(JOURNAL,))

        def act() -> None:
            if "step-begun:shut-down" in points.labels[-1]:
                host.cancelled = True

        points.act = act
        assert host.update(points) == ""
        assert sorted(map(str, outcomes(host).values())) == ["rolled-back", "updated"]
        assert problems(host) == []
        (left,) = (name for name, outcome in outcomes(host).items() if outcome is ROLLED_BACK)
        assert boots(host, left) == 1
        assert reason(host, left).startswith("cancelled")


def test_a_host_that_is_restarted_meanwhile_says_what_became_of_the_guest() -> None:
    with rig(BOTH) as host:
        moments = host.snapshots(host.update, (JOURNAL,))
        host.go_back(next(kept for kept in moments if "after step-done:shut-down step-begun:start" in kept.label))
        with host.host.world.change() as state:
            host.host.world.end_kernel(state, leaps=False)
        assert host.boot() == ""
        host.host.somebody_starts_daemon()
        assert host.recover() == ""
        assert set(outcomes(host).values()) == {Outcome.LOST}
        for name, uuid in host.uuids.items():
            assert "the host was restarted" in reason(host, name)
            assert reason(host, name).endswith(f"where libvirt does not start it by itself, virsh start {uuid}")
        assert not any(update.is_open for update in host.updates())


# -- others ---------------------------------------------------------------------------------------------------------


def labels(scenario: Scenario, kinds: tuple[str, ...]) -> list[tuple[int, str]]:
    points = Points(only=kinds)
    with rig(scenario) as host:
        assert host.update(points) == ""
    return list(enumerate(points.labels, start=1))


def asked_before(host: Rig) -> bool:
    """Whether web1 may have been asked to shut down."""
    return any(g.name == "web1" and g.notes.get("asked") for update in host.updates() for g in update.guests.values())


def shuts_it_down(host: Rig) -> None:
    host.host.shut_down(host.uuids["web1"])


def destroys_it(host: Rig) -> None:
    host.host.destroy(host.uuids["web1"])


def saves_it(host: Rig) -> None:
    if host.uuids["web1"] in running(host):
        host.host.managed_save(host.uuids["web1"])


def kills_its_qemu(host: Rig) -> None:
    for process in host.host.processes(host.uuids["web1"]):
        host.host.kill(process.pid)


def restarts_daemon(host: Rig) -> None:
    host.host.daemon_crashes()
    host.host.somebody_starts_daemon()


def crashes_daemon(host: Rig) -> None:
    host.host.daemon_crashes()


def running(host: Rig) -> list[str]:
    with host.host.world.look() as state:
        return list(state.daemon.views)


@pytest.mark.parametrize("act", [shuts_it_down, destroys_it, saves_it, kills_its_qemu])
def test_its_owner_ends_it(act: Callable[[Rig], None]) -> None:
    """At every moment. What he ended before it was asked for anything stays so; later it ends in one told state."""

    def trials(share: Share) -> Found:
        for number, label in share.of(labels(BOTH, (JOURNAL, WORLD))):
            with rig(BOTH) as host:
                before: list[bool] = []

                def done(host: Rig = host, before: list[bool] = before) -> None:
                    before.append(not asked_before(host))
                    act(host)

                wrong = [host.update(Points(done, number, (JOURNAL, WORLD)))]
                wrong.append(host.recover())
                web1, db1 = ends(host)
                runs = bool(host.host.processes(host.uuids["web1"]))
                if before[0] and web1 not in (GONE, None) and not after_end(label):
                    wrong.append(f"web1 ended as {web1}: {reason(host, 'web1')}")
                if before[0] and runs:
                    wrong.append("it was started though its owner had ended it")
                if web1 is GONE and runs:
                    wrong.append("it is gone, and runs")
                if act is shuts_it_down and not before[0] and not runs and web1 not in (GONE, UPDATED):
                    wrong.append(f"it stays shut off: {web1}: {reason(host, 'web1')}")
                if db1 not in (UPDATED, None):
                    wrong.append(f"db1 ended as {db1}: {reason(host, 'db1')}")
                wrong += host.host.violations()
                yield label, [line for line in wrong if line]

    sweep(trials)


def after_end(label: str) -> bool:
    return "update-begun" in label


@pytest.mark.parametrize("act", [restarts_daemon, crashes_daemon])
def test_daemon_comes_and_goes(act: Callable[[Rig], None]) -> None:
    def trials(share: Share) -> Found:
        for number, label in share.of(labels(BOTH, (JOURNAL,))):
            with rig(BOTH) as host:
                raised = host.update(Points(lambda host=host: act(host), number, (JOURNAL,)))
                wrong = [line for line in (raised, host.recover()) if line.startswith("CRASHED")]
                host.host.somebody_starts_daemon()
                yield f"{label} ({raised})", [*wrong, *problems(host)]

    sweep(trials)


def test_one_that_its_owner_has_shut_down_before_it_was_asked_stays_so() -> None:
    at = next(number for number, label in labels(BOTH, (JOURNAL,)) if "step-done:prepare" in label)
    with rig(BOTH) as host:
        points = Points(lambda: shuts_it_down(host), at, only=(JOURNAL,))
        assert host.update(points) == ""
        assert (ends(host), problems(host, gone={"web1"})) == ((GONE, UPDATED), [])
        assert "ended by somebody else meanwhile" in reason(host, "web1")


# -- full disks -----------------------------------------------------------------------------------------------------


def test_journal_fails_once() -> None:
    def trials(share: Share) -> Found:
        for number, label in share.of(labels(BOTH, (JOURNAL,))):
            if not label.startswith("journal before"):
                continue
            with rig(BOTH) as host:
                raised = host.update(Points(journal_full, number, (JOURNAL,)))
                wrong = [] if not stands(host) else [f"{stands(host)} are not running"]
                wrong += [line for line in (raised, host.recover()) if line.startswith("CRASHED")]
                yield label, [*wrong, *problems(host)]

    sweep(trials)


def test_disk_stays_full() -> None:
    """From some moment on nothing can be written: no guest stays shut off, and with room again all is put right."""

    def trials(share: Share) -> Found:
        for number, label in share.of(labels(BOTH, ANYWHERE)):
            with rig(BOTH) as host:
                points = Points(only=ANYWHERE)

                def act(points: Points = points, number: int = number) -> None:
                    last = points.labels[-1]
                    if len(points.labels) >= number and last.startswith("journal before"):
                        journal_full()
                    if len(points.labels) >= number and last.startswith(("file open", "file os.mkdir", "file os.link")):
                        disk_full()

                points.act = act
                raised = host.update(points)
                wrong = [f"{stands(host)} are not running"] if stands(host) else []
                wrong += [line for line in (raised, host.recover()) if line.startswith("CRASHED")]
                yield label, [*wrong, *problems(host)]

    sweep(trials)


def stands(host: Rig) -> list[str]:
    return [name for name in host.uuids if not host.host.processes(host.uuids[name])]


# -- while nobody is at work ------------------------------------------------------------------------------------------


def obeys_meanwhile(host: Rig) -> None:
    """Whoever was asked to shut down has done so."""
    with host.host.world.change() as state:
        state.now_ns += 10_000_000_000


def somebody_starts_it(host: Rig) -> None:
    """As it is defined."""
    obeys_meanwhile(host)
    if host.uuids["web1"] not in running(host):
        host.host.start(host.uuids["web1"])


def somebody_starts_it_on_the_new_one(host: Rig) -> None:
    obeys_meanwhile(host)
    if host.uuids["web1"] not in running(host):
        host.host.libvirt.start(host.uuids["web1"], shapes.NEW.emulator, 1.0)


@pytest.mark.parametrize("act", [obeys_meanwhile, somebody_starts_it, somebody_starts_it_on_the_new_one])
def test_what_happens_between_a_death_and_recovery(act: Callable[[Rig], None]) -> None:
    """Each guest runs in the end, on what the outcome says."""

    def trials(share: Share) -> Found:
        with rig(BOTH) as host:
            for moment in share.of(host.moments(host.update, ANYWHERE)):
                host.go_back(moment)
                act(host)
                was = emulator(host)
                raised = host.recover()
                wrong = [raised, *problems(host)]
                if (web1 := outcomes(host).get("web1")) not in (UPDATED, ROLLED_BACK, None):
                    wrong.append(f"web1 ended as {web1}: {reason(host, 'web1')}")
                if was and emulator(host) != was:
                    wrong.append(f"it was started on {was}, and runs on {emulator(host)}")
                yield moment.label, [line for line in wrong if line]

    sweep(trials)


@pytest.mark.parametrize(
    "kind", [K.SHUTDOWN_IGNORED, K.SHUTDOWN_LATE, K.START_FAILS, K.START_UNHEARD, K.BOOT_SILENT, K.BOOT_EXITS], ids=str
)
def test_killed_anywhere_while_something_goes_wrong(kind: FaultKind) -> None:
    def trials(share: Share) -> Found:
        with rig(BOTH) as host:
            host.host.fault(kind, host.uuids["web1"])
            for moment in share.of(host.moments(host.update, (JOURNAL, WORLD))):
                host.go_back(moment)
                raised = host.recover()
                host.host.no_more_faults()
                again = host.recover()
                wrong = [raised, again, *problems(host)]
                if stands(host):
                    wrong.append(f"{stands(host)} do not run: {outcomes(host)}")
                yield moment.label, [line for line in wrong if line]

    sweep(trials)


def test_one_that_was_asked_is_waited_for_by_recovery() -> None:
    """The request outlives the updater: whoever obeys it later does not stay shut off for that."""

    def trials(share: Share) -> Found:
        with rig(BOTH) as host:
            for moment in share.of(host.moments(host.update, ANYWHERE)):
                host.go_back(moment)
                raised = host.recover()
                obeys_meanwhile(host)
                yield moment.label, [*([raised] if raised else []), *(f"{name} does not run" for name in stands(host))]

    sweep(trials)
