"""What libvirt believes of a guest after a handover is true, and all it could do with the guest before it can do still.

One guest goes up and back. Every test leaves it running as it found it, so that the way back is also the handover after
hotplug, save and restore, a reboot and a restart of libvirtd.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import libvirt
import libvirt_qemu
import pytest

from hostagent.hypervisor.domain_xml import live_differences
from tests.bench.guest_spec import BRIDGE, GUEST_FILES, GuestSpec
from tests.bench.host import RAM, Host
from tests.bench.lab import Lab
from tests.bench.peer import Peer
from tests.bench.proof import NotReadyError
from tests.guests.watched import Look, Watched, is_of

LIMIT_SECONDS = 300
"""For what a guest does when it is asked to."""
EXTRA_DISK = GUEST_FILES / "extra.raw"
EXTRA_MAC = "52:54:00:77:01:01"
SPEC = GuestSpec("libvirt's 'own' view.ü", fill_mib=128, pci_ports=10)
DEFINITIONS = Path("/etc/libvirt/qemu")


@dataclass(frozen=True)
class Passage:
    """The guest before and after a handover."""

    guest: Watched
    before: Look
    after: Look
    stats_before: dict[str, object]
    files_before: dict[Path, bytes]


@pytest.fixture(scope="module")
def guest(host: Host, peer: Peer) -> Iterator[Watched]:
    guest = Watched(host, peer, SPEC)
    with host.guest(SPEC) as domain:
        domain.setAutostart(True)
        guest.proof.wait_booted()
        yield guest


@pytest.fixture(scope="module", params=["up", "back"])
def passage(guest: Watched, lab: Lab, request: pytest.FixtureRequest) -> Passage:
    before, stats, files = guest.look(), statistics(guest), definition_files()
    lab.update(lab.newer if request.param == "up" else lab.system)
    return Passage(guest, before, guest.look(), stats, files)


def statistics(guest: Watched) -> dict[str, object]:
    ((_, found),) = guest.host.connection.domainListGetStats([guest.domain])
    return found


def definition_files() -> dict[Path, bytes]:
    """What is kept on the disk of every definition, autostart links with it."""
    return {path: path.read_bytes() for path in DEFINITIONS.rglob("*") if path.is_file()}


def wait_until(what: Callable[[], bool], meaning: str) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not what():
        assert time.monotonic() < deadline, f"expected {meaning} within {LIMIT_SECONDS} s"
        time.sleep(0.1)


# -- what libvirt shows --------------------------------------------------------------------------------------


def test_live_definition_is_the_same(passage: Passage) -> None:
    assert live_differences(passage.before.live_xml, passage.after.live_xml) == ()


def test_kept_definition_and_autostart_are_the_same_bytes(passage: Passage) -> None:
    assert definition_files() == passage.files_before
    assert DEFINITIONS / "autostart" / f"{SPEC.name}.xml" in passage.files_before
    assert passage.after.persistent_xml == passage.before.persistent_xml


def test_statistics_have_the_same_names(passage: Passage) -> None:
    assert statistics(passage.guest).keys() == passage.stats_before.keys()


def test_statistics_are_of_the_guest(passage: Passage) -> None:
    found = statistics(passage.guest)
    assert found["state.state"] == libvirt.VIR_DOMAIN_RUNNING
    assert (found["vcpu.current"], found["vcpu.maximum"], found["vcpu.0.state"]) == (1, 1, libvirt.VIR_VCPU_RUNNING)
    assert found["balloon.current"] == found["balloon.maximum"] == SPEC.memory_mib << 10
    assert (found["block.0.name"], found["block.0.path"]) == ("vda", str(SPEC.disk_path))
    assert found["net.0.name"] in passage.after.live_xml


def test_statistics_count_on(passage: Passage) -> None:
    earlier = statistics(passage.guest)
    for name in ("cpu.time", "vcpu.0.time", "block.0.wr.reqs", "block.0.fl.reqs", "net.0.rx.pkts", "net.0.tx.pkts"):
        wait_until(lambda name=name: statistics(passage.guest)[name] > earlier[name], f"{name} to count on")


def test_vcpu_is_the_thread_that_runs_it(passage: Passage) -> None:
    """libvirt reads the time of the thread that its record names."""
    (thread,) = [
        task
        for task in Path(f"/proc/{passage.guest.pid}/task").iterdir()
        if (task / "comm").read_text().startswith("CPU 0/")
    ]
    before = run_ns(thread)
    ((number, state, nanoseconds, _),), _ = passage.guest.domain.vcpus()
    assert (number, state) == (0, libvirt.VIR_VCPU_RUNNING)
    assert before - 1e9 < nanoseconds < run_ns(thread) + 1e9


def run_ns(thread: Path) -> int:
    return int((thread / "schedstat").read_text().split()[0])


# -- what libvirt can do -------------------------------------------------------------------------------------


def test_monitor_answers(passage: Passage) -> None:
    answer = libvirt_qemu.qemuMonitorCommand(
        passage.guest.domain, "info version", libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
    )
    assert answer.startswith("10.0." if "hostagent" in passage.after.exe else "7.2.")


def test_agent_answers(passage: Passage) -> None:
    assert passage.guest.proof.run_in_guest("/bin/uname") == "Linux\n"


def test_guest_is_paused_and_goes_on(passage: Passage) -> None:
    passage.guest.domain.suspend()
    assert passage.guest.is_paused
    passage.guest.domain.resume()
    assert not passage.guest.is_paused
    assert passage.guest.proof.check().good


def test_disk_is_plugged_in_and_out(passage: Passage) -> None:
    EXTRA_DISK.write_bytes(bytes(8 << 20))
    xml = f"<disk type='file'><source file='{EXTRA_DISK}'/><target dev='vdb' bus='virtio'/></disk>"
    passage.guest.domain.attachDevice(xml)
    wait_until(lambda: "vdb" in listed(passage.guest, "/sys/block"), "the guest to see the disk")
    size = passage.guest.proof.run_in_guest("/bin/cat", "/sys/block/vdb/size")
    assert int(size) * 512 == 8 << 20
    unplug(passage.guest, xml, sign="vdb")
    wait_until(lambda: "vdb" not in listed(passage.guest, "/sys/block"), "the guest to see it gone")


def test_network_card_is_plugged_in_and_out(passage: Passage) -> None:
    xml = (
        f"<interface type='bridge'><mac address='{EXTRA_MAC}'/><source bridge='{BRIDGE}'/>"
        "<model type='virtio'/></interface>"
    )
    passage.guest.domain.attachDevice(xml)
    wait_until(lambda: "eth1" in listed(passage.guest, "/sys/class/net"), "the guest to see the card")
    assert passage.guest.proof.run_in_guest("/bin/cat", "/sys/class/net/eth1/address").strip() == EXTRA_MAC
    unplug(passage.guest, xml, sign=EXTRA_MAC)
    wait_until(lambda: "eth1" not in listed(passage.guest, "/sys/class/net"), "the guest to see it gone")


def listed(guest: Watched, folder: str) -> list[str]:
    return guest.proof.run_in_guest("/bin/ls", folder).split()


def unplug(guest: Watched, xml: str, *, sign: str) -> None:
    guest.domain.detachDevice(xml)
    wait_until(lambda: sign not in guest.domain.XMLDesc(), f"{sign} to leave libvirt's definition")


def test_guest_is_saved_and_restored(passage: Passage) -> None:
    """Ordinarily, with its RAM copied: nothing that was set for the handover may be in the way."""
    guest, image = passage.guest, GUEST_FILES / "saved"
    before = guest.proof.check()
    guest.domain.save(str(image))
    assert guest.qemus() == ()
    assert image.stat().st_size > SPEC.fill_mib << 20
    guest.host.connection.restore(str(image))
    image.unlink()
    after = guest.proof.check()
    assert after.good
    assert after.boot_id == before.boot_id
    assert is_same_emulator(guest, passage)


def is_same_emulator(guest: Watched, passage: Passage) -> bool:
    return guest.look().exe == passage.after.exe


def test_libvirtd_restarts(passage: Passage) -> None:
    guest, pid = passage.guest, passage.guest.pid
    before = guest.domain.XMLDesc()
    guest.host.stop_libvirtd()
    guest.host.start_libvirtd()
    assert live_differences(before, guest.domain.XMLDesc()) == ()
    assert guest.pid == pid
    assert guest.proof.check().good


def test_guest_reboots(passage: Passage) -> None:
    """In the same QEMU, with all its RAM filled anew."""
    guest, pid = passage.guest, passage.guest.pid
    before = guest.proof.report().boot_id
    guest.domain.reboot(libvirt.VIR_DOMAIN_REBOOT_GUEST_AGENT)
    wait_until(lambda: has_booted_since(guest, before), "another boot")
    assert guest.proof.wait_booted(first=False).boot_id != before
    assert guest.proof.check().good
    assert guest.pid == pid


def has_booted_since(guest: Watched, boot_id: str) -> bool:
    try:
        return guest.proof.report().boot_id != boot_id
    except (libvirt.libvirtError, NotReadyError):
        return False  # on its way


# -- the end -------------------------------------------------------------------------------------------------


def test_guest_shuts_down_cleanly_and_starts_again(guest: Watched, lab: Lab) -> None:
    lab.update(lab.newer)
    domain = guest.domain
    domain_id, name = domain.ID(), domain.name()
    domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
    wait_until(lambda: not guest.domain.isActive(), "libvirt to see it shut off")
    assert guest.domain.state()[0] == libvirt.VIR_DOMAIN_SHUTOFF
    assert guest.qemus() == ()
    assert left_of(name, domain_id) == []
    domain = guest.domain
    domain.create()
    assert guest.proof.wait_booted().boot_id
    assert guest.proof.check().good
    assert is_of(guest.look().exe, lab.system.emulator)  # as its definition says


def left_of(name: str, domain_id: int) -> list[Path]:
    """Files that belong to a running guest: RAM, record, pid file, sockets, keys."""
    places = (RAM, Path("/run/libvirt/qemu"), Path("/var/lib/libvirt/qemu"))
    signs = (f"{domain_id}-{name[:10]}", f"{name}.xml", f"{name}.pid")
    return [path for place in places for path in place.rglob("*") if any(sign in path.name for sign in signs)]
