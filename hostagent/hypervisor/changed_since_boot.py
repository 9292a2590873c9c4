"""What has changed in a guest since its QEMU started, and between two looks at its live XML.

A QEMU's argument list is the guest as it booted; hotplug, media changes, snapshots and block commits change
the guest and not the list. A state loaded onto the wrong disk still "succeeds", so every difference counts.
"""

import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element

from hostagent.arguments.command_line import BlockNode, CommandLine
from hostagent.facts import Difference
from hostagent.hypervisor.live_definition import (
    alias_of,
    attribute,
    current_vcpus,
    devices,
    image_index,
    images_of,
    parse,
    pci_place,
    qualified,
    size,
    source_of,
)

# Devices that libvirt shows and that are part of the machine, or no device of QEMU's at all.
_BUILT_IN_CONTROLLERS = frozenset((("pci", "pci-root"), ("pci", "pcie-root"), ("usb", "none")))
_WITHOUT_DEVICE = frozenset(("audio", "graphics", "redirfilter", "lease", "iommu", "nvram"))


def changed_since_boot(live_xml: str, command_line: CommandLine) -> tuple[Difference, ...]:
    """Every difference between the live XML and the argument list of boot."""
    root = parse(live_xml)
    return (
        *_devices(root, command_line),
        *_places(root, command_line),
        *_disks(root, command_line),
        *_interfaces(root, command_line),
        *_dimms(root, command_line),
        *_sizes(root, command_line),
    )


def _devices(root: Element, command_line: CommandLine) -> Iterator[Difference]:
    at_boot = set(command_line.device_ids()) - set(command_line.plugged_vcpus())  # counted below
    now = {alias_of(device): device for device in devices(root) if alias_of(device)}
    for alias, device in now.items():
        if alias not in at_boot and not _built_in(device, root):
            yield Difference("only devices that the guest booted with", f"{device.tag} {alias}, added since")
    for alias in sorted(at_boot - now.keys()):
        yield Difference(f"device {alias}, which the guest booted with", "no such device now")


def _places(root: Element, command_line: CommandLine) -> Iterator[Difference]:
    """One that was plugged out, and another in, under the same name."""
    now: dict[str, list[str]] = {}  # the parts of a USB controller have one name
    for device in devices(root):
        if place := pci_place(root, device):
            now.setdefault(alias_of(device), []).append(" ".join(place))
    for item in command_line.named("device"):
        booted, places = f"{item.get('bus')} {item.get('addr')}", now.get(item.get("id"), [])
        if item.has("bus") and item.has("addr") and places and booted not in places:
            yield Difference(f"device {item.get('id')} at {booted}, as it booted", f"it is at {places[0]} now")


def _built_in(device: Element, root: Element) -> bool:
    """Whether QEMU has this device without a -device: the machine's own, or none at all."""
    machine = attribute(root.find("os/type"), "machine")
    index = device.get("index", "")
    match device.tag:
        case "controller" if device.get("type") in ("ide", "fdc"):
            return index == "0" and machine.startswith("pc-i440fx")
        case "controller" if device.get("type") == "sata":
            return index == "0" and machine.startswith("pc-q35")
        case "controller":
            return (device.get("type"), device.get("model")) in _BUILT_IN_CONTROLLERS
        case "input":
            return device.get("bus") == "ps2"
        case "watchdog":
            return device.get("model") == "itco" and machine.startswith("pc-q35")
        case _:
            return device.tag in _WITHOUT_DEVICE


def _disks(root: Element, command_line: CommandLine) -> Iterator[Difference]:
    nodes = {node.name: node for node in command_line.block_nodes()}
    drives = {item.get("id"): item.get("drive") for item in command_line.named("device")}
    used: set[str] = set()
    for disk in root.iterfind("devices/disk"):
        if alias_of(disk) not in drives:
            continue  # added since, and said so already
        label = f"disk {attribute(disk.find('target'), 'dev')}"
        job = disk.find("mirror")
        if job is not None:
            yield Difference(f"{label} without a block job", f"a job: {attribute(job, 'job') or 'mirror'}")
        images = list(images_of(disk))
        used |= {name for image in images for name in _names(image)}
        top = _names(images[0]) if images else ("",)
        if drives[alias_of(disk)] in top:
            for image in images:
                yield from _image(label, image, nodes)
        else:
            booted, now = _filename(drives[alias_of(disk)], nodes), source_of(disk)
            yield Difference(f"{label} on {booted or 'no image'}, as it booted", f"{now or 'no image'} now")
            used |= {drives[alias_of(disk)]}
    for name, node in nodes.items():
        if name not in used and node.filename and not _below(name, used, nodes):
            yield Difference(f"{node.filename}, which the guest booted with", "no disk uses it now")


def _filename(name: str, nodes: dict[str, BlockNode]) -> str:
    node = nodes.get(name)
    return "" if node is None else node.filename or _filename(node.file, nodes)


def _below(name: str, used: set[str], nodes: dict[str, BlockNode]) -> bool:
    """Whether a storage node carries a format node that is accounted for."""
    return any(node.file == name for node in nodes.values() if node.name in used)


def _names(image: Element) -> tuple[str, str]:
    """The node names that libvirt gives an image: format and storage (qemu_block.c)."""
    index = image_index(image)
    return f"libvirt-{index}-format", f"libvirt-{index}-storage"


def _image(label: str, image: Element, nodes: dict[str, BlockNode]) -> Iterator[Difference]:
    format_name, storage_name = _names(image)
    source = source_of(image)
    booted = _filename(storage_name, nodes)
    if storage_name not in nodes or (booted and booted != source):
        yield Difference(f"{label} on {booted or 'images that the guest booted with'}", f"{source} now")
        return
    image_format = attribute(image.find("driver"), "type") or attribute(image.find("format"), "type") or "raw"
    # Since libvirt 10 a raw image has no format node (libvirt, qemu_block.c).
    node = nodes.get(format_name)
    booted_format = node.driver if node is not None else "raw"
    if booted_format != image_format:
        yield Difference(f"{label} in format {booted_format}, as it booted", f"it is {image_format} now")
    below = image.find("backingStore")
    if node is not None and below is not None:
        names = _names(below) if below.find("source") is not None else ("",)
        if node.backing not in names:
            booted = f"{label} with {node.backing or 'no image'} below {source}, as it booted"
            yield Difference(booted, f"{source_of(below) or 'nothing'} is below it now")


def _interfaces(root: Element, command_line: CommandLine) -> Iterator[Difference]:
    at_boot = set(command_line.netdev_ids())
    macs = {item.get("id"): item.get("mac").lower() for item in command_line.named("device")}
    for nic in root.iterfind("devices/interface"):
        alias, mac = alias_of(nic), attribute(nic.find("mac"), "address").lower()
        if alias in macs and f"host{alias}" not in at_boot:
            yield Difference(f"interface {alias} with a netdev", "none in the argument list")
        elif macs.get(alias, mac) != mac:
            yield Difference(f"interface {alias} with MAC {macs[alias]}, as it booted", f"MAC {mac} now")


def network_cards(live_xml: str) -> tuple[str, ...]:
    """Each card with what stays as long as it is plugged in: its tap, MAC and model, and its place."""
    return tuple(
        " ".join(
            (
                alias_of(nic),
                *(attribute(nic.find(name), key) for name, key in (("target", "dev"), ("mac", "address"))),
                attribute(nic.find("model"), "type"),
                *(attribute(nic.find("address"), key) for key in ("domain", "bus", "slot", "function")),
            )
        )
        for nic in parse(live_xml).iterfind("devices/interface")
    )


def _dimms(root: Element, command_line: CommandLine) -> Iterator[Difference]:
    """One that was plugged out, and another in, under the same name."""
    booted = {device.get("id"): (device, backend) for device, backend in command_line.dimms()}
    for memory in root.iterfind("devices/memory"):
        if alias_of(memory) not in booted:
            continue  # added since, and said so already
        (device, backend), address = booted[alias_of(memory)], memory.find("address")
        base = str(int(attribute(address, "base") or "0", 16))
        there = (backend.size(), device.get("slot"), device.get("node", "0"), device.get("addr", base))
        now = (
            size(memory.find("target/size")),
            attribute(address, "slot"),
            memory.findtext("target/node", "0").strip(),
            base,
        )
        if there != now:
            yield Difference(f"{_dimm(alias_of(memory), *there)}, as the guest booted", _dimm("it", *now))


def _dimm(name: str, number: int, slot: str, node: str, base: str) -> str:
    return f"{name} of {_mib(number)} in slot {slot} of node {node} at {base}"


def _sizes(root: Element, command_line: CommandLine) -> Iterator[Difference]:
    vcpus = current_vcpus(root)
    if vcpus != command_line.vcpus:
        yield Difference(f"{command_line.vcpus} vCPUs, as the guest booted", f"{vcpus} now")
    memory = size(root.find("memory"))
    if memory != command_line.memory:
        yield Difference(f"{_mib(command_line.memory)} of memory, as the guest booted", f"{_mib(memory)} now")
    booted, iothreads = len(command_line.iothread_ids()), int(root.findtext("iothreads", "0") or 0)
    if iothreads != booted:
        yield Difference(f"{booted} iothreads, as the guest booted", f"{iothreads} now")


def _mib(number: int) -> str:
    return f"{number / 1024**2:g} MiB"


# Differences that a handover makes, or that come and go by themselves.
EXPLAINED: tuple[tuple[str, str], ...] = (
    ("domain/devices/emulator", ""),  # the new binary, when its path is another one
    ("domain/devices/channel/target", "state"),  # the guest agent connects anew
    ("domain/currentMemory", ""),  # a balloon fills and empties by itself, and libvirt hears of it once a second
)


# What libvirt says anew of a pseudo terminal, which has another name, and no more of a drive without a medium.
_OF_PTY = frozenset(("tty", "path"))
_OF_EMPTY_DRIVE = frozenset(("type", "index"))


# What libvirt gives a guest anew as it starts it, and the metadata that it leaves empty where a mark of ours was.
_OF_A_START = re.compile(
    r"domain@id|domain/metadata|domain/devices/(interface\[.*\]/target@dev|channel\[.*\]/source@path"
    r"|graphics.*@(port|tlsPort)|interface\[.*\]/source@portid)"
)


def live_differences(before: str, after: str, *, by_a_start: bool = False) -> tuple[str, ...]:
    """What differs between two live XMLs of one guest beyond what a handover explains, one line each.

    by_a_start: libvirt has started the guest in between, from what it had saved of it.
    """
    old, new = dict(_lines(parse(before))), dict(_lines(parse(after)))
    places = [place for place in dict.fromkeys((*old, *new)) if old.get(place) != new.get(place)]
    whole = tuple(place for place in places if "@" not in place and (place in old) != (place in new))
    return tuple(
        f"{place}: expected {_shown(old.get(place))}, found {_shown(new.get(place))}"
        for place in places
        if not any(place.startswith((f"{element}/", f"{element}@")) for element in whole)
        and not (by_a_start and _OF_A_START.fullmatch(place))
    )


def _shown(value: str | None) -> str:
    return "nothing" if value is None else repr(value) if value else "it"


def _lines(
    element: Element, *, plain: str = "", shown: str = "", besides: frozenset[str] = frozenset()
) -> Iterator[tuple[str, str]]:
    """Every attribute and text with its place; a device is placed by its alias, its like by a count.

    besides: attributes that mean nothing in there.
    """
    plain, shown = plain or element.tag, shown or element.tag
    if (plain, "") in EXPLAINED:
        return
    empty = element.tag == "disk" and not source_of(element)
    if element.tag in ("serial", "console") and element.get("type") == "pty":
        besides = _OF_PTY
    elif empty:
        besides = _OF_EMPTY_DRIVE
    yield shown, (element.text or "").strip()
    for name, value in sorted(element.attrib.items()):
        if (plain, name) not in EXPLAINED and name not in besides:
            yield f"{shown}@{qualified(name)}", value
    seen: dict[str, int] = {}
    for child in element:
        tag = qualified(child.tag)
        if empty and tag == "source":
            continue
        key = f"{tag}[{alias_of(child)}]" if alias_of(child) else tag
        seen[key] = seen.get(key, 0) + 1
        place = key if seen[key] == 1 else f"{key}#{seen[key]}"
        yield from _lines(child, plain=f"{plain}/{tag}", shown=f"{shown}/{place}", besides=besides)
