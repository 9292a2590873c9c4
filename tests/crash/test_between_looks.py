"""Somebody acts on a guest between two of our looks at it, or there is no room to write down what was done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from hostagent.hypervisor import RunState
from hostagent.hypervisor.fake_passing import peer_dies
from hostagent.hypervisor.fake_physics import go_on, stands_still
from hostagent.hypervisor.fake_world import FaultKind, State
from hostagent.update.journal import Outcome
from tests.crash.judge import outcomes, reason
from tests.crash.rig import JOURNAL, PEER, WORLD, Points, Rig, Scenario, journal_full, rig
from tests.crash.sweep import Share, sweep

GOES = Scenario(guests=("web1",), migrated=("web1",))
RETURNS = Scenario(guests=("web1",), migrated=("web1",), comes_back=True)
CLEARED = Scenario(held=("web1",), rebooted=("db1",), swaps=True)

Found = Iterator[tuple[str, Sequence[str]]]


class _Dies(BaseException):
    """The updater, at that moment."""


def runs(host: Rig, name: str) -> list[str]:
    """The hosts on which a guest runs."""
    return [one.host for one in host.host.processes(host.uuids[name]) if one.state is RunState.RUNNING]


def dies_when(host: Rig, reached: Callable[[State], bool]) -> None:
    """The updater ends at the first moment at which the world is so."""

    def act() -> None:
        with host.host.world.look() as state:
            found = reached(state)
        if found:
            raise _Dies

    with pytest.raises(_Dies):
        host.update(Points(act, only=(WORLD,)))


def arrives_and_nobody_knows(host: Rig) -> None:
    """All of it is on both hosts and stands still, as libvirt leaves it that was cut off after the last byte."""
    uuid = host.uuids["web1"]
    host.host.fault(FaultKind.FINISH_UNHEARD)
    dies_when(host, lambda state: uuid in state.passing and state.passing[uuid].done)
    with host.host.world.change() as state:
        view, guest = state.daemon.views[uuid], state.guests[uuid]
        here, there = state.processes[view.pid], state.processes[state.peers[PEER].views[uuid].pid]
        stands_still(state, here, RunState.POSTMIGRATE)
        here.disks, here.holds, there.holds = False, guest.life, guest.life
        view.state, view.reason = "paused", "migration"


def resumed_on_peer(host: Rig, *, disks: bool = False) -> None:
    """By its owner; disks: whether they are of a kind that QEMU can lock."""
    uuid = host.uuids["web1"]
    with host.host.world.change() as state:
        view = state.peers[PEER].views[uuid]
        state.guests[uuid].ram = []  # it is the other one's now
        go_on(host.host.world, state, state.processes[view.pid])
        state.processes[view.pid].disks = disks
        view.state, view.reason = "running", "unpaused"


def test_nothing_goes_on_here_once_its_owner_has_it_go_on_there() -> None:
    with rig(GOES) as host:
        arrives_and_nobody_knows(host)
        resumed_on_peer(host)
        assert host.recover() == ""
        assert (runs(host, "web1"), host.host.violations()) == ([PEER], [])
        assert outcomes(host)["web1"] is Outcome.NEEDS_OPERATOR
        assert "hostagent recover" in reason(host, "web1")


def test_nothing_goes_on_here_while_nobody_knows_whether_it_goes_on_there() -> None:
    with rig(GOES) as host:
        arrives_and_nobody_knows(host)
        resumed_on_peer(host)
        host.host.fault(FaultKind.PEER_SILENT, times=-1)
        assert host.recover() == ""
        assert (runs(host, "web1"), host.host.violations()) == ([PEER], [])
        assert outcomes(host)["web1"] is Outcome.NEEDS_OPERATOR
        assert "hostagent recover" in reason(host, "web1")


def test_it_goes_on_here_if_nobody_did_anything() -> None:
    with rig(GOES) as host:
        arrives_and_nobody_knows(host)
        assert host.recover() == ""
        assert (runs(host, "web1"), host.host.violations()) == ([""], [])
        assert len(host.host.processes(host.uuids["web1"])) == 1
        assert outcomes(host)["web1"] is Outcome.ROLLED_BACK


def test_one_that_its_owner_ended_here_to_have_it_run_there_is_left_alone() -> None:
    with rig(GOES) as host:
        arrives_and_nobody_knows(host)
        host.host.destroy(host.uuids["web1"])
        resumed_on_peer(host)
        assert host.recover() == ""
        assert (runs(host, "web1"), host.host.violations()) == ([PEER], [])
        assert outcomes(host)["web1"] is Outcome.GONE
        assert PEER in reason(host, "web1")


@pytest.mark.parametrize("scenario", [CLEARED, GOES, RETURNS], ids=str)
def test_the_journal_is_full_for_good_and_everybody_runs(scenario: Scenario) -> None:
    def trials(share: Share) -> Found:
        for number in range(1, 200):
            if not share.has(number):
                continue
            with rig(scenario) as host:
                points = Points(only=(JOURNAL,))

                def act(points: Points = points, number: int = number) -> None:
                    if len(points.labels) >= number and points.labels[-1].startswith("journal before"):
                        journal_full()

                points.act = act
                said = host.update(points)
                if len(points.labels) < number:
                    return
                away = [name for name in host.uuids if len(runs(host, name)) != 1]
                yield f"{number} {points.labels[number - 1]}", [f"{away} away, and it was said: {said}"] * bool(away)

    sweep(trials)


def comes_back_and_nobody_knows(host: Rig) -> None:
    """It goes on on the peer, and all of it stands still here, as libvirt leaves it that heard no answer."""
    uuid = host.uuids["web1"]

    def reached(state: State) -> bool:
        passing = state.passing.get(uuid)
        return passing is not None and passing.source == PEER and passing.done

    def act() -> None:
        with host.host.world.look() as state:
            passing, found = state.passing.get(uuid), reached(state)
            comes = passing is not None and passing.source == PEER and not state.faults
        if found:
            raise _Dies
        if comes:
            host.host.fault(FaultKind.FINISH_UNHEARD)

    with pytest.raises(_Dies):
        host.update(Points(act, only=(WORLD,)))


def test_one_that_its_owner_has_go_on_here_as_well_is_not_said_to_be_updated() -> None:
    with rig(RETURNS) as host:
        comes_back_and_nobody_knows(host)
        uuid = host.uuids["web1"]
        with host.host.world.change() as state:
            state.processes[state.peers[PEER].views[uuid].pid].disks = False  # of a kind that QEMU cannot lock
        host.host.resume(uuid)
        assert host.recover() == ""
        assert sorted(runs(host, "web1")) == ["", PEER]
        assert outcomes(host)["web1"] is Outcome.NEEDS_OPERATOR
        assert "both" in reason(host, "web1") and "hostagent recover" in reason(host, "web1")


def test_nothing_goes_on_there_once_its_owner_has_started_it_here() -> None:
    with rig(GOES) as host:
        uuid = host.uuids["web1"]
        with host.host.world.look() as state:
            ram = state.guests[uuid].ram
        points = Points(only=(JOURNAL,))

        def act() -> None:
            if "after" in points.labels[-1] and "step-begun:resume" in points.labels[-1]:
                raise _Dies

        points.act = act
        with pytest.raises(_Dies):
            host.update(points)
        with host.host.world.change() as state:
            state.guests[uuid].persistent, state.guests[uuid].ram = True, ram
        host.host.start(uuid)
        assert host.recover() == ""
        assert runs(host, "web1") == [""]
        assert outcomes(host)["web1"] is Outcome.NEEDS_OPERATOR
        assert "both" in reason(host, "web1") and "hostagent recover" in reason(host, "web1")


FORCED = Scenario(guests=("db1",), rebooted=("db1",), force=True)


def test_what_its_owner_started_anew_is_neither_asked_to_shut_down_nor_ended() -> None:
    """It shut down, and was started at once, while we were waiting for an answer."""
    with rig(FORCED) as host:
        uuid, started = host.uuids["db1"], list[int]()

        def act() -> None:
            with host.host.world.look() as state:
                asked = any(one.ends_at_ns for one in state.living(uuid))
            if asked and not started:
                host.host.kill(host.host.processes(uuid)[0].pid)
                with host.host.world.change() as state:
                    state.guests[uuid].ended = state.guests[uuid].off = "shut down"
                host.host.start(uuid)
                started.append(host.host.processes(uuid)[0].pid)

        host.update(Points(act, only=(WORLD,)))
        assert started
        assert [one.pid for one in host.host.processes(uuid)] == started
        assert host.host.processes(uuid)[0].ends_at_ns == 0
        assert outcomes(host)["db1"] is Outcome.ROLLED_BACK, reason(host, "db1")


def test_the_host_is_restarted_before_a_guest_has_begun_to_leave() -> None:
    """Its memory went with the host, whether or not somebody has started it since."""
    for starts in (False, True):
        with rig(GOES) as host:
            uuid, points = host.uuids["web1"], Points(only=(JOURNAL,))

            def act(points: Points = points) -> None:
                if points.labels[-1] == "journal after noted":
                    raise _Dies

            points.act = act
            with pytest.raises(_Dies):
                host.update(points)
            with host.host.world.change() as state:
                host.host.world.end_kernel(state, leaps=False)
            assert host.boot() == ""
            host.host.somebody_starts_daemon()
            if starts:
                host.host.start(uuid)
            assert host.recover() == ""
            assert outcomes(host)["web1"] is Outcome.LOST, reason(host, "web1")
            assert "the host was restarted" in reason(host, "web1")
            assert runs(host, "web1") == [""] * starts
            assert not list((host.root / "images").iterdir())


def test_the_host_is_restarted_once_a_guest_is_back() -> None:
    """It had all of it, standing still: that is gone, and what somebody starts has fresh RAM."""
    for starts in (False, True):
        with rig(RETURNS) as host:
            uuid, points = host.uuids["web1"], Points(only=(JOURNAL,))

            def act(points: Points = points) -> None:
                if "after" in points.labels[-1] and "step-begun:resume-at-home" in points.labels[-1]:
                    raise _Dies

            points.act = act
            with pytest.raises(_Dies):
                host.update(points)
            with host.host.world.change() as state:
                host.host.world.end_kernel(state, leaps=False)
            assert host.boot() == ""
            host.host.somebody_starts_daemon()
            if starts:
                host.host.start(uuid)
            assert host.recover() == ""
            assert outcomes(host)["web1"] is Outcome.LOST, reason(host, "web1")
            assert runs(host, "web1") == [""] * starts


def test_one_that_ended_with_the_peer_is_said_to_be_defined_there() -> None:
    with rig(RETURNS) as host:
        points = Points(only=(JOURNAL,))

        def act() -> None:
            if "after" in points.labels[-1] and "step-begun:return" in points.labels[-1]:
                with host.host.world.change() as state:
                    peer_dies(host.host.world, state, PEER)
                    state.peers[PEER].alive = True

        points.act = act
        assert host.update(points) == ""
        assert (outcomes(host)["web1"], runs(host, "web1")) == (Outcome.LOST, [])
        uuid = host.uuids["web1"]
        assert f"defined on {PEER}: virsh -c fake://{PEER}/system start {uuid}" in reason(host, "web1")


def test_one_that_ended_here_while_the_peer_is_silent_waits_and_says_for_what() -> None:
    with rig(GOES) as host:
        arrives_and_nobody_knows(host)
        host.host.kill(host.host.processes(host.uuids["web1"])[0].pid)
        host.host.fault(FaultKind.PEER_SILENT, times=-1)
        assert host.recover() == ""
        assert outcomes(host)["web1"] is Outcome.NEEDS_OPERATOR
        assert "hostagent recover" in reason(host, "web1")
        host.host.no_more_faults()
        assert host.recover() == ""
        assert outcomes(host)["web1"] is Outcome.NEEDS_OPERATOR
        assert "whether it went on here" in reason(host, "web1")


def test_one_that_stands_still_on_both_as_it_comes_back_goes_on() -> None:
    """As the peer's libvirt leaves it that was cut off after the last byte."""
    with rig(RETURNS) as host:
        comes_back_and_nobody_knows(host)
        uuid = host.uuids["web1"]
        with host.host.world.change() as state:
            guest, view = state.guests[uuid], state.peers[PEER].views[uuid]
            here, there = state.processes[state.daemon.views[uuid].pid], state.processes[view.pid]
            stands_still(state, there, RunState.POSTMIGRATE)
            there.disks, there.holds, here.holds = False, guest.life, guest.life
            view.state, view.reason = "paused", "migration"
        host.host.fault(FaultKind.MIGRATE_REFUSED)
        assert host.recover() == ""
        assert (runs(host, "web1"), host.host.violations()) == ([PEER], [])
        assert len(host.host.processes(uuid)) == 1
        assert outcomes(host)["web1"] is Outcome.UPDATED
        assert "runs on b" in reason(host, "web1")


def test_a_copy_that_ran_and_was_stopped_by_its_disk_is_not_ended() -> None:
    with rig(GOES) as host:
        arrives_and_nobody_knows(host)
        resumed_on_peer(host)
        uuid = host.uuids["web1"]
        with host.host.world.change() as state:
            view = state.peers[PEER].views[uuid]
            stands_still(state, state.processes[view.pid], RunState.PAUSED)
            view.state, view.reason = "paused", "I/O error"
            there = view.pid
        assert host.recover() == ""
        assert there in [one.pid for one in host.host.processes(uuid)]
        assert (runs(host, "web1"), host.host.violations()) == ([], [])
        assert outcomes(host)["web1"] is Outcome.NEEDS_OPERATOR
        assert "I/O error" in reason(host, "web1")
