"""A guest's argument list as it would be if it had booted as it is now; pure.

libvirt changes a running guest through QEMU's monitor, and its arguments stay those of boot. What is understood here
is put into them as libvirt 9.0 would have written it (src/qemu/qemu_command.c, qemu_block.c): vCPUs that
were plugged in, memory, disks and network cards that were plugged in or out, media that were changed, and chains of
images that snapshots and block commits have changed. Everything else stays as it was: `changed_since_boot` names it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from xml.etree.ElementTree import Element

from hostagent.arguments.command_line import BLOCK_NAME, CPU_DEVICE, DIMM, CommandLine, DescriptorKind
from hostagent.arguments.qemu_options import Option, json_option
from hostagent.hypervisor.live_definition import (
    alias_of,
    attribute,
    image_index,
    images_of,
    parse,
    pci_place,
    size,
    source_of,
)

_NODE = re.compile(r"libvirt-\d+-(storage|format)")  # an image of a disk; others are firmware, or filters above one
_OF_ALL_IMAGES = ("discard", "detect-zeroes", "cache")  # what libvirt says of a disk's images in its <driver>
_STORAGE_DRIVERS = {"file": "file", "block": "host_device"}
_DISK_ELEMENTS = frozenset(("driver", "source", "backingStore", "target", "alias", "address", "readonly", "iotune"))
_NIC_ELEMENTS = frozenset(("mac", "source", "target", "model", "driver", "alias", "address", "link", "bandwidth"))
_NICS = frozenset(("bridge", "network", "ethernet"))
_DIMM_ELEMENTS = frozenset(("target", "alias", "address"))
_BEHIND = (("netdev", "netdev"), ("object", "memdev"))  # option behind a device, and the property that names it
_PLUGGABLE = ("virtio-blk-pci", "virtio-net-pci", DIMM)
# libvirt names controllers first, then memory, disks, network cards, and what follows.
_CONTROLLERS = ("virtio-serial-pci", "pcie-root-port", "piix3-usb-uhci")
_UP_TO_DISKS = ("virtio-blk-pci", DIMM, *_CONTROLLERS)
_FIRST_FREE = 3  # above standard input, output and error

Properties = dict[str, object]


@dataclass(frozen=True)
class Reconciled:
    """The list, and taps that it names by numbers which the old QEMU has them under others."""

    line: CommandLine
    plugged_taps: Mapping[int, str] = field(default_factory=dict)  # number in the list -> the tap's name


@dataclass(frozen=True)
class _Image:
    """One of a disk's chain of images."""

    index: str
    kind: str  # libvirt's word for where it is: "file", "block"
    format: str
    source: str
    plain: bool  # nothing but its name is said of where it is

    @property
    def storage_node(self) -> str:
        return f"libvirt-{self.index}-storage"

    @property
    def format_node(self) -> str:
        return f"libvirt-{self.index}-format"


def reconciled(live_xml: str, command_line: CommandLine, vhosts: int = 0) -> Reconciled:
    """The argument list of the guest as it is now, as far as that is understood.

    vhosts: how many descriptors of /dev/vhost-net its QEMU has.
    """
    root = parse(live_xml)
    devices = {alias_of(device): device for device in root.iterfind("devices/*") if alias_of(device)}
    options = _with_vcpus(list(_without_the_unplugged(command_line, devices)), root)
    for memory in root.iterfind("devices/memory"):
        options = _with_dimm(options, memory)
    for disk in root.iterfind("devices/disk"):
        options = _with_disk(options, root, disk)
    taps: dict[int, str] = {}
    for nic, by_kernel in _plugged_nics(options, root, vhosts):
        options = _with_nic(options, root, nic, taps, by_kernel=by_kernel)
    return Reconciled(CommandLine(command_line.binary, tuple(_without_unused_nodes(options))), taps)


def _without_the_unplugged(line: CommandLine, devices: Mapping[str, Element]) -> Iterator[Option]:
    """The options without disks, network cards and memory that are there no more, and what was behind them."""
    gone = [item for item in line.named("device") if item.kind in _PLUGGABLE and item.get("id") not in devices]
    behind = {(name, item.get(key)) for item in gone for name, key in _BEHIND if item.has(key)}
    return (item for item in line.options if item not in gone and (item.name, item.get("id")) not in behind)


# -- vCPUs ---------------------------------------------------------------------------------------------------


def _with_vcpus(options: list[Option], root: Element) -> list[Option]:
    """The options with a device for each vCPU that was plugged in.

    Numbered through threads, cores and sockets, as QEMU does it (hw/i386/x86.c, x86_possible_cpu_arch_ids).
    """
    line = CommandLine("", tuple(options))
    smp, model = next(line.named("smp"), None), next(line.named("cpu"), None)
    counts = {name: smp.get(name, "1") if smp else "" for name in ("cpus", "sockets", "cores", "threads")}
    plugged = [vcpu for vcpu in root.iterfind("vcpus/vcpu[@enabled='yes']") if vcpu.get("hotpluggable") == "yes"]
    flat = smp is None or all(smp.get(name, "1") == "1" for name in ("dies", "clusters", "modules"))
    if model is None or not flat or not all(count.isdecimal() for count in counts.values()):
        return options
    cores, threads = int(counts["cores"]), int(counts["threads"])
    wanted = []
    for vcpu in plugged:
        number = int(vcpu.get("id", "0"))
        if number < int(counts["cpus"]):
            continue  # one of those that it booted with
        place = {
            "socket-id": number // (cores * threads),
            "core-id": number // threads % cores,
            "thread-id": number % threads,
        }
        node = next((node for node, vcpus in _numa_nodes(line) if number in vcpus), None)
        if node is not None:
            place["node-id"] = node
        wanted.append(json_option("device", {"driver": f"{model.kind}{CPU_DEVICE}", "id": f"vcpu{number}", **place}))
    rest = [item for item in options if not (item.name == "device" and item.kind.endswith(CPU_DEVICE))]
    at = next((n for n, item in enumerate(rest) if item.name == "device"), len(rest))
    return [*rest[:at], *wanted, *rest[at:]]


def _numa_nodes(line: CommandLine) -> Iterator[tuple[int, frozenset[int]]]:
    """Each node's number, with its vCPUs and those that may be plugged in later."""
    for node in line.named("numa"):
        ranges = [item.value.partition("-") for item in node.properties if item.name == "cpus"]
        if node.get("nodeid").isdecimal() and all(first.isdecimal() for first, _, _ in ranges):
            own = (range(int(first), int(last if last.isdecimal() else first) + 1) for first, _, last in ranges)
            yield int(node.get("nodeid")), frozenset(number for some in own for number in some)


# -- memory --------------------------------------------------------------------------------------------------


def _with_dimm(options: list[Option], memory: Element) -> list[Option]:
    """The options with this DIMM where it is, its backend like that of the memory that the guest booted with.

    Its address is said also of one that it booted with: QEMU would choose the first that is free, and by now another
    may be.
    """
    alias, target, address = alias_of(memory), memory.find("target"), memory.find("address")
    like = next((item for item in options if item.name == "object" and item.kind.startswith("memory-backend-")), None)
    if not _is_plain_dimm(memory) or target is None or address is None or like is None or not _is_json(like):
        return [_placed(item, address) if item.kind == DIMM and item.get("id") == alias else item for item in options]
    backend = f"mem{alias}"
    properties = {name: value for name, value in _properties(like).items() if name != BLOCK_NAME}
    properties |= {"id": backend, "size": size(target.find("size"))}
    if "mem-path" in properties:
        properties["mem-path"] = str(PurePosixPath(str(properties["mem-path"])).with_name(alias))
    booted = next((item for item in options if item.name == "object" and item.get("id") == backend), None)
    if booted is not None and booted.size() == properties["size"]:
        properties = _properties(booted)
    device = {
        "driver": DIMM,
        "node": int(target.findtext("node", "0")),
        "memdev": backend,
        "id": alias,
        "slot": int(address.get("slot", "0")),
        "addr": int(address.get("base", "0"), 16),
    }
    ours = (("object", backend), ("device", alias))
    places = [n for n, item in enumerate(options) if (item.name, item.get("id")) in ours]
    rest = [item for item in options if (item.name, item.get("id")) not in ours]
    at = places[0] if places else _last_of(rest, DIMM, *_CONTROLLERS) + 1
    return [*rest[:at], json_option("object", properties), json_option("device", device), *rest[at:]]


def _placed(dimm: Option, address: Element | None) -> Option:
    base = attribute(address, "base")
    return _changed(dimm, addr=int(base, 16)) if base and _is_json(dimm) and not dimm.has("addr") else dimm


def _is_plain_dimm(memory: Element) -> bool:
    """From ordinary pages, wherever the host has some, and with nothing else said of it."""
    target, address = memory.find("target"), memory.find("address")
    return (
        dict(memory.attrib) == {"model": "dimm"}
        and bool(alias_of(memory))
        and {child.tag for child in memory} <= _DIMM_ELEMENTS
        and target is not None
        and {child.tag for child in target} <= {"size", "node"}
        and target.findtext("node", "0").isdecimal()
        and address is not None
        and set(address.keys()) == {"type", "slot", "base"}
        and address.get("type") == "dimm"
    )


# -- disks ---------------------------------------------------------------------------------------------------


def _with_disk(options: list[Option], root: Element, disk: Element) -> list[Option]:
    """The options with this disk's chain of images, and with the disk itself if it was plugged in."""
    images, alias = list(_chain(disk)), alias_of(disk)
    at = next((n for n, item in enumerate(options) if item.name == "device" and item.get("id") == alias), None)
    device = options[at] if at is not None else _plugged_disk(root, disk)
    if not images and device is not None and device.kind == "ide-cd" and at is not None:
        return [*options[:at], _ejected(device), *options[at + 1 :]]
    if not images or disk.find("mirror") is not None or any(not image.index for image in images):
        return options
    if device is None or device.kind not in ("virtio-blk-pci", "ide-cd") or not _is_json(device):
        return options
    if at is not None and device.kind != "ide-cd" and not _is_of(options, device, images):
        return options
    nodes = {item.get("node-name"): item for item in options if item.name == "blockdev"}
    added = [image for image in images if image.storage_node not in nodes]
    understood = all(image.kind in _STORAGE_DRIVERS and image.plain for image in added)
    if not understood or any(not _is_json(item) for item in nodes.values()):
        return options
    chain = list(_nodes(disk, images, nodes))
    own = {item.get("node-name") for item in chain}
    rest = [item for item in options if not (item.name == "blockdev" and item.get("node-name") in own)]
    place = rest.index(device) if at is not None else _last_of(rest, *_UP_TO_DISKS) + 1
    changed = _changed(device, drive=chain[-1].get("node-name"))
    return [*rest[:place], *chain, changed, *rest[place + (at is not None) :]]


def _is_of(options: list[Option], device: Option, images: list[_Image]) -> bool:
    """Whether a device that the guest booted with is still this disk: one of its images was there.

    Another disk may have its name by now, with other properties. And nobody has tried filters above the images.
    """
    known = {item.get("node-name") for item in options if item.name == "blockdev"}
    is_image = _NODE.fullmatch(device.get("drive")) is not None
    return is_image and any(image.storage_node in known for image in images)


def _chain(disk: Element) -> Iterator[_Image]:
    """The disk's image and those below it, top first."""
    for image in images_of(disk):
        driver, form = attribute(image.find("driver"), "type"), attribute(image.find("format"), "type")
        source = image.find("source")
        plain = source is not None and len(source) == 0 and set(source.keys()) <= {"file", "dev", "index"}
        yield _Image(image_index(image), image.get("type", ""), driver or form or "raw", source_of(image), plain)


def _nodes(disk: Element, images: list[_Image], known: Mapping[str, Option]) -> Iterator[Option]:
    """The nodes of a chain, the lowest first: those that are there already, others after the disk's own."""
    pattern = next((known[image.storage_node] for image in reversed(images) if image.storage_node in known), None)
    above = next((known[image.format_node] for image in images if image.format_node in known), pattern)
    of_all = {name: value for name, value in _properties(above).items() if name in _OF_ALL_IMAGES} if above else {}
    below: str | None = None
    for image in reversed(images):
        top = image is images[0]
        writable = top and disk.find("readonly") is None
        storage = known.get(image.storage_node)
        if storage is None:
            storage = _storage(image, pattern)
        form = known.get(image.format_node)
        if form is None and storage is known.get(image.storage_node) and image.format == "raw" and below is None:
            # libvirt 10 gives a raw image no node of its own
            yield _changed(storage, **{"read-only": not writable}) if storage.has("read-only") else storage
            below = image.storage_node
            continue
        yield storage
        properties = _properties(form) if form is not None else {"node-name": image.format_node, **of_all}
        properties |= {"read-only": not writable, "driver": image.format, "file": image.storage_node}
        if image.format == "qcow2":
            properties["backing"] = below
        yield json_option("blockdev", properties)
        below = image.format_node


def _ejected(device: Option) -> Option:
    """A drive without a medium."""
    if not device.has("drive") or not _is_json(device):
        return device
    return json_option("device", {name: value for name, value in _properties(device).items() if name != "drive"})


def _storage(image: _Image, pattern: Option | None) -> Option:
    own: Properties = {
        "driver": _STORAGE_DRIVERS[image.kind],
        "filename": image.source,
        "node-name": image.storage_node,
        "auto-read-only": True,
        "discard": "unmap",
    }
    like = _properties(pattern) if pattern is not None else {}
    like.pop("read-only", None)  # its format node says that
    return json_option("blockdev", {**like, **own})


def _plugged_disk(root: Element, disk: Element) -> Option | None:
    """A plain disk that was plugged in; None for one that would need more than is known here."""
    driver = disk.find("driver")
    plain = (
        disk.get("device", "disk") == "disk"
        and set(disk.keys()) <= {"type", "device"}
        and disk.get("type") in _STORAGE_DRIVERS
        and attribute(disk.find("target"), "bus") == "virtio"
        and {child.tag for child in disk} <= _DISK_ELEMENTS
        and set(driver.keys() if driver is not None else ()) <= {"name", "type"}
        and (driver is None or len(driver) == 0)
    )
    place = _place(root, disk)
    if not plain or place is None:
        return None
    return json_option("device", {"driver": "virtio-blk-pci", **place, "drive": "", "id": alias_of(disk)})


def _without_unused_nodes(options: list[Option]) -> Iterator[Option]:
    """Images that no disk uses any more."""
    nodes = {item.get("node-name"): item for item in options if item.name == "blockdev"}
    used: set[str] = set()
    open_names = [item.get("drive") for item in options if item.name == "device" and item.has("drive")]
    while open_names:
        name = open_names.pop()
        if name in nodes and name not in used:
            used.add(name)
            open_names += [nodes[name].get("file"), nodes[name].get("backing")]
    for item in options:
        name = item.get("node-name")
        if item.name != "blockdev" or name in used or not _NODE.fullmatch(name):
            yield item


# -- network cards -------------------------------------------------------------------------------------------


def _plugged_nics(options: list[Option], root: Element, vhosts: int) -> Iterator[tuple[Element, bool]]:
    """The plain cards that were plugged in, and whether the kernel (vhost) carries their packets or QEMU itself.

    libvirt takes vhost under KVM where the definition says nothing, and goes without where it cannot have it
    (qemuInterfaceOpenVhostNet). Its QEMU has a descriptor for each: if they are too many for none of these cards and
    too few for all, nobody knows which, and the cards stay out.
    """
    there = {item.get("id") for item in options if item.name == "device"}
    plugged = [nic for nic in root.iterfind("devices/interface") if alias_of(nic) not in there and _is_plain(nic)]
    said = {alias_of(nic): attribute(nic.find("driver"), "name") for nic in plugged}
    if root.get("type") == "qemu":
        said = {alias: driver or "qemu" for alias, driver in said.items()}
    booted = sum(use.kind is DescriptorKind.VHOST for use in CommandLine("", tuple(options)).descriptors())
    unsaid = list(said.values()).count("")
    left = vhosts - booted - list(said.values()).count("vhost")
    if left in (0, unsaid):
        yield from ((nic, (said[alias_of(nic)] or ("vhost" if left else "qemu")) == "vhost") for nic in plugged)


def _with_nic(
    options: list[Option], root: Element, nic: Element, taps: dict[int, str], *, by_kernel: bool
) -> list[Option]:
    """The options with this card, if it has a place of its own."""
    alias, tap = alias_of(nic), attribute(nic.find("target"), "dev")
    place = _place(root, nic)
    if not tap or place is None:
        return options
    number = _free_number(options)
    taps[number] = tap
    vhost = {"vhost": True, "vhostfd": str(number + 1)} if by_kernel else {}
    netdev = json_option("netdev", {"type": "tap", "fd": str(number), **vhost, "id": f"host{alias}"})
    mac = attribute(nic.find("mac"), "address")
    device = json_option(
        "device", {"driver": "virtio-net-pci", "netdev": f"host{alias}", "id": alias, "mac": mac, **place}
    )
    at = _last_of(options, "virtio-net-pci", *_UP_TO_DISKS) + 1
    return [*options[:at], netdev, device, *options[at:]]


def _is_plain(nic: Element) -> bool:
    """One queue, and nothing else of its own."""
    driver = nic.find("driver")
    return (
        nic.get("type") in _NICS
        and attribute(driver, "name") in ("", "qemu", "vhost")
        and attribute(nic.find("model"), "type") == "virtio"
        and {child.tag for child in nic} <= _NIC_ELEMENTS
        and set(driver.keys() if driver is not None else ()) <= {"name"}
        and (driver is None or len(driver) == 0)
    )


def _free_number(options: list[Option]) -> int:
    line = CommandLine("", tuple(options))
    return max((use.number for use in line.descriptors()), default=_FIRST_FREE) + 1


# -- both ----------------------------------------------------------------------------------------------------


def _last_of(options: list[Option], *kinds: str) -> int:
    """Where the last device of these kinds stands."""
    return max((n for n, item in enumerate(options) if item.name == "device" and item.kind in kinds), default=0)


def _place(root: Element, device: Element) -> Properties | None:
    """Bus and slot of a PCI device that has its slot for itself; None for any other."""
    place = pci_place(root, device)
    if place is None or attribute(device.find("address"), "multifunction") == "on":
        return None
    return {"bus": place[0], "addr": place[1]}


def _properties(option: Option) -> Properties:
    read: Properties = json.loads(option.words[-1])
    return read


def _is_json(option: Option) -> bool:
    return option.words[-1].startswith("{")


def _changed(option: Option, **properties: object) -> Option:
    before = _properties(option)
    after = {**before, **properties}
    return option if after == before else json_option(option.name, after)
