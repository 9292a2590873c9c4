"""The throw-away guest on which a handover is rehearsed: the shape of a real one, and nothing of its own.

Same machine, CPU, vCPUs, devices, models and addresses; little memory, empty disks, no network, no kernel:
its firmware finds nothing to boot and waits. Two guests with equal `shape_digest` rehearse once.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from hostagent.hypervisor.live_definition import alias_of, amount, attribute, parse, size, source_of

MEMORY_KIB = 128 * 1024
DISK_BYTES = 16 * 1024**2

# What a rehearsal does not need, or must not touch: tuning, labels of the real guest's, libvirt's own notes.
_DROPPED = (
    *("title", "description", "metadata", "genid", "seclabel", "resource", "launchSecurity"),
    *("cputune", "numatune", "memtune", "blkiotune", "perf", "idmap", "keywrap"),
)
# Devices of the host's, or with a second process behind them. A guest that has one is refused anyway.
_DROPPED_DEVICES = frozenset(
    ("hostdev", "filesystem", "redirdev", "smartcard", "tpm", "shmem", "lease", "vsock", "nvram")
)
_CHARACTER_DEVICES = ("serial", "console", "channel", "parallel")
_DISK_KEPT = ("driver", "target", "boot", "readonly", "blockio", "serial", "wwn", "address", "alias")
_NIC_KEPT = ("model", "driver", "mtu", "rom", "boot", "address", "alias")


@dataclass(frozen=True)
class PlaceholderDisk:
    """An image that has to exist before the rehearsal's guest starts; its content does not matter."""

    path: str
    format: str
    size: int  # bytes, as the guest sees it


@dataclass(frozen=True)
class RehearsalGuest:
    """The rehearsal's guest: what libvirt gets, and what has to be there before."""

    xml: str
    disks: tuple[PlaceholderDisk, ...]


def rehearsal_xml(live_xml: str, name: str, uuid: str, workdir: str, emulator: str = "") -> RehearsalGuest:
    """A transient guest of the same shape as the live one, with every file of its own below workdir.

    emulator: what it is started on, where the live one's path holds another build by now.
    The folder must be reachable for the QEMU user, and take O_DIRECT if a disk of the guest asks for it.
    """
    root = parse(live_xml)
    root.attrib.pop("id", None)
    _set(root, "name", name)
    _set(root, "uuid", uuid)
    _drop(root, [child for child in root if child.tag in _DROPPED or child.tag.startswith("{")])
    memory = str(_shrink_memory(root))
    for tag in ("memory", "currentMemory"):
        _set(root, tag, memory).set("unit", "KiB")
    for tag in ("vcpu", "vcpus/vcpu"):
        for vcpu in root.iterfind(tag):
            vcpu.attrib.pop("cpuset", None)
    _plain_start(root)
    devices = _child(root, "devices")
    if emulator:
        _set(devices, "emulator", emulator)
    disks = tuple(_reshape_devices(devices, PurePosixPath(workdir)))
    return RehearsalGuest(ElementTree.tostring(root, encoding="unicode"), disks)


def shape_digest(live_xml: str) -> str:
    """SHA-256 over the shape: equal for guests that differ in names, UUIDs, paths, MACs and sizes only.

    The emulator is not part of it: remember it beside the digest, with the versions rehearsed.
    """
    guest = rehearsal_xml(live_xml, "", "", "/")
    root = parse(guest.xml)
    for element in root.iter():
        element.text = (element.text or "").strip()
        element.tail = None
    for path in ("emulator", "disk/serial", "disk/wwn"):
        for element in root.iterfind(f"devices/{path}"):
            element.text = ""
    # libvirt lists controllers in the order they were given; aliases and addresses tell devices apart.
    found = _child(root, "devices")
    found[:] = sorted(found, key=_canonical)
    return hashlib.sha256(_canonical(root).encode()).hexdigest()


def _canonical(element: Element) -> str:
    return ElementTree.canonicalize(ElementTree.tostring(element, encoding="unicode"))


def _shrink_memory(root: Element) -> int:
    """Every NUMA node and every DIMM gets at most as much as a guest without; KiB of memory in all.

    Never more than it has: DIMMs stay where they are, beside each other.
    """
    devices = _child(root, "devices")
    _drop(devices, [memory for memory in devices.iterfind("memory") if memory.get("model") != "dimm"])
    cells, dimms = root.findall("cpu/numa/cell"), devices.findall("memory")
    sizes = [min(MEMORY_KIB, amount(cell.get("memory", ""), cell.get("unit", "KiB")) // 1024) for cell in cells]
    for cell, number in zip(cells, sizes, strict=True):
        cell.attrib |= {"memory": str(number), "unit": "KiB"}
    for dimm in dimms:
        sizes.append(min(MEMORY_KIB, size(dimm.find("target/size")) // 1024))
        _set(_child(dimm, "target"), "size", str(sizes[-1])).set("unit", "KiB")
        _drop(dimm, list(dimm.iterfind("source")))
    return sum(sizes) + (0 if cells else MEMORY_KIB)


def _plain_start(root: Element) -> None:
    """No kernel of the real guest's, whose files may be gone, and no firmware variables of its own."""
    system = root.find("os")
    if system is not None:
        _drop(system, [child for child in system if child.tag in ("kernel", "initrd", "cmdline", "dtb", "shim")])
        for nvram in system.iterfind("nvram"):
            nvram.text = None  # libvirt makes one from the template
            nvram.attrib.pop("file", None)


def _reshape_devices(devices: Element, workdir: PurePosixPath) -> Iterator[PlaceholderDisk]:
    for device in list(devices):
        if device.tag in _DROPPED_DEVICES:
            devices.remove(device)
        elif device.tag == "disk":
            yield from _reshape_disk(device, workdir)
        elif device.tag == "interface":
            _reshape_nic(device)
        elif device.tag in _CHARACTER_DEVICES:
            _reshape_character_device(device, workdir)
        elif device.tag == "graphics":
            _reshape_graphics(device)


def _reshape_disk(disk: Element, workdir: PurePosixPath) -> Iterator[PlaceholderDisk]:
    had_source = bool(source_of(disk))
    _drop(disk, [child for child in disk if child.tag not in _DISK_KEPT])
    for name in list(disk.attrib):
        if name not in ("type", "device"):
            del disk.attrib[name]
    disk.set("type", "file")
    driver = disk.find("driver")
    if driver is not None:
        for name in ("error_policy", "rerror_policy"):  # an empty disk has no errors to act on
            driver.attrib.pop(name, None)
    if disk.get("device", "disk") == "disk" and had_source:
        image_format = attribute(driver, "type") or "raw"
        path = str(workdir / f"{attribute(disk.find('target'), 'dev')}.{image_format}")
        disk.insert(1, Element("source", file=path))
        yield PlaceholderDisk(path, image_format, DISK_BYTES)


def _reshape_nic(nic: Element) -> None:
    """A tap of its own that leads nowhere: type 'ethernet' without a bridge, the MAC left to libvirt."""
    _drop(nic, [child for child in nic if child.tag not in _NIC_KEPT])
    nic.attrib.clear()
    nic.set("type", "ethernet")


def _reshape_character_device(device: Element, workdir: PurePosixPath) -> None:
    """Files and sockets below workdir; a channel's socket where libvirt puts it by itself."""
    device.attrib.pop("tty", None)
    _drop(device, list(device.iterfind("log")))
    target = device.find("target")
    if target is not None:
        target.attrib.pop("state", None)
    # A console that stands for a serial port carries that port's alias: both get the same file.
    path = str(workdir / (alias_of(device) or device.tag))
    for source in list(device.iterfind("source")):
        device.remove(source)
    if device.get("type") == "file":
        device.insert(0, Element("source", path=f"{path}.log"))
    elif device.get("type") == "unix" and device.tag != "channel":
        device.insert(0, Element("source", mode="bind", path=f"{path}.sock"))


def _reshape_graphics(graphics: Element) -> None:
    for name in ("port", "tlsPort", "socket", "passwd", "passwdValidTo"):
        graphics.attrib.pop(name, None)
    if graphics.get("type") in ("vnc", "spice"):
        graphics.set("autoport", "yes")
    for listen in graphics.iterfind("listen"):
        listen.attrib.pop("socket", None)


def _child(parent: Element, tag: str) -> Element:
    found = parent.find(tag)
    return SubElement(parent, tag) if found is None else found


def _set(parent: Element, tag: str, text: str) -> Element:
    element = _child(parent, tag)
    element.text = text
    return element


def _drop(parent: Element, children: Iterable[Element]) -> None:
    for child in children:
        parent.remove(child)
