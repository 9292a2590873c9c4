"""A guest that was changed while it ran goes to QEMU 10.0 as it is, is changed again, and goes back as it is then.

Plugged in: a disk, a network card, a vCPU; its image has a snapshot on top; its balloon is filled; it has an I/O limit,
a link that is down, and a balloon that is asked for statistics; its console is a pseudo terminal, its screen a VNC
display with a password; its CD-ROM drive has another medium than it booted with. Then the snapshot is committed, the
drive is emptied, and what was plugged in is plugged out.
"""

import json
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import libvirt
import libvirt_qemu
import pytest

from hostagent.update.journal import GuestRecord, Outcome
from tests.bench import vnc
from tests.bench.guest_spec import BRIDGE, GUEST_FILES, SCREEN_PASSWORD, Console, GuestSpec
from tests.bench.host import Host
from tests.bench.lab import Lab
from tests.bench.peer import Peer
from tests.bench.proof import NotReadyError, ProofReport
from tests.guests.plugged import SECONDS, inside, wait_for
from tests.guests.watched import Look, Watched

GUEST = GuestSpec(
    "changed", 1, vcpus_later=1, pci_ports=10, fill_mib=64, console=Console.PTY, on_reboot="destroy", screen="virtio"
)
PLUGGED = GUEST_FILES / "guest-plugged.qcow2"
SNAPSHOT = GUEST_FILES / "guest-snapshot.qcow2"
OTHER_MEDIUM = GUEST_FILES / "guest-medium.iso"
MAC = "52:54:00:77:01:01"
MEMORY_KIB, LIMIT = 400 * 1024, 1500
ENDS_WITHIN = 300.0
"""Seconds from asking it to reboot; most of the time it takes one."""


@dataclass(frozen=True)
class Way:
    """One of the two updates."""

    record: GuestRecord
    before: Look
    after: Look
    limits: dict[str, int]
    polling: int
    plugged: str
    carrier: str
    vcpus: str
    let_in: bool  # to its display, with the password
    kept_out: bool  # without
    same_screen: bool
    console: str
    checked: ProofReport


@pytest.fixture(scope="module")
def ways(host: Host, peer: Peer, lab: Lab) -> Iterator[dict[str, Way]]:
    guest = Watched(host, peer, GUEST)
    with host.guest(GUEST):
        try:
            guest.proof.wait_booted()
            change(guest)
            up = go(guest, lab, lambda: lab.newer.name)
            change_back(guest)
            yield {"up": up, "back": go(guest, lab, lambda: lab.system.name)}
        finally:
            PLUGGED.unlink(missing_ok=True)
            SNAPSHOT.unlink(missing_ok=True)
            OTHER_MEDIUM.unlink(missing_ok=True)


def go(guest: Watched, lab: Lab, to: Callable[[], str]) -> Way:
    tree = next(tree for tree in (lab.newer, lab.system) if tree.name == to())
    before = guest.look()
    record = lab.update(tree).guests[GUEST.uuid]
    assert record.outcome is Outcome.UPDATED, record.reason
    after = guest.look()
    plugged = str(PLUGGED) in after.live_xml
    address, port = screen(after.live_xml)
    return Way(
        record=record,
        before=before,
        after=after,
        limits=guest.domain.blockIoTune("vda"),
        polling=polling(guest),
        plugged=inside(guest, "cat /dev/vdb | head -c 5") if plugged else "",
        vcpus=inside(guest, "cat /sys/devices/system/cpu/online"),
        carrier=inside(guest, "cat /sys/class/net/eth1/carrier") if plugged else "",
        let_in=vnc.let_in(address, port, SCREEN_PASSWORD),
        kept_out=not vnc.let_in(address, port, "another"),
        same_screen=screen(before.live_xml) == (address, port),
        console=read_console(after.live_xml),
        checked=guest.proof.check(),
    )


def change(guest: Watched) -> None:
    domain = guest.domain
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", PLUGGED, "64M"], check=True)
    domain.attachDeviceFlags(_disk(), libvirt.VIR_DOMAIN_AFFECT_LIVE)
    domain.attachDeviceFlags(_nic(link="up"), libvirt.VIR_DOMAIN_AFFECT_LIVE)
    wait_for(guest, "test -b /dev/vdb && test -e /sys/class/net/eth1")
    inside(guest, "printf hello > /dev/vdb; sync; ip link set eth1 up")
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    domain.snapshotCreateXML(_snapshot(), flags)
    domain.setVcpusFlags(2, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    wait_for(guest, "test -e /sys/devices/system/cpu/cpu1/online")
    inside(guest, "echo 1 > /sys/devices/system/cpu/cpu1/online")
    OTHER_MEDIUM.write_bytes(b"medium 2".ljust(1 << 20, b"."))
    domain.updateDeviceFlags(_medium(OTHER_MEDIUM), libvirt.VIR_DOMAIN_AFFECT_LIVE)
    domain.setMemory(MEMORY_KIB)
    deadline = time.monotonic() + SECONDS
    while domain.memoryStats()["actual"] != MEMORY_KIB:
        assert time.monotonic() < deadline, "expected the balloon to be filled"
        time.sleep(0.1)
    domain.setBlockIoTune("vda", {"total_iops_sec": LIMIT}, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    domain.setMemoryStatsPeriod(7, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    domain.updateDeviceFlags(_nic(link="down"), libvirt.VIR_DOMAIN_AFFECT_LIVE)


def change_back(guest: Watched) -> None:
    domain = guest.domain
    domain.blockCommit("vda", None, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    deadline = time.monotonic() + SECONDS
    while (job := domain.blockJobInfo("vda")) and job["cur"] != job["end"]:
        assert time.monotonic() < deadline, "expected the snapshot to be committed"
        time.sleep(0.1)
    domain.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
    domain.updateDeviceFlags(_medium(None), libvirt.VIR_DOMAIN_AFFECT_LIVE)
    domain.updateDeviceFlags(_nic(link="up"), libvirt.VIR_DOMAIN_AFFECT_LIVE)
    wait_for(guest, "test $(cat /sys/class/net/eth1/carrier) = 1")
    domain.detachDeviceFlags(_disk(), libvirt.VIR_DOMAIN_AFFECT_LIVE)
    domain.detachDeviceFlags(_nic(link="up"), libvirt.VIR_DOMAIN_AFFECT_LIVE)
    wait_for(guest, "! test -b /dev/vdb && ! test -e /sys/class/net/eth1")
    while "vdb" in domain.XMLDesc() or MAC in domain.XMLDesc():
        assert time.monotonic() < deadline + SECONDS, "expected libvirt to hear of it"
        time.sleep(0.1)


def polling(guest: Watched) -> int:
    """What QEMU itself says, as libvirt remembers it whatever QEMU does."""
    arguments = {"path": "/machine/peripheral/balloon0", "property": "guest-stats-polling-interval"}
    words = json.dumps({"execute": "qom-get", "arguments": arguments})
    return int(json.loads(libvirt_qemu.qemuMonitorCommand(guest.domain, words, 0))["return"])


def screen(live_xml: str) -> tuple[str, int]:
    """Where libvirt says that its display is."""
    graphics = ElementTree.fromstring(live_xml).find("devices/graphics")
    assert graphics is not None
    return graphics.get("listen", ""), int(graphics.get("port", "0"))


def read_console(live_xml: str) -> str:
    """A line of what the guest says on its pseudo terminal, by the name that libvirt shows."""
    source = ElementTree.fromstring(live_xml).find("devices/serial/source")
    assert source is not None
    terminal = os.open(source.get("path", ""), os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        said = b""
        deadline = time.monotonic() + SECONDS
        while said.count(b"\n") < 2 and time.monotonic() < deadline:
            if select.select([terminal], [], [], 1.0)[0]:
                said += os.read(terminal, 4096)
        return said.decode(errors="replace")
    finally:
        os.close(terminal)


def _disk() -> str:
    disk = Element("disk", type="file", device="disk")
    SubElement(disk, "driver", name="qemu", type="qcow2")
    SubElement(disk, "source", file=str(PLUGGED))
    SubElement(disk, "target", dev="vdb", bus="virtio")
    return ElementTree.tostring(disk, encoding="unicode")


def _medium(path: Path | None) -> str:
    drive = Element("disk", type="file", device="cdrom")
    SubElement(drive, "driver", name="qemu", type="raw")
    if path is not None:
        SubElement(drive, "source", file=str(path))
    SubElement(drive, "target", dev="sda", bus="sata")
    SubElement(drive, "readonly")
    return ElementTree.tostring(drive, encoding="unicode")


def _nic(*, link: str) -> str:
    nic = Element("interface", type="bridge")
    SubElement(nic, "mac", address=MAC)
    SubElement(nic, "source", bridge=BRIDGE)
    SubElement(nic, "model", type="virtio")
    SubElement(nic, "link", state=link)
    return ElementTree.tostring(nic, encoding="unicode")


def _snapshot() -> str:
    snapshot = Element("domainsnapshot")
    disks = SubElement(snapshot, "disks")
    disk = SubElement(disks, "disk", name="vda", snapshot="external")
    SubElement(disk, "source", file=str(SNAPSHOT))
    SubElement(disks, "disk", name="vdb", snapshot="no")
    return ElementTree.tostring(snapshot, encoding="unicode")


@pytest.fixture(params=["up", "back"])
def way(ways: dict[str, Way], request: pytest.FixtureRequest) -> Way:
    return ways[request.param]


def test_nothing_of_it_was_lost(way: Way) -> None:
    assert way.checked.good
    assert way.before.report is not None
    assert way.checked.boot_id == way.before.report.boot_id
    assert way.after.ram == way.before.ram


def test_libvirt_sees_it_as_it_was(way: Way) -> None:
    assert way.record.measured["xml_differences"] == []


def test_what_was_plugged_in_is_there(ways: dict[str, Way]) -> None:
    assert ways["up"].plugged == "hello"
    assert ways["up"].carrier == "0"  # its link is down still
    assert str(PLUGGED) in ways["up"].after.live_xml
    assert str(PLUGGED) not in ways["back"].after.live_xml


def test_its_disk_is_what_the_snapshot_has_made_of_it(ways: dict[str, Way]) -> None:
    assert str(SNAPSHOT) in ways["up"].after.live_xml
    assert str(SNAPSHOT) not in ways["back"].after.live_xml


def test_its_second_vcpu_runs(way: Way) -> None:
    assert way.vcpus == "0-1"


def test_its_drive_has_the_medium_that_was_put_in(ways: dict[str, Way]) -> None:
    assert str(OTHER_MEDIUM) in ways["up"].after.live_xml
    assert ".iso" not in ways["back"].after.live_xml


def test_its_screen_is_where_it_was_and_asks_for_its_password(way: Way) -> None:
    assert way.same_screen
    assert (way.let_in, way.kept_out) == (True, True)


def test_limits_and_polling_are_set_again(way: Way) -> None:
    assert way.limits["total_iops_sec"] == LIMIT
    assert way.polling == 7


def test_the_balloon_has_what_it_had(way: Way) -> None:
    memory = ElementTree.fromstring(way.after.live_xml).findtext("currentMemory")
    assert memory == str(MEMORY_KIB)


def test_its_terminal_is_where_libvirt_says(way: Way) -> None:
    assert "tick " in way.console


def test_it_ends_when_it_reboots_as_its_owner_wants(ways: dict[str, Way], host: Host, peer: Peer) -> None:
    """QEMU is told so by libvirt once, at the start; what its SHUTDOWN event says is what libvirt acts on."""
    guest = Watched(host, peer, GUEST)
    domain, booted = guest.domain, guest.proof.report().boot_id
    said = "nothing"
    with suppress(libvirt.libvirtError):  # it may be gone before it answers
        said = inside(guest, "(sleep 0.2; reboot -f) > /dev/null 2>&1 & echo asked")
    deadline = time.monotonic() + ENDS_WITHIN
    while domain.state()[0] != libvirt.VIR_DOMAIN_SHUTOFF:
        assert time.monotonic() < deadline, f"expected it to end: {_standing(guest, booted)}, it said {said!r}"
        time.sleep(0.1)


def _standing(guest: Watched, booted: str) -> str:
    """Whether it booted anew, hangs, or runs on as if it had not been asked."""
    try:
        agent = "booted anew" if guest.proof.report().boot_id != booted else "not rebooted"
    except (libvirt.libvirtError, NotReadyError) as error:
        agent = f"no answer from its agent ({error})"
    status = json.loads(libvirt_qemu.qemuMonitorCommand(guest.domain, '{"execute": "query-status"}', 0))["return"]
    end = GUEST.console_log.read_text(errors="replace")[-300:]
    return f"{agent}; libvirt: {guest.domain.state()}; QEMU: {status}; console: {end!r}"


def test_nothing_is_left(ways: dict[str, Way]) -> None:
    assert not list(Path("/run/libvirt/qemu").glob("*hostagent*"))
