"""Live migration: whatever goes wrong, one copy of the guest runs in the end, where the report says that it does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hostagent.hypervisor import RunState
from hostagent.hypervisor.fake_passing import peer_dies
from hostagent.hypervisor.fake_world import FaultKind
from hostagent.plan import Method
from hostagent.update import leaving, passage
from hostagent.update.journal import Outcome
from tests.crash import shapes
from tests.crash.migrating import (
    Found,
    fault_at_each_moment,
    killed_anywhere,
    killed_for_real_at_every_journal_write,
    recovery_killed_as_well,
    reports,
    started_anew_at_each_moment,
)
from tests.crash.migrating import wrong_of_guests as wrong
from tests.crash.rig import JOURNAL, PEER, WORLD, Points, Rig, Scenario, rig
from tests.crash.sweep import Share, sweep

GOES = Scenario(guests=("web1",), migrated=("web1",))
RETURNS = Scenario(guests=("web1",), migrated=("web1",), comes_back=True)
BOTH = Scenario(migrated=("web1", "db1"), comes_back=True)


def test_that_it_has_left_is_on_the_disk_before_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut brings its definition back here, where libvirt may start a second copy."""
    with rig(GOES) as host:
        seen: list[tuple[str, int]] = []

        def sees(path: Path) -> None:
            with host.host.world.look() as state:
                living = state.living(host.uuids["web1"])
                seen.append((path.name, sum(one.state is RunState.RUNNING for one in living)))

        monkeypatch.setattr(leaving, "fsync", sees)
        assert host.update() == ""
        assert seen == [("qemu", 0), ("autostart", 0)]


# -- what should happen -----------------------------------------------------------------------------------------------


def test_a_guest_goes_and_stays() -> None:
    with rig(GOES) as host:
        assert host.update() == ""
        assert wrong(host) == []
        told = reports(host)["web1"]
        assert (told.outcome, told.method, told.runs_on) == (Outcome.UPDATED, Method.LIVE_MIGRATE, PEER)
        assert (told.reason, told.qemu_after) == ("", str(shapes.OLD.version))
        assert told.pause_seconds is not None and told.pause_source == "between-looks"
        assert told.clock_outcome == "in-sync"


def test_guests_go_and_come_back_onto_the_new_qemu() -> None:
    with rig(BOTH) as host:
        assert host.update() == ""
        assert wrong(host) == []
        for told in reports(host).values():
            assert (told.outcome, told.runs_on, told.reason) == (Outcome.UPDATED, "", "")
            assert told.qemu_after == str(shapes.NEW.version)
            assert told.pause_seconds is not None


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (FaultKind.MIGRATE_REFUSED, "Cannot get interface MTU on 'br0'"),
        (FaultKind.MIGRATE_BREAKS, "Connection reset by peer"),
        (FaultKind.MIGRATE_DIES_EARLY, "Lost connection"),
        (FaultKind.MIGRATE_DIES_LATE, "Lost connection"),
        (FaultKind.FINISH_UNHEARD, "Lost connection"),
        (FaultKind.NOT_SHARED, "to be the same on b"),
        (FaultKind.PEER_SILENT, "an answer from libvirt"),
        (FaultKind.BLOCKED, "keeps QEMU from migrating"),
    ],
)
@pytest.mark.parametrize("scenario", [GOES, RETURNS], ids=str)
def test_a_guest_that_does_not_get_away_runs_on(scenario: Scenario, fault: FaultKind, why: str) -> None:
    with rig(scenario) as host:
        host.host.fault(fault)
        assert host.update() == ""
        told = reports(host)["web1"]
        assert told.outcome is Outcome.ROLLED_BACK
        assert why in told.reason or fault is FaultKind.PEER_SILENT
        assert wrong(host) == []


def test_a_guest_whose_files_one_host_would_take_from_the_other_stays() -> None:
    """Where libvirt does not know that both have them, and changes their owners."""
    with rig(dataclasses.replace(GOES, coherent=True)) as host:
        assert host.update() == ""
        told = reports(host)["web1"]
        assert told.outcome is Outcome.ROLLED_BACK
        assert "dynamic_ownership on" in told.reason
        assert wrong(host) == []
    with rig(dataclasses.replace(GOES, coherent=True)) as host:
        (host.root / "qemu.conf").write_text("dynamic_ownership = 0\n")
        assert host.update() == ""
        assert reports(host)["web1"].outcome is Outcome.UPDATED


def test_a_guest_whose_qemu_would_leave_its_memory_out_stays() -> None:
    with rig(GOES) as host:
        with host.host.world.change() as state:
            for process in state.living(host.uuids["web1"]):
                process.capabilities["x-ignore-shared"] = True
        assert host.update() == ""
        told = reports(host)["web1"]
        assert told.outcome is Outcome.ROLLED_BACK
        assert "expected QEMU to send all of it, found x-ignore-shared on" in told.reason
        assert wrong(host) == []


def test_a_guest_that_writes_too_fast_is_given_up() -> None:
    with rig(GOES) as host:
        host.host.fault(FaultKind.MIGRATE_STALLS, times=-1)
        assert host.update() == ""
        told = reports(host)["web1"]
        assert told.outcome is Outcome.ROLLED_BACK
        assert "expected it to arrive within 2 s" in told.reason
        assert "100 MiB/s cross, and the guest writes 900 MiB/s" in told.reason
        assert wrong(host) == []


def test_a_peer_that_falls_silent_is_not_waited_for_as_long_as_a_large_guest_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only for end_seconds, which is 60, and asked once more before a person is called."""
    monkeypatch.setattr(passage, "limit_seconds", lambda _swap: 3600.0)
    with rig(RETURNS) as host:
        fell_silent: list[int] = []
        assert host.update(silent_on_the_way_back(host, fell_silent, times=-1)) == ""
        told = reports(host)["web1"]
        assert told.outcome is Outcome.NEEDS_OPERATOR
        assert f"virsh -c fake://{PEER}/system domstate" in told.reason
        with host.host.world.look() as state:
            assert state.now_ns - fell_silent[0] < 300_000_000_000
        assert wrong(host) == []
        host.host.no_more_faults()
        assert host.recover() == ""
        assert reports(host)["web1"].outcome is Outcome.UPDATED
        assert wrong(host) == []


def silent_on_the_way_back(host: Rig, fell_silent: list[int], *, times: int) -> Points:
    """From then on the peer leaves so many questions unanswered, and the guest gets nowhere by itself."""

    def act() -> None:
        with host.host.world.look() as state:
            passing, now_ns = state.passing.get(host.uuids["web1"]), state.now_ns
            comes_back = passing is not None and passing.source == PEER
        if comes_back and not fell_silent:
            fell_silent.append(now_ns)
            host.host.fault(FaultKind.MIGRATE_STALLS, times=200)
            host.host.fault(FaultKind.PEER_SILENT, times=times)

    return Points(act, only=(WORLD,))


@pytest.mark.parametrize("times", range(1, 16))
def test_a_peer_that_answers_again_has_the_guest_run_on(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """By itself when it does so before a person was called; then, once somebody has it recovered."""
    monkeypatch.setattr(passage, "limit_seconds", lambda _swap: 3600.0)
    with rig(RETURNS) as host:
        fell_silent: list[int] = []
        assert host.update(silent_on_the_way_back(host, fell_silent, times=times)) == ""
        assert fell_silent
        outcome = reports(host)["web1"].outcome
        assert outcome is Outcome.UPDATED or (outcome is Outcome.NEEDS_OPERATOR and times > 6)
        assert wrong(host) == []
        host.host.no_more_faults()
        assert host.recover() == ""
        assert reports(host)["web1"].outcome is Outcome.UPDATED
        assert wrong(host) == []


@pytest.mark.parametrize("fault", [FaultKind.MIGRATE_UNHEARD, FaultKind.CONT_UNHEARD, FaultKind.CONT_LOST])
def test_what_was_done_unheard_is_seen(fault: FaultKind) -> None:
    with rig(GOES) as host:
        host.host.fault(fault)
        assert host.update() == ""
        assert reports(host)["web1"].outcome is Outcome.UPDATED
        assert wrong(host) == []


@pytest.mark.parametrize(
    "fault",
    [
        *(FaultKind.MIGRATE_REFUSED, FaultKind.MIGRATE_BREAKS, FaultKind.MIGRATE_STALLS, FaultKind.FINISH_UNHEARD),
        *(FaultKind.MIGRATE_UNHEARD, FaultKind.CONT_UNHEARD, FaultKind.CONT_LOST, FaultKind.PEER_SILENT),
        *(FaultKind.MIGRATE_DIES_EARLY, FaultKind.MIGRATE_DIES_LATE, FaultKind.MIGRATE_DIES_AFTER),
        *(FaultKind.CONT_FAILS, FaultKind.CONT_EXITS, FaultKind.NO_AGENT),
    ],
)
@pytest.mark.parametrize("times", [1, -1], ids=["once", "always"])
def test_each_fault_at_each_moment(fault: FaultKind, times: int) -> None:
    fault_at_each_moment(RETURNS, fault, times, wrong)


def test_the_peer_dies_at_each_moment() -> None:
    def trials(share: Share) -> Found:
        for number in range(1, 400):
            if not share.has(number):
                continue
            with rig(RETURNS) as host:

                def dies(host: Rig = host) -> None:
                    with host.host.world.change() as state:
                        peer_dies(host.host.world, state, PEER)

                points = Points(dies, number, (WORLD,))
                raised = host.update(points)
                if len(points.labels) < number:
                    return
                armed = ["the guard waits for it still"] * (host.guard.until is not None)
                yield f"at {number}", [raised] * bool(raised) + armed + wrong(host)
                with host.host.world.change() as state:
                    state.peers[PEER].alive = True
                host.recover()
                yield f"and is back, {number}", wrong(host)

    sweep(trials)


# -- the updater dies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", [GOES, RETURNS, BOTH], ids=str)
def test_killed_for_real_at_every_journal_write(scenario: Scenario) -> None:
    killed_for_real_at_every_journal_write(scenario, wrong)


@pytest.mark.parametrize("fault", [None, FaultKind.FINISH_UNHEARD, FaultKind.PEER_SILENT, FaultKind.CONT_UNHEARD])
@pytest.mark.parametrize("scenario", [GOES, RETURNS], ids=str)
def test_killed_anywhere(scenario: Scenario, fault: FaultKind | None) -> None:
    killed_anywhere(scenario, fault, wrong)


@pytest.mark.parametrize("scenario", [RETURNS], ids=str)
def test_recovery_killed_as_well(scenario: Scenario) -> None:
    recovery_killed_as_well(scenario, wrong, (JOURNAL, WORLD))


@pytest.mark.parametrize("scenario", [GOES, RETURNS], ids=str)
def test_the_host_is_started_anew_at_each_moment(scenario: Scenario) -> None:
    started_anew_at_each_moment(scenario, wrong)
