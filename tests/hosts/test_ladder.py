"""An update in place that fails, for real, and is undone: the guest goes by the next rung that its owner allows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from hostagent import wiring
from hostagent.policy import Allowed, PolicyPart
from tests.bench.command import HOSTAGENT
from tests.bench.guest_spec import GuestSpec
from tests.bench.lab import Lab
from tests.bench.link import A
from tests.bench.proof import ProofReport
from tests.bench.two_hosts import TwoHosts
from tests.crash.real_world import wait_for
from tests.hosts.guests import BOOT_LIMIT, Standing, Travelling, is_well
from tests.hosts.peers import Putting

SPEC = GuestSpec("climber", 1, 192, fill_mib=16, seed=67)
IN_PLACE = Allowed.IN_PLACE


@pytest.fixture
def climber(hosts: TwoHosts, standing: Standing, put: Putting) -> Iterator[Travelling]:
    put()
    with standing.guest(SPEC) as travelling:
        yield travelling


def allow(lab: Lab, *methods: Allowed) -> None:
    api = wiring.libvirt_of(lab.config)
    api.put_policy(SPEC.uuid, PolicyPart(allow=frozenset(methods)))
    api.disconnect()


def report(climber: Travelling) -> ProofReport:
    with climber.proof(A) as proof:
        return proof.wait_booted(BOOT_LIMIT)


def qemus(climber: Travelling) -> set[int]:
    """Every QEMU here that says it is this guest."""
    found = set()
    for process in climber.hosts.a.qemu_processes():
        with suppress(psutil.NoSuchProcess):
            if SPEC.uuid in process.cmdline():
                found.add(process.pid)
    return found


def update(climber: Travelling, *words: str) -> tuple[int, str]:
    """`hostagent update qemu`, whose new QEMU is killed as soon as it is there; its exit code, and what it said."""
    wanted = [str(HOSTAGENT), "update", "qemu", "--to", "10.0", "--guest", SPEC.name, "--yes", *words]
    (old,) = qemus(climber)
    with subprocess.Popen(wanted, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        wait_for(lambda: qemus(climber) != {old} or running.poll() is not None, "a new QEMU beside the old one")
        for new in qemus(climber) - {old}:
            os.kill(new, signal.SIGKILL)
        said, progress = running.communicate()
    print(progress, said)
    return running.returncode, said


def test_one_that_failed_in_place_migrates(climber: Travelling, lab: Lab) -> None:
    allow(lab, IN_PLACE, Allowed.LIVE_MIGRATE)
    was = report(climber)
    code, said = update(climber, "--json")
    document = json.loads(said)
    assert code == 1
    went = [(one["method"], one["outcome"]) for update in document["updates"] for one in update["guests"]]
    assert went == [("in-place", "rolled-back"), ("live-migrate", "updated")]
    assert (document["stopped"], document["updates"][1]["guests"][0]["runs_on"]) == (None, "")
    is_well(climber, A, emulator=lab.newer.emulator)
    assert report(climber).boot_id == was.boot_id


def test_one_that_failed_in_place_and_may_not_migrate_is_rebooted(climber: Travelling, lab: Lab) -> None:
    allow(lab, IN_PLACE, Allowed.REBOOT)
    was = report(climber)
    code, said = update(climber)
    said = " ".join(said.split())
    assert code == 1
    assert "rolled back" in said
    assert f"By a method that disturbs more than the one planned: {SPEC.name} by reboot, not in-place." in said
    assert report(climber).boot_id != was.boot_id
    is_well(climber, A, emulator=lab.newer.emulator)
