"""The bench's bridge with a peer on it, and one host of the lab, with guests, for all tests."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from hostagent.trees import qemu_trees
from tests.bench.guest_spec import BRIDGE, HOST_ADDRESS
from tests.bench.host import make_bridge
from tests.bench.paths import DEBS
from tests.bench.peer import Peer
from tests.lab.machine import IMAGE, Machine
from tests.lab.nested import NestedHost
from tests.lab.trip import GUESTS, Trips


@pytest.fixture(scope="package")
def peer() -> Iterator[Peer]:
    """Outside the hosts: it hears the guests also while a host's kernel changes."""
    if "HOSTAGENT_BENCH" not in os.environ:
        pytest.skip("runs inside the bench")
    if not IMAGE.exists():
        pytest.fail(f"expected {IMAGE} (hint: make lab)")
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    make_bridge()
    with Peer(HOST_ADDRESS) as peer:
        yield peer
    subprocess.run(["ip", "link", "delete", BRIDGE], check=True)


@pytest.fixture(scope="package")
def new_host(peer: Peer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NestedHost]:
    """As its image has it, with hostagent as it is now."""
    folder = Path(tmp_path_factory.mktemp("lab"))
    newer = qemu_trees.add(sorted(DEBS.glob("*.deb")), state=Path("/var/lib/lab"))  # its SVM was tried the longest
    with Machine("a", 1, folder, newer.emulator) as machine:
        host = NestedHost(machine)
        host.install_hostagent()
        yield host
        host.disconnect()


@pytest.fixture(scope="package")
def host(new_host: NestedHost) -> NestedHost:
    """Prepared for everything that hostagent swaps, and booted once since; its GRUB starts the older of its kernels."""
    machine = new_host.machine
    new_host.hostagent("setup", "--kernel-swaps", "--reserve", "2G", "--yes")
    machine.reboot()
    return new_host


@pytest.fixture(scope="package")
def plain_host(new_host: NestedHost) -> NestedHost:
    """Prepared for updates that keep its kernel."""
    new_host.hostagent("setup", "--yes")
    new_host.machine.run("systemctl", "restart", "libvirtd")
    return new_host


@pytest.fixture(scope="package")
def trips(host: NestedHost, peer: Peer) -> Iterator[Trips]:
    """Three guests with filled RAM that work; at the end a table of what they went through."""
    for spec in GUESTS:
        host.boot(spec)
    for spec in GUESTS:
        host.proof(spec).wait_booted(300.0)
    trips = Trips(host, peer)
    yield trips
    trips.show()
