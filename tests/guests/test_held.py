"""A guest is saved without its RAM, nothing of it runs, and it comes back on another QEMU with the RAM that stayed.

The parts of the technique "hold" with a real libvirt: the save image, sealed and given another emulator, the hook that
puts the RAM back, and what it refuses meanwhile. 7.2 -> 10.0 -> 7.2.
"""

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import libvirt
import libvirt_qemu
import pytest

from hostagent.facts import QemuTree
from hostagent.hypervisor.domain_xml import live_differences
from hostagent.libvirt_files.held_definition import NAMESPACE, held_definition
from hostagent.libvirt_files.runtime_record import RuntimeRecord
from hostagent.libvirt_files.state_image import StateImage
from hostagent.update.files import pin_folder
from hostagent.update.held import Held, HeldRam, release, tell_hook
from tests.bench.guest_spec import GuestSpec
from tests.bench.host import Host
from tests.bench.lab import Lab
from tests.bench.paths import PROJECT
from tests.bench.peer import Peer
from tests.bench.proof import ProofReport
from tests.guests.plugged import plug_memory
from tests.guests.watched import Look, Watched, is_of

HOOK = Path("/etc/libvirt/hooks/qemu.d/hostagent")
HELD = Path("/run/hostagent/held")
GUESTS = (
    GuestSpec("held", 1, 512, vcpus=2, numa_nodes=2, memory_slots=1, fill_mib=300, seed=31),
    GuestSpec("held & on pc", 2, 256, "pc", fill_mib=100, seed=32),
)
ON_OFF = '{"execute": "migrate-set-capabilities", "arguments": {"capabilities": [{"capability": "%s", "state": true}]}}'
TOKEN_BYTES = 16


@dataclass(frozen=True)
class Hold:
    """One guest, held once."""

    spec: GuestSpec
    to: QemuTree
    before: Look
    after: Look
    checked: ProofReport
    image_bytes: int
    alive_meanwhile: tuple[int, ...]
    refused: str


@pytest.fixture(scope="module")
def hook(host: Host) -> Iterator[None]:
    """libvirt looks for hooks as its daemon starts."""
    HOOK.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(PROJECT / "dist" / "libvirt-hook-qemu", HOOK)
    again(host)
    try:
        yield
    finally:
        shutil.rmtree(HOOK.parent)
        shutil.rmtree(HELD, ignore_errors=True)
        again(host)


def again(host: Host) -> None:
    host.disconnect()
    host.stop_libvirtd()
    host.start_libvirtd()


@pytest.fixture(scope="module")
def holds(
    hook: None, host: Host, peer: Peer, lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Hold]]:
    guests = [Watched(host, peer, spec) for spec in GUESTS]
    states = tmp_path_factory.mktemp("states")
    with host.guest(GUESTS[0]), host.guest(GUESTS[1]):
        for guest in guests:
            guest.proof.wait_booted(120)
            if guest.spec.memory_slots:
                plug_memory(guest, 128, node=0)
                guest.proof.fill(guest.spec.fill_mib, guest.spec.seed)
        done = [hold(guest, to, states, lab) for to in (lab.newer, lab.system) for guest in guests]
        for each in done:
            print(f"{each.spec.name:14} to {each.to.version}: felt {each.after.felt.stood_still_ns / 1e6:.0f} ms")
        yield done


def hold(guest: Watched, to: QemuTree, states: Path, lab: Lab) -> Hold:
    guest.forget_gaps()
    before, domain = guest.look(), guest.domain
    record = RuntimeRecord.parse((lab.config.paths.libvirt_run / f"{guest.spec.name}.xml").read_bytes())
    pins, token, plain, sealed = pin(guest), secrets.token_hex(TOKEN_BYTES), states / "plain", states / "sealed"
    domain.suspend()
    libvirt_qemu.qemuMonitorCommand(domain, ON_OFF % "x-ignore-shared", 0)
    domain.save(str(plain))
    alive = guest.qemus()
    image = StateImage.parse(StateImage.parse(plain.read_bytes()).sealed())
    sealed.write_bytes(image.with_xml(held_definition(image.xml, token=token, emulator=to.emulator)))
    owner = pins[0][0].stat()
    tell_hook(
        Held(
            guest=guest.spec.name,
            update="u1",
            token=token,
            folder=str(Path(record.memory_backing_dir or pins[0][1].parent).parent),
            short_name=record.ram_folder.partition("-")[2],
            uid=owner.st_uid,
            gid=owner.st_gid,
            ram=tuple(HeldRam(path.name, str(link)) for link, path in pins),
        ),
        HELD,
    )
    refused = start_refused(guest)
    guest.host.connection.restoreFlags(str(sealed), None, libvirt.VIR_DOMAIN_SAVE_PAUSED)
    release(guest.spec.name, HELD)
    domain = guest.domain
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, None, NAMESPACE, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    domain.resume()
    for link, _ in pins:
        link.unlink()
    after = settled(guest)
    return Hold(guest.spec, to, before, after, guest.proof.check(), sealed.stat().st_size, alive, refused)


def pin(guest: Watched) -> list[tuple[Path, Path]]:
    """Links of ours to its RAM files, which libvirt removes as it is saved."""
    made = []
    for path in sorted(guest.host.ram_files(guest.domain)):
        link = pin_folder(path) / f"{secrets.token_hex(4)}"
        link.parent.mkdir(mode=0o700, exist_ok=True)
        os.link(path, link)
        made.append((link, path))
    return made


def start_refused(guest: Watched) -> str:
    """What somebody is told who starts it while it is held."""
    with pytest.raises(libvirt.libvirtError) as refused:
        guest.domain.create()
    return str(refused.value)


def settled(guest: Watched) -> Look:
    """Once it has ticked again."""
    time.sleep(1.5)
    return guest.look()


@pytest.fixture(params=range(4), ids=[f"{way}-{spec.name}" for way in ("up", "back") for spec in GUESTS])
def held(holds: list[Hold], request: pytest.FixtureRequest) -> Hold:
    return holds[request.param]


def test_nothing_of_it_ran_meanwhile(held: Hold) -> None:
    assert held.alive_meanwhile == ()
    assert held.image_bytes < 2 << 20


def test_nothing_of_it_was_lost(held: Hold) -> None:
    assert held.checked.ram.pages == held.spec.fill_mib * 256
    assert held.checked.good
    assert held.before.report is not None
    assert held.checked.boot_id == held.before.report.boot_id
    assert held.after.ram == held.before.ram
    assert is_of(held.after.exe, held.to.emulator)


OF_A_NEW_START = {
    "domain@id",
    "domain/devices/interface[net0]/target@dev",
    "domain/devices/channel[channel0]/source@path",
    "domain/metadata",  # which libvirt leaves empty where our mark was
}


def test_libvirt_sees_it_as_it_was(held: Hold) -> None:
    told = live_differences(held.before.live_xml, held.after.live_xml)
    assert {line.partition(": ")[0] for line in told} <= OF_A_NEW_START
    assert held.after.persistent_xml == held.before.persistent_xml


def test_another_start_was_refused_with_what_to_do(held: Hold) -> None:
    assert "it is held by hostagent (update u1)" in held.refused
    assert "hostagent recover" in held.refused
