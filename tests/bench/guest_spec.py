"""What a test guest is made of, and its libvirt XML."""

import uuid
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

BRIDGE = "br0"
BRIDGE_MAC = "52:54:00:77:00:01"
HOST_ADDRESS = "10.77.0.1"
LISTENS_AT = 7003
SCREEN_PASSWORD = "s3cret"
GUEST_FILES = Path("/var/lib/libvirt/images")
"""Kernel, initramfs, disks and console logs of the guests, inside the bench."""
OWN_FILES = Path("/srv/disks")
"""Disks that a host has for itself: another one in the bench has its own under this name."""


class Ram(StrEnum):
    FILE = "file"
    MEMFD = "memfd"
    ANONYMOUS = "anonymous"


class Console(StrEnum):
    FILE = "file"
    """Serial port into a file, through virtlogd."""
    PTY = "pty"
    """Serial port on a pseudo terminal, with a log through virtlogd."""


@dataclass(frozen=True)
class GuestSpec:
    """index tells guests of one host apart: it gives the MAC and IP address and the names of files."""

    name: str = "guest"
    index: int = 1
    memory_mib: int = 512
    machine: str = "q35"
    vcpus: int = 1
    vcpus_later: int = 0
    """That can be plugged in while it runs."""
    numa_nodes: int = 0
    """Among which its memory and its vCPUs are shared out."""
    memory_slots: int = 0
    """For memory that is plugged in while it runs; only with NUMA nodes."""
    ram: Ram = Ram.FILE
    disk: bool = True
    own_disk: bool = False
    """Among OWN_FILES, so that no other host sees it."""
    disk_format: str = "qcow2"
    disk_fill_mib: int = 0
    """At the end of a raw one, so that copying it takes a while."""
    nic: bool = True
    mergeable_buffers: bool = True
    """Whether the network card merges receive buffers (VIRTIO_NET_F_MRG_RXBUF): it gives packets another header."""
    placed: bool = False
    """An I/O thread for the disk; CPU time of every kind of thread limited, each pinned."""
    pci_ports: int = 0
    """On q35: libvirt makes as many as it needs at the start, which leaves none to plug a device into later."""
    on_reboot: str = "restart"
    screen: str = ""
    """Model of a graphics card; with it come a display with a password, a tablet, a CD-ROM drive with a medium."""
    display: str = "vnc"
    """What serves the screen: "vnc" or "spice"; with SPICE comes its channel."""
    console: Console = Console.FILE
    agent: bool = True
    transient: bool = False
    fill_mib: int = 0
    """What proof fills as it starts; with memory slots the test does that, once memory is plugged in."""
    seed: int = 1
    emulator: str | None = None
    pace: int = 1
    """Its ticks, records and lines are so many times as far apart."""

    @property
    def uuid(self) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"bench-guest-{self.index}"))

    @property
    def address(self) -> str:
        return f"10.77.0.{10 + self.index}"

    @property
    def tcp(self) -> str:
        """What answers once it has booted."""
        return f"{self.address}:{LISTENS_AT}"

    @property
    def mac(self) -> str:
        return f"52:54:00:77:00:{10 + self.index:02x}"

    @property
    def disk_path(self) -> Path:
        return (OWN_FILES if self.own_disk else GUEST_FILES) / f"guest{self.index}.{self.disk_format}"

    @property
    def medium_path(self) -> Path:
        return GUEST_FILES / f"guest{self.index}.iso"

    @property
    def console_log(self) -> Path:
        return GUEST_FILES / f"guest{self.index}.console"

    @property
    def kernel_command_line(self) -> str:
        words = ["console=ttyS0", "quiet", "panic=-1"]
        if self.nic:
            words += [f"proof.ip={self.address}/24", f"proof.peer={HOST_ADDRESS}"]
        if self.pace > 1:
            words.append(f"proof.pace={self.pace}")
        if self.fill_mib and not self.memory_slots:
            words += [f"proof.fill={self.fill_mib}", f"proof.seed={self.seed}"]
        return " ".join(words)


def domain_xml(spec: GuestSpec, *, kvm: bool, vhost: bool) -> str:
    domain = Element("domain", type="kvm" if kvm else "qemu")
    _text(domain, "name", spec.name)
    _text(domain, "uuid", spec.uuid)
    if spec.memory_slots:
        _text(domain, "maxMemory", "8", unit="GiB", slots=str(spec.memory_slots))
    _text(domain, "memory", str(spec.memory_mib), unit="MiB")
    _text(domain, "vcpu", str(spec.vcpus + spec.vcpus_later), current=str(spec.vcpus))
    if spec.placed:
        _add_placement(domain, spec)
    _add_memory_backing(domain, spec)
    system = SubElement(domain, "os")
    _text(system, "type", "hvm", arch="x86_64", machine=spec.machine)
    _text(system, "kernel", str(GUEST_FILES / "vmlinuz"))
    _text(system, "initrd", str(GUEST_FILES / "initramfs"))
    _text(system, "cmdline", spec.kernel_command_line)
    features = SubElement(domain, "features")
    SubElement(features, "acpi")
    SubElement(features, "apic")
    if kvm or spec.numa_nodes:
        _add_cpu(domain, spec, kvm=kvm)
    SubElement(domain, "clock", offset="utc")
    _text(domain, "on_reboot", spec.on_reboot)
    devices = SubElement(domain, "devices")
    if spec.emulator:
        _text(devices, "emulator", spec.emulator)
    if spec.disk:
        _add_disk(devices, spec)
    if spec.nic:
        _add_nic(devices, spec, vhost=vhost)
    if spec.pci_ports:
        SubElement(devices, "controller", type="pci", index="0", model="pcie-root")
    for _ in range(spec.pci_ports):
        SubElement(devices, "controller", type="pci", model="pcie-root-port")
    _add_console(devices, spec)
    if spec.screen:
        _add_screen(devices, spec)
    if spec.agent:
        channel = SubElement(devices, "channel", type="unix")
        SubElement(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    rng = SubElement(devices, "rng", model="virtio")
    _text(rng, "backend", "/dev/urandom", model="random")
    SubElement(devices, "memballoon", model="virtio")
    return ElementTree.tostring(domain, encoding="unicode")


def _text(parent: Element, tag: str, text: str, **attributes: str) -> None:
    SubElement(parent, tag, attributes).text = text


def _add_cpu(domain: Element, spec: GuestSpec, *, kvm: bool) -> None:
    cpu = SubElement(domain, "cpu")
    if kvm:
        cpu.attrib |= {"mode": "host-passthrough", "migratable": "on"}
    if not spec.numa_nodes:
        return
    vcpus = spec.vcpus + spec.vcpus_later
    cells = SubElement(cpu, "numa")
    for number in range(spec.numa_nodes):
        own = ",".join(str(vcpu) for vcpu in range(vcpus) if vcpu % spec.numa_nodes == number)
        memory = str(spec.memory_mib // spec.numa_nodes)
        cell = SubElement(cells, "cell", {"id": str(number), "memory": memory, "unit": "MiB"})
        if own:
            cell.set("cpus", own)
        distances = SubElement(cell, "distances")
        for other in range(spec.numa_nodes):
            SubElement(distances, "sibling", id=str(other), value="10" if other == number else "21")


def _add_memory_backing(domain: Element, spec: GuestSpec) -> None:
    if spec.ram is Ram.ANONYMOUS:
        return
    backing = SubElement(domain, "memoryBacking")
    SubElement(backing, "source", type=spec.ram.value)
    SubElement(backing, "access", mode="shared")


def _add_placement(domain: Element, spec: GuestSpec) -> None:
    """Each kind of thread in another way, so that no two can be mistaken; the limits are too high to be felt."""
    _text(domain, "iothreads", "1")
    tuning = SubElement(domain, "cputune")
    _text(tuning, "shares", "2000")
    for number, name in enumerate(("", "emulator_", "iothread_")):
        _text(tuning, f"{name}period", str(100_000 + number))
        _text(tuning, f"{name}quota", str(400_000 + number))
    for vcpu in range(spec.vcpus):
        SubElement(tuning, "vcpupin", vcpu=str(vcpu), cpuset=str(vcpu % 2))
    SubElement(tuning, "emulatorpin", cpuset="1")
    SubElement(tuning, "iothreadpin", iothread="1", cpuset="0")


def _add_disk(devices: Element, spec: GuestSpec) -> None:
    disk = SubElement(devices, "disk", type="file", device="disk")
    driver = SubElement(disk, "driver", name="qemu", type=spec.disk_format)
    if spec.placed:
        driver.set("iothread", "1")
    SubElement(disk, "source", file=str(spec.disk_path))
    SubElement(disk, "target", dev="vda", bus="virtio")


def _add_nic(devices: Element, spec: GuestSpec, *, vhost: bool) -> None:
    nic = SubElement(devices, "interface", type="bridge")
    SubElement(nic, "mac", address=spec.mac)
    SubElement(nic, "source", bridge=BRIDGE)
    SubElement(nic, "model", type="virtio")
    driver = SubElement(nic, "driver", name="vhost" if vhost else "qemu")
    if not spec.mergeable_buffers:
        SubElement(driver, "host", mrg_rxbuf="off")


def _add_screen(devices: Element, spec: GuestSpec) -> None:
    SubElement(devices, "input", type="tablet", bus="usb")
    graphics = SubElement(devices, "graphics", type=spec.display, autoport="yes", passwd=SCREEN_PASSWORD)
    SubElement(graphics, "listen", type="address", address="127.0.0.1")
    video = SubElement(devices, "video")
    SubElement(video, "model", type=spec.screen)
    if spec.display == "spice":
        channel = SubElement(devices, "channel", type="spicevmc")
        SubElement(channel, "target", type="virtio", name="com.redhat.spice.0")
    drive = SubElement(devices, "disk", type="file", device="cdrom")
    SubElement(drive, "driver", name="qemu", type="raw")
    SubElement(drive, "source", file=str(spec.medium_path))
    old = spec.machine.startswith("pc") and "q35" not in spec.machine
    SubElement(drive, "target", dev="hdc" if old else "sda", bus="ide" if old else "sata")
    SubElement(drive, "readonly")


def _add_console(devices: Element, spec: GuestSpec) -> None:
    serial = SubElement(devices, "serial", type=spec.console.value)
    if spec.console is Console.FILE:
        SubElement(serial, "source", path=str(spec.console_log))
    else:
        SubElement(serial, "log", file=str(spec.console_log))
    SubElement(serial, "target", port="0")
