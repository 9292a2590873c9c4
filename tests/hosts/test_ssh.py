"""Migration by SSH: the memory goes inside the connection of the two libvirts, and each host's key is checked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostagent.peer_settings import Transport
from hostagent.plan import Method
from hostagent.update.journal import Outcome
from hostagent.update.report import GuestReport, report_of
from tests.bench import ssh
from tests.bench.command import hostagent
from tests.bench.lab import Lab
from tests.bench.link import A, B, Traffic
from tests.bench.peer import Peer
from tests.bench.two_hosts import TwoHosts
from tests.hosts.guests import TRAVELLER, Standing, Travelling, is_well
from tests.hosts.peers import Putting

UPDATE = ("update", "qemu", "--to", "10.0", "--guest", TRAVELLER.name, "--method", "live-migrate", "--yes")


@pytest.fixture
def travelling(hosts: TwoHosts, standing: Standing) -> Iterator[Travelling]:
    with standing.guest(TRAVELLER) as travelling:
        yield travelling


@pytest.fixture
def another(hosts: TwoHosts, tmp_path: Path) -> Iterator[Path]:
    """A key that neither host has; afterwards both know each other again."""
    made, roots = tmp_path / "key", {A: Path("/"), B: hosts.b.root}
    was = {root: (root / ssh.KNOWN_HOSTS.relative_to("/")).read_text() for root in roots.values()}
    ssh.make_key(made)
    yield made
    for root, text in was.items():
        (root / ssh.KNOWN_HOSTS.relative_to("/")).write_text(text)


def goes(lab: Lab) -> GuestReport:
    (report,) = report_of(lab.update(lab.newer, [TRAVELLER.name], methods=[Method.LIVE_MIGRATE])).guests
    print(report.outcome, report.reason)
    return report


@pytest.mark.parametrize("key", ["another than the one in known_hosts", "not in known_hosts"])
def test_a_host_that_is_not_known_by_its_key_is_refused(
    travelling: Travelling, put: Putting, another: Path, key: str
) -> None:
    put(Transport.SSH)
    ssh.know({B.name: another} if "another" in key else {})
    run = hostagent(*UPDATE)
    print(run.stdout, run.stderr)
    said = " ".join(run.stdout.split())
    assert run.returncode == 3
    assert f"expected {B.name} to answer, found that ssh refuses it: its host key is {key}" in said
    assert travelling.runs_on() == [A]


def test_a_home_that_is_not_known_by_its_key_leaves_the_guest_on_the_peer(
    hosts: TwoHosts, travelling: Travelling, put: Putting, another: Path
) -> None:
    lab = put(Transport.SSH)
    ssh.know({A.name: another}, root=hosts.b.root)
    report = goes(lab)
    assert (report.outcome, report.runs_on) == (Outcome.UPDATED, B.name)
    assert f"it runs on {B.name}, and stays there" in report.reason
    assert "ssh refuses it" in report.reason
    is_well(travelling, B, emulator=lab.system.emulator)


def test_it_goes_there_and_back_inside_ssh_alone(
    hosts: TwoHosts, peer: Peer, travelling: Travelling, put: Putting
) -> None:
    """Whatever would go by any other port is lost."""
    lab = put(Transport.SSH)
    with travelling.proof(A) as proof:
        was = proof.report()
    connected = peer.connections(TRAVELLER.address)
    hosts.link.cut(Traffic.MIGRATION)
    hosts.link.cut(Traffic.LIBVIRT)
    report = goes(lab)
    assert (report.outcome, report.reason, report.runs_on) == (Outcome.UPDATED, "", "")
    assert report.qemu_after == str(lab.newer.version)
    time.sleep(1.0)
    is_well(travelling, A, emulator=lab.newer.emulator)
    with travelling.proof(A) as proof:
        assert proof.report().boot_id == was.boot_id
    assert peer.connections(TRAVELLER.address) == connected
