"""The bench itself: guests boot, prove what they hold, and a pause is measured where it can be."""

import os
import struct
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.bench.cost import wait
from tests.bench.guest_spec import HOST_ADDRESS, Console, GuestSpec, Ram
from tests.bench.host import Host
from tests.bench.peer import Peer
from tests.bench.proof import BOOT_LIMIT, Proof

pytestmark = pytest.mark.skipif("HOSTAGENT_BENCH" not in os.environ, reason="runs inside the bench")

SECOND = 1_000_000_000
PAUSE = 3.0
FINENESS = SECOND // 10
"""How finely a guest's ticks tell what it felt, on a busy machine."""
PAGE_SIZE = 4096
SHAPES = [
    GuestSpec(name="q35", fill_mib=64),
    GuestSpec(name="pc", machine="pc", vcpus=2, ram=Ram.ANONYMOUS, console=Console.PTY, transient=True),
    GuestSpec(name="Büro 'web' \"1\" & <2>.a", ram=Ram.MEMFD, disk=False, nic=False, memory_mib=256),
]


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as host:
        yield host


@pytest.fixture
def peer(host: Host) -> Iterator[Peer]:
    with Peer(HOST_ADDRESS) as peer:
        yield peer


@pytest.mark.parametrize("spec", SHAPES, ids=lambda spec: spec.name)
def test_guest_proves_itself(host: Host, peer: Peer, spec: GuestSpec) -> None:
    with host.guest(spec) as domain:
        proof = Proof(domain)
        booted = proof.wait_booted()
        wait(lambda: proof.report().console_lines > 1, "two lines on its console", BOOT_LIMIT)
        report = proof.check()
        assert report.good
        assert report.boot_id == booted.boot_id
        assert report.ram.pages == spec.fill_mib * 256
        assert report.disk.present is spec.disk
        assert peer.connections(spec.address) == int(spec.nic)
        line = f"tick {report.console_lines - 1}"
        wait(lambda: line in spec.console_log.read_text(), f"{line!r} in its log", BOOT_LIMIT)


def test_bad_page_is_found(host: Host, peer: Peer) -> None:
    """The check is worth nothing if it cannot fail: write into the guest's RAM file behind its back."""
    spec = GuestSpec(fill_mib=32, seed=0xF00D)
    with host.guest(spec) as domain:
        proof = Proof(domain)
        proof.wait_booted()
        (ram,) = host.ram_files(domain)
        with ram.open("r+b") as file:
            file.seek(_start_of_page(file.read(), number=1234, seed=spec.seed) + 100)
            file.write(b"?")
        report = proof.check()
        assert (report.ram.bad, report.ram.first_bad) == (1, 1234)
        assert not report.good


def _start_of_page(ram: bytes, *, number: int, seed: int) -> int:
    header = struct.pack("<QQ", number, seed)
    return next(at for at in range(0, len(ram), PAGE_SIZE) if ram.startswith(header, at))


def test_peer_feels_a_pause_that_the_guest_cannot_see(host: Host, peer: Peer) -> None:
    """Its clock stands still meanwhile, and its ticks are not far apart by that, but by the host's clock they are."""
    spec = GuestSpec()
    with host.guest(spec) as domain:
        proof = Proof(domain)
        proof.wait_booted()
        peer.reset(spec.address)
        began = time.monotonic_ns()
        proof.reset_ticks()
        before = proof.report()
        peer.wait_for_ticks(spec.address)
        idle = peer.felt(spec.address)
        suspends = time.monotonic_ns()
        domain.suspend()
        suspended = time.monotonic_ns()
        time.sleep(PAUSE)
        resumes = time.monotonic_ns()
        domain.resume()
        resumed = time.monotonic_ns()
        peer.wait_for_ticks(spec.address)
        felt, report = peer.felt(spec.address), proof.check()
        lived = time.monotonic_ns() - began - (resumes - suspended)
        assert felt.longest_ns >= PAUSE * SECOND
        assert resumes - suspended - FINENESS <= felt.stood_still_ns <= resumed - suspends + FINENESS
        assert idle.stood_still_ns < PAUSE * SECOND / 2
        assert report.monotonic_ns - before.monotonic_ns <= lived * 1.01
        assert report.ticks.longest_ns <= lived * 1.01
        assert report.tcp.good


def test_guest_survives_libvirtd(host: Host, peer: Peer) -> None:
    spec = GuestSpec()
    with host.guest(spec) as domain:
        booted = Proof(domain).wait_booted()
        host.stop_libvirtd()
        (process,) = host.qemu_processes()
        host.start_libvirtd()
        report = Proof(host.connection.lookupByUUIDString(spec.uuid)).check()
        assert report.good
        assert report.boot_id == booted.boot_id
        assert host.qemu_processes() == [process]


def test_guest_shuts_down_by_its_power_button(host: Host, peer: Peer) -> None:
    spec = GuestSpec(nic=False)
    with host.guest(spec) as domain:
        Proof(domain).wait_booted()
        subprocess.run(["virsh", "shutdown", spec.uuid, "--mode", "acpi"], check=True, capture_output=True)
        wait(lambda: not domain.isActive(), "it to shut down", BOOT_LIMIT)
