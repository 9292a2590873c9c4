"""Guests that migrate with disks which are copied: nothing of theirs is lost, and only ours is removed or written over.

The fake knows which moment of a guest's writing each file holds. `violations` are: a guest that goes on with a disk
that is past, a file of somebody's that is removed or written over, the last of a guest's disks that is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostagent.hypervisor.fake_storage import DISK_BYTES, OURS
from hostagent.hypervisor.fake_world import FakeFile, FaultKind
from hostagent.update.journal import Outcome
from tests.crash import shapes
from tests.crash.migrating import (
    fault_at_each_moment,
    killed_anywhere,
    killed_for_real_at_every_journal_write,
    recovery_killed_as_well,
    reports,
    started_anew_at_each_moment,
    wrong_of_guests,
)
from tests.crash.rig import JOURNAL, PEER, Points, Rig, Scenario, rig

GOES = Scenario(guests=("web1",), migrated=("web1",), copies_disks=True)
RETURNS = dataclasses.replace(GOES, comes_back=True)
BOTH = Scenario(migrated=("web1", "db1"), copies_disks=True, comes_back=True)
SAID = ("copies of its disks may be left on b", "may have been begun for it")


def on_peer(host: Rig, name: str = "web1") -> FakeFile | None:
    with host.host.world.look() as state:
        return state.files.get(f"{PEER}:{host.own_disks(name)[0]}")


def wrong(host: Rig, *, restarted: bool = False) -> list[str]:
    """Everything that is not as promised, of guests and of their disks."""
    return [*wrong_of_guests(host, restarted=restarted), *_wrong_disks(host)]


def _wrong_disks(host: Rig) -> Iterator[str]:
    for name, told in reports(host).items():
        (own,) = host.own_disks(name)
        copy = on_peer(host, name)
        if told.outcome is Outcome.UPDATED and told.runs_on:
            if (told.left_disks, told.left_disks_on) != ((own,), ""):
                yield f"{name} stays, and nobody is told of its disk here: {told.left_disks} on {told.left_disks_on!r}"
        elif told.outcome is Outcome.UPDATED:
            wanted = ((own,), PEER) if copy else ((), "")
            if (told.left_disks, told.left_disks_on) != wanted:
                yield f"{name} is back, the peer has {copy}, and what is said is {told.left_disks}"
        elif told.outcome in (Outcome.ROLLED_BACK, Outcome.GONE) and copy and not any(s in told.reason for s in SAID):
            yield f"{name} is {told.outcome} ({told.reason}), and the peer has {copy}"
    if not all(Path(path).exists() for name in host.scenario.migrated for path in host.own_disks(name)):
        yield "a disk's file on this host is gone"


# -- what should happen -----------------------------------------------------------------------------------------------


def test_it_stays_with_its_disk_and_its_owner_hears_what_is_left_here() -> None:
    with rig(GOES) as host:
        assert host.update() == ""
        assert wrong(host) == []
        told, copy = reports(host)["web1"], on_peer(host)
        assert (told.outcome, told.runs_on, told.reason) == (Outcome.UPDATED, PEER, "")
        assert (told.left_disks, told.left_disks_on) == (host.own_disks("web1"), "")
        assert copy is not None and (copy.by, copy.format, copy.size) == (OURS, "qcow2", DISK_BYTES)


def test_it_comes_back_with_its_disk_and_nothing_is_left_there() -> None:
    with rig(BOTH) as host:
        assert host.update() == ""
        assert wrong(host) == []
        for name, told in reports(host).items():
            assert (told.outcome, told.runs_on, told.reason, told.left_disks) == (Outcome.UPDATED, "", "", ())
            assert on_peer(host, name) is None


def test_without_being_asked_for_nothing_is_copied() -> None:
    """The order of an update that was begun without it does not copy, whatever the settings say now."""
    with rig(GOES) as host:
        host.own_disks = lambda name: ()  # type: ignore[method-assign]
        assert host.update() == ""
        told = reports(host)["web1"]
        assert told.outcome is Outcome.ROLLED_BACK
        assert "in a directory that is shared with b" in told.reason
        assert wrong_of_guests(host) == []


def test_a_file_of_somebody_s_is_left_alone() -> None:
    for before in (True, False):
        with rig(GOES) as host:
            (path,) = host.own_disks("web1")
            theirs = FakeFile("qcow2", DISK_BYTES, -1)

            def put(host: Rig = host, path: str = path, theirs: FakeFile = theirs) -> None:
                with host.host.world.change() as state:
                    state.files[f"{PEER}:{path}"] = theirs

            points = Points(only=(JOURNAL,))

            def look(points: Points = points, put: object = put) -> None:
                if "after step-done:prepare step-begun:place" in points.labels[-1]:
                    put()  # type: ignore[operator]

            if before:
                put()
            else:
                points.act = look
            assert host.update(points) == ""
            told = reports(host)["web1"]
            assert told.outcome is Outcome.ROLLED_BACK
            assert ("no file is written over" if before else "exists already") in told.reason
            assert on_peer(host) == theirs
            assert host.host.violations() == []


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (FaultKind.NO_PLACE, "expected a place for"),
        (FaultKind.PLACE_FAILS, "No space left on device"),
        (FaultKind.PLACE_UNHEARD, "may have been begun for it: look whose that is"),
        (FaultKind.DISKS_BREAK, "migration of disk vda failed"),
        (FaultKind.MIGRATE_BREAKS, "Connection reset by peer"),
        (FaultKind.MIGRATE_DIES_EARLY, "copies of its disks may be left on b"),
        (FaultKind.FINISH_UNHEARD, "Lost connection"),
    ],
)
def test_a_guest_that_does_not_get_away_runs_on_with_its_own_disk(fault: FaultKind, why: str) -> None:
    with rig(RETURNS) as host:
        host.host.fault(fault)
        assert host.update() == ""
        told = reports(host)["web1"]
        assert told.outcome is Outcome.ROLLED_BACK
        assert why in told.reason
        assert wrong(host) == []


def test_disks_that_take_too_long_are_given_up() -> None:
    with rig(GOES) as host:
        host.host.fault(FaultKind.MIGRATE_STALLS, times=-1)
        assert host.update() == ""
        told = reports(host)["web1"]
        assert told.outcome is Outcome.ROLLED_BACK
        assert "0.06 of 0.06 GiB of its disks left" in told.reason
        assert wrong(host) == []


@pytest.mark.parametrize("later", [False, True], ids=["there", "on the way back"])
def test_a_copy_that_waits_for_a_peer_that_is_gone_is_cut_off(later: bool) -> None:
    """Nothing else would end it for a quarter of an hour."""
    with rig(RETURNS) as host:
        points = Points(only=(JOURNAL,))

        def look() -> None:
            if "before step-done:look step-begun:return" in points.labels[-1]:
                host.host.fault(FaultKind.DISKS_HANG)

        if later:
            points.act = look
        else:
            host.host.fault(FaultKind.DISKS_HANG)
        assert host.update(points) == ""
        told = reports(host)["web1"]
        assert told.outcome is (Outcome.UPDATED if later else Outcome.ROLLED_BACK)
        assert (told.runs_on, "of its disks left" in told.reason) == (PEER if later else None, True)
        assert wrong(host) == []


@pytest.mark.parametrize("how", ["replaced", "written", "used"])
def test_it_does_not_come_back_onto_what_is_not_its_own(how: str) -> None:
    """Somebody has another use for the file that it has left, or has put another one there."""
    with rig(RETURNS) as host:
        path = Path(*host.own_disks("web1"))
        points = Points(only=(JOURNAL,))

        def act() -> None:
            if "step-begun:return" not in points.labels[-1] or "before" not in points.labels[-1]:
                return
            if how == "replaced":
                path.rename(f"{path}.aside")
                path.touch()
            elif how == "written":
                path.write_text("x")
            else:
                plain = shapes.q35()
                xml = plain.live_xml.replace("/var/lib/libvirt/images/guest1.qcow2", str(path))
                host.host.boot(dataclasses.replace(plain, live_xml=xml), "other")

        points.act = act
        assert host.update(points) == ""
        told = reports(host)["web1"]
        assert (told.outcome, told.runs_on) == (Outcome.UPDATED, PEER)
        why = {"replaced": "another file", "written": "somebody has written to", "used": "is used by other"}[how]
        assert why in told.reason
        assert wrong(host) == []


# -- each fault, and each death, at each moment -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        *(FaultKind.DISKS_BREAK, FaultKind.PLACE_UNHEARD, FaultKind.FINISH_UNHEARD),
        *(FaultKind.PEER_SILENT, FaultKind.MIGRATE_DIES_LATE, FaultKind.MIGRATE_DIES_AFTER),
    ],
)
@pytest.mark.parametrize("times", [1, -1], ids=["once", "always"])
def test_each_fault_at_each_moment(fault: FaultKind, times: int) -> None:
    fault_at_each_moment(RETURNS, fault, times, wrong)


def test_killed_for_real_at_every_journal_write() -> None:
    killed_for_real_at_every_journal_write(RETURNS, wrong)


@pytest.mark.parametrize(
    ("scenario", "fault"),
    [(GOES, None), (RETURNS, None), (RETURNS, FaultKind.FINISH_UNHEARD), (RETURNS, FaultKind.PEER_SILENT)],
    ids=str,
)
def test_killed_anywhere(scenario: Scenario, fault: FaultKind | None) -> None:
    killed_anywhere(scenario, fault, wrong)


def test_recovery_killed_as_well() -> None:
    recovery_killed_as_well(RETURNS, wrong, (JOURNAL,))


@pytest.mark.parametrize("scenario", [GOES, RETURNS], ids=str)
def test_the_host_is_started_anew_at_each_moment(scenario: Scenario) -> None:
    started_anew_at_each_moment(scenario, wrong)
