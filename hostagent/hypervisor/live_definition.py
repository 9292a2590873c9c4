"""libvirt's live XML of a guest, read into facts. Nothing here asks libvirt.

Format: libvirt, docs/formatdomain. Made safe: a document type is refused, so no entity can be defined.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from sys import intern
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from hostagent.errors import Refused
from hostagent.facts import Definition, Device, RamBacking
from hostagent.policy_xml import policy_text

_NAMESPACES = {"http://libvirt.org/schemas/domain/qemu/1.0": "qemu"}
_UNITS = {"b": 1, "bytes": 1, "KB": 1000, "k": 1024, "KiB": 1024, "MB": 1000**2, "M": 1024**2, "MiB": 1024**2}
_UNITS |= {"GB": 1000**3, "G": 1024**3, "GiB": 1024**3, "TB": 1000**4, "T": 1024**4, "TiB": 1024**4}

# Elements of <domain> that are known to come through: in the argument list (and judged there), carried with
# the process (cgroups, affinity, scheduling), or libvirt's own. None: whatever is inside.
KNOWN_ELEMENTS: Mapping[str, frozenset[str] | None] = {
    **dict.fromkeys(("name", "uuid", "genid", "title", "description", "metadata", "seclabel"), None),
    **dict.fromkeys(("memory", "currentMemory", "maxMemory", "vcpu", "vcpus", "iothreads", "iothreadids"), None),
    **dict.fromkeys(("defaultiothread", "os", "sysinfo", "features", "cpu", "clock", "pm", "devices"), None),
    **dict.fromkeys(("on_poweroff", "on_reboot", "on_crash", "on_lockfailure"), None),
    "memoryBacking": frozenset(("source", "access", "allocation", "discard", "nosharepages", "hugepages")),
    # A hard limit counts the private memory of both QEMUs while both live; caches follow thread ids.
    "memtune": frozenset(("soft_limit", "min_guarantee")),
    "blkiotune": frozenset(("weight",)),
    "cputune": frozenset(
        (
            *(
                "shares",
                "period",
                "quota",
                "global_period",
                "global_quota",
                "emulator_period",
                "emulator_quota",
            ),
            *("iothread_period", "iothread_quota", "vcpupin", "emulatorpin", "iothreadpin"),
            *("vcpusched", "iothreadsched", "emulatorsched"),
        )
    ),
    "resource": frozenset(("partition",)),
}


def parse(live_xml: str) -> Element:
    """Read a domain's XML; Refused when it is none, or brings a document type."""
    doing = "reading a guest's definition"
    if "<!DOCTYPE" in live_xml:
        raise Refused(doing, expected="XML without a document type", found="<!DOCTYPE")
    try:
        root = ElementTree.fromstring(live_xml)  # noqa: S314  (no document type: no entities)
    except ElementTree.ParseError as problem:
        raise Refused(doing, expected="well-formed XML", found=str(problem)) from problem
    if root.tag != "domain":
        raise Refused(doing, expected="<domain>", found=f"<{root.tag}>")
    return root


@lru_cache(maxsize=64)  # it is asked again and again while a guest stays as it is
def read_definition(live_xml: str) -> Definition:
    """What the live XML says, as far as checks look at it."""
    root = parse(live_xml)
    return Definition(
        machine=attribute(root.find("os/type"), "machine"),
        emulator=root.findtext("devices/emulator", ""),
        vcpus=current_vcpus(root),
        memory=size(root.find("memory")),
        virtualisation=root.get("type", ""),
        ram=_ram(root),
        ram_discard=root.find("memoryBacking/discard") is not None,
        devices=tuple(_device(element) for element in devices(root)),
        features=frozenset(_features(root)),
        on_reboot=root.findtext("on_reboot", "restart"),
        on_poweroff=root.findtext("on_poweroff", "destroy"),
        generation_id=root.find("genid") is not None,
        policy=policy_text(root),
        host_files=tuple(_host_files(root)),
        own_firmware=root.find("os/nvram") is not None or root.find("os/loader[@type='pflash']") is not None,
    )


def _host_files(root: Element) -> Iterator[str]:
    for name in ("kernel", "initrd", "dtb", "loader"):
        if path := root.findtext(f"os/{name}"):
            yield path
    for disk in root.iterfind("devices/disk"):
        for image in images_of(disk):
            if image.get("type") in ("file", "block"):
                yield source_of(image)


def devices(root: Element) -> Iterator[Element]:
    """The devices, without the emulator."""
    return (element for element in root.iterfind("devices/*") if element.tag != "emulator")


def attribute(element: Element | None, name: str) -> str:
    """An attribute's value, "" when the element or the attribute is missing."""
    return "" if element is None else element.get(name, "")


def size(element: Element | None) -> int:
    """A size in bytes; KiB when no unit is given; 0 when the element is missing."""
    return 0 if element is None else amount(element.text or "", element.get("unit", "KiB"))


def amount(number: str, unit: str) -> int:
    """A size in bytes; 0 for what is no number."""
    return int(number) * _UNITS.get(unit, 1024) if number.strip().isdecimal() else 0


def current_vcpus(root: Element) -> int:
    """How many vCPUs are plugged in now."""
    vcpu = root.find("vcpu")
    return int(attribute(vcpu, "current") or root.findtext("vcpu", "1"))


def alias_of(element: Element) -> str:
    """libvirt's alias of a device, which is QEMU's id of it; "" when it has none."""
    return attribute(element.find("alias"), "name")


def source_of(element: Element | None) -> str:
    """Where a disk, interface or character device leads to: the first name that libvirt writes there."""
    source = None if element is None else element.find("source")
    if source is None:
        return ""
    names = ("file", "dev", "path", "bridge", "network", "volume", "name", "dir")
    return next((source.get(name, "") for name in names if source.get(name)), "")


def images_of(disk: Element) -> Iterator[Element]:
    """The disk and the images below it, top first; an empty drive has none: its source is without a name."""
    image: Element | None = disk
    while image is not None and source_of(image):
        yield image
        image = image.find("backingStore")


def image_index(image: Element) -> str:
    """The number that libvirt has given an image, part of the names of its nodes (qemu_block.c)."""
    return attribute(image.find("source"), "index") or image.get("index", "")


def pci_place(root: Element, device: Element) -> tuple[str, str] | None:
    """QEMU's bus and addr of a PCI device; None for any other."""
    address = device.find("address")
    if address is None or address.get("type") != "pci":
        return None
    numbers = {name: int(address.get(name, "0"), 16) for name in ("domain", "bus", "slot", "function")}
    controllers = {item.get("index"): alias_of(item) for item in root.iterfind("devices/controller[@type='pci']")}
    bus = controllers.get(str(numbers["bus"]))
    if not bus or numbers["domain"]:
        return None
    return bus, f"0x{numbers['slot']:x}" + (f".0x{numbers['function']:x}" if numbers["function"] else "")


def _ram(root: Element) -> RamBacking:
    if root.find("memoryBacking/hugepages") is not None:
        return RamBacking.HUGE_PAGES
    shared = attribute(root.find("memoryBacking/access"), "mode") == "shared"
    match attribute(root.find("memoryBacking/source"), "type"):
        case "file":
            return RamBacking.SHARED_FILE if shared else RamBacking.PRIVATE_FILE
        case "memfd":
            return RamBacking.MEMFD
        case "anonymous":
            return RamBacking.ANONYMOUS
        case _:  # shared without a source: libvirt chooses, and the argument list says what
            return RamBacking.UNKNOWN if shared else RamBacking.ANONYMOUS


def qualified(tag: str) -> str:
    """A tag as people write it: "qemu:commandline"."""
    namespace, _, name = tag.removeprefix("{").rpartition("}")
    return f"{_NAMESPACES.get(namespace, namespace)}:{name}" if namespace else name


def _features(root: Element) -> Iterator[str]:
    """Elements whose handling is not known, "cputune/cachetune"."""
    for element in root:
        if element.tag not in KNOWN_ELEMENTS:
            yield qualified(element.tag)
            continue
        known = KNOWN_ELEMENTS[element.tag]
        if known is not None:
            yield from (f"{element.tag}/{qualified(child.tag)}" for child in element if child.tag not in known)
    if any(cell.get("memAccess", "shared") != "shared" for cell in root.iterfind("cpu/numa/cell")):
        yield "cpu/numa/cell memAccess"
    if any(memory.get("access", "shared") != "shared" for memory in root.iterfind("devices/memory")):
        yield "devices/memory access"
    partition = root.findtext("resource/partition", "/machine")
    if partition != "/machine":
        yield f"resource/partition {partition}"


_NO_MARKS: frozenset[str] = frozenset()  # every other empty one is a set of its own


def _device(element: Element) -> Device:
    kind, detail = _kind(element)
    return Device(
        # Most guests have devices that are called alike: such words are kept once.
        element=intern(element.tag),
        kind=intern(kind),
        alias=intern(alias_of(element)),
        source=source_of(element),
        detail=intern(detail),
        marks=frozenset(_marks(element)) or _NO_MARKS,
    )


def _kind(element: Element) -> tuple[str, str]:
    """The kind of a device, and what else tells it from its like."""
    kind, model = (
        element.get("type", ""),
        element.get("model", "") or attribute(element.find("model"), "type"),
    )
    match element.tag:
        case "disk":
            return kind, attribute(element.find("target"), "dev")
        case "tpm" | "rng":
            backend = element.find("backend")
            return attribute(backend, "type") or attribute(backend, "model"), model
        case "filesystem":
            return attribute(element.find("driver"), "type") or kind, source_of(element)
        case "serial" | "console" | "channel" | "parallel":
            return kind, attribute(element.find("target"), "name")
        case "memory" | "video":
            return model, ""
    return kind, model or element.get("mode", "")


# Child of a device -> the mark it leaves.
_CHILD_MARKS: Mapping[str, Mapping[str, str]] = {
    "disk": {
        "iotune": "iotune",
        "throttlefilters": "throttling",
        "shareable": "shareable",
        "transient": "transient",
        "readonly": "read-only",
        "mirror": "mirror",
        "encryption": "encryption",
        "auth": "auth",
        "backingStore/source": "backing-chain",
        "source/nvme": "nvme",
        "source/slices": "slices",
        "source/reservations": "reservations",
        "source/encryption": "encryption",
    },
    "interface": {
        "bandwidth": "bandwidth",
        "filterref": "filter",
        "teaming": "teaming",
        "coalesce": "coalesce",
        "backend[@type='passt']": "passt",
        "link[@state='down']": "link-down",
    },
    "memballoon": {"stats[@period!='0']": "stats"},
}
# (attribute, value or "" for any) of a device -> mark.
_ATTRIBUTE_MARKS: Mapping[str, Mapping[tuple[str, str], str]] = {
    "disk": {("type", "vhostuser"): "vhost-user", ("type", "nvme"): "nvme", ("type", "vhostvdpa"): "vdpa"},
    "interface": {
        ("type", "vhostuser"): "vhost-user",
        ("type", "vdpa"): "vdpa",
        ("type", "user"): "user",
        ("type", "hostdev"): "hostdev",
        ("trustGuestRxFilters", "yes"): "trusted-filters",
    },
    "memballoon": {("freePageReporting", "on"): "free-page-reporting", ("autodeflate", "on"): "autodeflate"},
}


def _marks(element: Element) -> Iterator[str]:
    for path, mark in _CHILD_MARKS.get(element.tag, {}).items():
        if element.find(path) is not None:
            yield mark
    for (name, value), mark in _ATTRIBUTE_MARKS.get(element.tag, {}).items():
        if element.get(name) is not None and value in ("", element.get(name)):
            yield mark
