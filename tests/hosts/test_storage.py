"""hostagent has guests migrate with disks that only their host sees: there and back, and whatever disturbs that."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import libvirt

from hostagent import wiring
from hostagent.plan import Method, Reason
from hostagent.planning.planner import plan_qemu
from hostagent.policy import Allowed
from hostagent.update.journal import Outcome
from tests.bench.guest_spec import GUEST_FILES, OWN_FILES, GuestSpec
from tests.bench.lab import Lab
from tests.bench.link import A, B, Side
from tests.bench.proof import ProofReport
from tests.bench.two_hosts import TwoHosts
from tests.crash.real_updater import Order
from tests.crash.real_world import Updater, guards, wait_for
from tests.hosts.guests import Standing, Travelling
from tests.hosts.peers import Putting
from tests.hosts.test_migration import goes, last, leaves, once

SPEC = GuestSpec("traveller", 1, 256, fill_mib=16, seed=57, own_disk=True)
RAW = replace(SPEC, disk_format="raw", disk_fill_mib=40)
SLOW = 100_000_000
"""Bits a second: what is on its disk takes some seconds."""


def is_well(travelling: Travelling, side: Side, was: ProofReport) -> None:
    """It runs there alone, on the disk of that host, which has all that it wrote here and there."""
    travelling.wait_until(lambda: travelling.runs_on() == [side])
    travelling.wait_until(lambda: not travelling.is_known_on(A if side is B else B))
    with travelling.on(side) as domain:
        assert domain.isPersistent()
        assert domain.blockJobInfo("vda") == {}
    with travelling.proof(side) as proof:
        proof.wait_booted()
        written = proof.report().disk.last
        travelling.wait_until(lambda: proof.report().disk.last > written + 3)
        now = proof.check()
    print(now.disk)
    assert now.good
    assert now.boot_id == was.boot_id
    assert now.disk.last > was.disk.last
    assert now.disk.checked >= now.disk.last - 1
    assert not [path for folder in (GUEST_FILES, OWN_FILES) for path in folder.glob("hostagent-*")]


def report_now(travelling: Travelling) -> ProofReport:
    with travelling.proof(A) as proof:
        return proof.report()


def copying(travelling: Travelling) -> Callable[[], bool]:
    """Its disk is being copied, and nothing of its memory yet."""

    def look() -> bool:
        try:
            with travelling.on(A) as domain:
                told = domain.jobStats()
        except libvirt.libvirtError:
            return False
        return int(told.get("disk_processed", 0)) > 4 << 20 and not told.get("memory_total")

    return look


def test_a_file_that_is_there_is_not_written_over(hosts: TwoHosts, standing: Standing, put: Putting) -> None:
    """Neither by a plan that sees it, nor by an update whose plan did not."""
    lab = put(copies=True)
    with standing.guest(SPEC) as travelling:
        was, theirs = report_now(travelling), travelling.disk(B)
        theirs.write_bytes(b"somebody's")
        assert "no file is written over" in blocker(lab)
        report = leaves(lab, disks=(str(SPEC.disk_path),))
        assert report.outcome is Outcome.ROLLED_BACK
        assert "no file is written over" in report.reason
        assert theirs.read_bytes() == b"somebody's"
        theirs.unlink()
        put(copies=False)
        assert f"{SPEC.disk_path} in a directory that is shared with host-b" in blocker(Lab.load())
        is_well(travelling, A, was)


def blocker(lab: Lab) -> str:
    """Why its files keep it here."""
    libvirt_here = wiring.libvirt_of(lab.config)
    host = wiring.with_peers(lab.config, libvirt_here.host())
    libvirt_here.disconnect()
    policies = lab.policies(10.0)
    policies = policies.keeping(replace(policies.asked, allow=frozenset({Allowed.LIVE_MIGRATE})))
    (planned,) = plan_qemu(host, lab.newer, [SPEC.name], policies=policies, methods=[Method.LIVE_MIGRATE]).guests
    (way,) = [way for way in planned.ways if way.method is Method.LIVE_MIGRATE]
    assert [found.reason for found in way.blockers] == [Reason.STORAGE]
    return str(way.blockers[0])


def test_its_disk_goes_there_and_back(hosts: TwoHosts, standing: Standing, put: Putting) -> None:
    lab = put(copies=True)
    with standing.guest(SPEC) as travelling:
        was, inode = report_now(travelling), SPEC.disk_path.stat().st_ino
        heard: list[str] = []
        seen: list[Path] = []

        def tell(_key: str, step: str, doing: str) -> None:
            heard.append(f"{step} {doing}")
            if step == "return" and travelling.disk(B).exists():
                seen.append(travelling.disk(B))

        report = goes(lab, tell=tell)
        print(report.outcome, report.reason)
        assert (report.outcome, report.reason, report.runs_on) == (Outcome.UPDATED, "", "")
        assert (report.qemu_after, report.left_disks) == (str(lab.newer.version), ())
        is_well(travelling, A, was)
        assert SPEC.disk_path.stat().st_ino == inode
        assert seen
        assert not travelling.disk(B).exists()


def test_the_network_is_cut_as_its_disk_is_copied(hosts: TwoHosts, standing: Standing, put: Putting) -> None:
    lab = put(least=8.0, end=2.0, call=2.0, copies=True)
    with standing.guest(RAW) as travelling:
        hosts.link.slow(SLOW)
        was = report_now(travelling)
        with once(copying(travelling), hosts.link.cut):
            report = goes(lab)
        print(report.outcome, report.reason)
        assert travelling.runs_on() == [A]
        assert report.outcome is Outcome.ROLLED_BACK
        hosts.link.mend()
        is_well(travelling, A, was)
        assert not travelling.disk(B).exists() or f"may be left on host-b, which are of no use: {RAW.disk_path}" in (
            report.reason
        )


def test_the_updater_is_killed_as_its_disk_is_copied(hosts: TwoHosts, standing: Standing, put: Putting) -> None:
    """libvirt goes on by itself: its guard breaks that off, and takes the half copy away."""
    lab = put(copies=True)
    with standing.guest(RAW) as travelling:
        hosts.link.slow(SLOW)
        was = report_now(travelling)
        updater = Updater(Order(to=lab.newer.name, guests=(RAW.name,), methods=(Method.LIVE_MIGRATE,)))
        with once(copying(travelling), lambda: os.kill(updater.pid, signal.SIGKILL)):
            assert updater.wait(120.0) == -signal.SIGKILL
            wait_for(lambda: not guards(), "its guard to be done")
        report = last(lab)
        print(report.outcome, report.reason)
        assert report.outcome is Outcome.ROLLED_BACK
        assert "cut off" in report.reason
        assert not travelling.disk(B).exists()
        is_well(travelling, A, was)


def test_its_disk_stays_with_it_and_the_one_here_is_left(hosts: TwoHosts, standing: Standing, put: Putting) -> None:
    lab = put(returns=False, copies=True)
    with standing.guest(RAW) as travelling:
        was = report_now(travelling)
        report = leaves(lab, disks=(str(RAW.disk_path),))
        print(report.outcome, report.reason)
        assert (report.outcome, report.reason, report.runs_on) == (Outcome.UPDATED, "", "host-b")
        assert (report.left_disks, report.left_disks_on) == ((str(RAW.disk_path),), "")
        left = RAW.disk_path.stat()
        is_well(travelling, B, was)
        now, there = RAW.disk_path.stat(), travelling.disk(B).stat()
        assert (now.st_mtime_ns, now.st_size) == (left.st_mtime_ns, left.st_size)
        assert (there.st_uid, there.st_gid, there.st_size) == (now.st_uid, now.st_gid, now.st_size)
