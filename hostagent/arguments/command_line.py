"""QEMU's argument list as libvirt 9.0 and 11.3 write it: read, judged, and turned into the new QEMU's.

Source of the shapes: libvirt, src/qemu/qemu_command.c. Nothing here starts or opens anything.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Self

from hostagent.arguments.known_limits import LIMITS, SHARED_FILE_HINT, Limit
from hostagent.arguments.qemu_options import KIND, Option, Property, join_list, json_option, read_options
from hostagent.arguments.tested_options import TESTED, TESTED_SWITCHES, TESTED_WORDS, Tested
from hostagent.plan import Blocker, Reason

CPU_DEVICE = "-x86_64-cpu"  # how the kind of a vCPU that is a device ends, after its model
DIMM = "pc-dimm"
BLOCK_NAME = "x-use-canonical-path-for-ramblock-id"
_NAMELESS = ("memory-backend-ram", "memory-backend-memfd")
_WAITING = ("-incoming", "defer")
# libvirt 9.0 writes these; QEMU 10.0 knows them no more ("invalid option", tried). In 7.2 they do nothing
# but set the property (QEMU, system/vl.c).
_RENAMED = {
    f"no-{name}": Option("machine", ("-machine", f"{name}=off"), (Property(name, "off"),)) for name in ("hpet", "acpi")
}


class DescriptorKind(StrEnum):
    """What an inherited file descriptor is for; each kind is carried over in its own way."""

    LISTENER = "listener"
    TAP = "tap"
    VHOST = "vhost"
    FDSET = "fdset"


@dataclass(frozen=True)
class DescriptorUse:
    """A place in the argument list that names an inherited file descriptor."""

    kind: DescriptorKind
    number: int  # the descriptor's number when that QEMU started
    owner_id: str  # id of the chardev or netdev, or the fdset's number
    opaque: str = ""  # libvirt's note on an fdset's descriptor, "serial0-source"


@dataclass(frozen=True)
class RamBackend:
    """A memory backend that is a file."""

    id: str
    path: str
    size: int


@dataclass(frozen=True)
class NamelessRam:
    """A memory backend that no other process can map: ordinary RAM, or a memfd."""

    id: str
    size: int
    named_by_default: bool  # in the migration stream: as any memfd or file of its machine type

    @classmethod
    def of(cls, option: Option) -> Self:
        """Read its -object."""
        by_default = option.kind == "memory-backend-memfd" and not option.has(BLOCK_NAME)
        return cls(option.get("id"), option.size(), by_default)

    @property
    def file_name(self) -> str:
        """The name that libvirt gives the file of such RAM: of a DIMM the device's alias (qemuGetMemoryBackingPath)."""
        return self.id.removeprefix("mem")

    def in_file(self, folder: str) -> Option:
        """The same RAM in a shared file, as libvirt 9.0 and 11.3 write it (qemuBuildMemoryBackendProps).

        The block has the same name in the migration stream. That of ordinary RAM is the backend's id alone; for files
        and memfds QEMU's oldest machine types (until 3.1) have another rule, if nothing is said.
        """
        properties = {
            "qom-type": "memory-backend-file",
            "id": self.id,
            "mem-path": f"{folder}/{self.file_name}",
            "share": True,
            **({} if self.named_by_default else {BLOCK_NAME: False}),
            "size": self.size,
        }
        return json_option("object", properties)


@dataclass(frozen=True)
class BlockNode:
    """A node of the block graph at boot."""

    name: str
    driver: str
    filename: str  # "" for a format node
    file: str  # the node below a format node, "" for a storage node
    backing: str  # the node of the backing image, "" when there is none
    read_only: bool


@dataclass(frozen=True)
class CommandLine:
    """A QEMU's argument list, without loss."""

    binary: str
    options: tuple[Option, ...]

    @classmethod
    def parse(cls, argv: Sequence[str]) -> Self:
        """Read an argument list as /proc/PID/cmdline holds it; ValueError when it is empty."""
        if not argv:
            raise ValueError("expected an argument list, found an empty one")
        return cls(argv[0], tuple(read_options(argv[1:])))

    @property
    def argv(self) -> tuple[str, ...]:
        """Exactly what was parsed."""
        return (self.binary, *(word for option in self.options for word in option.words))

    def named(self, name: str, kind: str | None = None) -> Iterator[Option]:
        """The options of that name, in order, and of that kind if one is given."""
        return (item for item in self.options if item.name == name and kind in (None, item.kind))

    def _first(self, name: str) -> Option:
        return next(self.named(name), Option(name, ()))

    @property
    def machine_type(self) -> str:
        """The machine type, "pc-q35-7.2"."""
        return self._first("machine").kind

    @property
    def accelerator(self) -> str:
        """What runs the guest's code: "kvm" or "tcg"."""
        return self._first("accel").kind or self._first("machine").get("accel")

    @property
    def vcpus(self) -> int:
        """How many vCPUs the guest has, those that are devices of their own too; 0 when the list does not say."""
        count = self._first("smp").get("cpus")
        return int(count) + len(self.plugged_vcpus()) if count.isdecimal() else 0

    def plugged_vcpus(self) -> tuple[str, ...]:
        """The ids of vCPUs that are devices of their own."""
        return tuple(item.get("id") for item in self.named("device") if item.kind.endswith(CPU_DEVICE))

    @property
    def memory(self) -> int:
        """The RAM's size in bytes (a bare number counts MiB), DIMMs included; 0 when the list does not say."""
        return self._first("m").size(bare="m") + sum(backend.size() for _, backend in self.dimms())

    def dimms(self) -> Iterator[tuple[Option, Option]]:
        """Each DIMM with its memory backend."""
        backends = {item.get("id"): item for item in self.named("object")}
        for device in self.named("device", DIMM):
            if device.get("memdev") in backends:
                yield device, backends[device.get("memdev")]

    def ram_backends(self) -> tuple[RamBackend, ...]:
        """The RAM's files."""
        return tuple(
            RamBackend(item.get("id"), item.get("mem-path"), item.size())
            for item in self.named("object", "memory-backend-file")
        )

    def nameless_ram(self) -> tuple[NamelessRam, ...]:
        """The guest's RAM, as far as it has to be copied to be kept; empty when it is in files."""
        return tuple(NamelessRam.of(item) for item in self.named("object") if item.kind in _NAMELESS)

    def descriptors(self) -> tuple[DescriptorUse, ...]:
        """Every reference to an inherited file descriptor, in order."""
        return tuple(use for option in self.options for use in _descriptors(option))

    def device_ids(self) -> tuple[str, ...]:
        """The ids of the devices; companions of a USB controller have none."""
        return tuple(item.get("id") for item in self.named("device") if item.has("id"))

    def chardev_ids(self) -> tuple[str, ...]:
        """The ids of the character devices' backends."""
        return tuple(item.get("id") for item in self.named("chardev"))

    def netdev_ids(self) -> tuple[str, ...]:
        """The ids of the network backends."""
        return tuple(item.get("id") for item in self.named("netdev"))

    def iothread_ids(self) -> tuple[str, ...]:
        """The ids of the iothreads."""
        return tuple(item.get("id") for item in self.named("object", "iothread"))

    def block_nodes(self) -> tuple[BlockNode, ...]:
        """The block graph at boot, in order."""
        return tuple(
            BlockNode(
                name=item.get("node-name"),
                driver=item.kind,
                filename=item.get("filename"),
                file=item.get("file"),
                backing=item.get("backing").removeprefix("null"),
                read_only=item.get("read-only") == "on",
            )
            for item in self.named("blockdev")
        )

    @property
    def has_display(self) -> bool:
        """Whether it listens for VNC clients, and so at a place that only one process can have."""
        return any(self.named("vnc"))

    def handed_over(self, binary: str, ram_folder: str = "", display_socket: str = "") -> "CommandLine":
        """The new QEMU's list: it waits for the state and stays paused (-S); else as it was, word for word.

        But for switches that QEMU 9 took away: their -machine property means the same to every version. And for RAM
        that has no name, which is in files below `ram_folder` from now on, and a VNC display, which waits at a socket
        of its own.
        """
        kept = [_RENAMED.get(item.name, item) for item in self.options if item.name != "incoming"]
        kept = [NamelessRam.of(item).in_file(ram_folder) if item.kind in _NAMELESS else item for item in kept]
        kept = [_displayed_at(item, display_socket) if item.name == "vnc" else item for item in kept]
        stop = Option("S", ("-S",))
        where = kept.index(stop) if stop in kept else len(kept)
        rest = [item for item in kept if item.name != "S"]
        return CommandLine(binary, (*rest[:where], stop, *rest[where:], Option("incoming", _WAITING)))


def _displayed_at(option: Option, socket: str) -> Option:
    """The same display at a unix socket."""
    properties = [Property("vnc", f"unix:{socket}") if item.name == "vnc" else item for item in option.properties]
    place, rest = properties[0].value.replace(",", ",,"), join_list(properties[1:])
    (made,) = read_options(("-vnc", f"{place},{rest}" if rest else place))
    return made


_DESCRIPTORS = {
    "chardev": (("fd", DescriptorKind.LISTENER),),
    "netdev": (
        ("fd", DescriptorKind.TAP),
        ("fds", DescriptorKind.TAP),
        ("vhostfd", DescriptorKind.VHOST),
        ("vhostfds", DescriptorKind.VHOST),
    ),
    "add-fd": (("fd", DescriptorKind.FDSET),),
}


def _descriptors(option: Option) -> Iterator[DescriptorUse]:
    for name, kind in _DESCRIPTORS.get(option.name, ()):
        for number in option.get(name).split(":"):
            if number.isdecimal():
                owner = option.get("set") if kind is DescriptorKind.FDSET else option.get("id")
                yield DescriptorUse(kind, int(number), owner, option.get("opaque"))


@dataclass(frozen=True)
class Judged:
    """What planning asks of a list."""

    ram_backends: tuple[RamBackend, ...]
    nameless_bytes: int  # of RAM that has to be copied to be kept
    blockers: tuple[Blocker, ...]


@lru_cache(maxsize=2048)  # a guest is planned for again and again while its list stays as it is
def judged(argv: tuple[str, ...]) -> Judged:
    """Read a list and judge it; ValueError when it is empty."""
    line = CommandLine.parse(argv)
    return Judged(line.ram_backends(), sum(ram.size for ram in line.nameless_ram()), blockers(line))


def blockers(command_line: CommandLine) -> tuple[Blocker, ...]:
    """Everything in the list that the handover has not been tested with, or is known not to take."""
    found = [blocker for option in command_line.options for blocker in _judge(option)]
    return (*found, *_ram_without_backend(command_line))


def _ram_without_backend(command_line: CommandLine) -> Iterator[Blocker]:
    """Plain -m: RAM of QEMU's own, which nobody else can map."""
    backend = command_line._first("machine").get("memory-backend")
    backends = {item.get("id"): item.kind for item in command_line.named("object") if "memory-backend" in item.kind}
    nameless = [name for name, kind in backends.items() if kind in _NAMELESS]
    if nameless and len(nameless) != len(backends):
        yield Blocker(
            Reason.RAM_ORDINARY, "RAM that is all in files, or none of it", f"{', '.join(nameless)} without a file"
        )
    if not backends or (backend and backend not in backends):
        yield Blocker(
            Reason.RAM_ORDINARY,
            "RAM in a shared file",
            f"-machine memory-backend={backend} without its -object" if backend else "-m without a memory backend",
            SHARED_FILE_HINT,
        )


def _judge(option: Option) -> Iterator[Blocker]:
    if option.unreadable:
        yield Blocker(Reason.OPTION, "an argument that can be read", f"{option.argument!r} ({option.unreadable})")
        return
    limits = [limit for limit in LIMITS if _meets(option, limit)]
    yield from (_limit_blocker(option, limit) for limit in limits)
    if any(not limit.property for limit in limits):
        return
    if option.name in TESTED_SWITCHES:
        return
    if option.name in TESTED_WORDS:
        if not TESTED_WORDS[option.name].allows(option.argument):
            yield _untested(f"-{option.name} {TESTED_WORDS[option.name].words}", " ".join(option.words))
        return
    if option.name not in TESTED:
        yield _untested("tested options", " ".join(option.words))
        return
    tested = next((rule for kind, rule in TESTED[option.name].items() if re.fullmatch(kind, option.kind)), None)
    if tested is None:
        yield _untested(f"a tested -{option.name}", str(option))
        return
    if option.kind == "memory-backend-file" and not option.has("share"):
        yield Blocker(Reason.RAM_NOT_SHARED, "RAM in a shared file", f"{option}, not shared", SHARED_FILE_HINT)
    yield from _untested_properties(option, tested, besides={limit.property for limit in limits})


def _meets(option: Option, limit: Limit) -> bool:
    if option.name != limit.option or not re.fullmatch(limit.kind, option.kind):
        return False
    return not limit.property or any(
        item.name == limit.property and re.fullmatch(limit.values, item.value) for item in option.properties
    )


def _limit_blocker(option: Option, limit: Limit) -> Blocker:
    shown = f"{option} {limit.property}={option.get(limit.property)}" if limit.property else str(option)
    return Blocker(limit.reason, limit.expected, shown, limit.hint)


def _untested_properties(option: Option, tested: Tested, *, besides: set[str]) -> Iterator[Blocker]:
    for item in option.properties:
        if item.name in besides or item.name == KIND.get(option.name):
            continue
        values = tested.properties.get(item.name)
        if values is None and tested.others is not None and re.fullmatch(tested.others[0], item.name):
            values = tested.others[1]
        shown = f"{option} {item.name}={item.value}"
        if values is None:
            yield _untested(f"tested properties of -{option.name}", shown)
        elif not values.allows(item.value):
            yield _untested(f"{item.name}={values.words}", shown)


def _untested(expected: str, found: str) -> Blocker:
    return Blocker(
        Reason.OPTION,
        expected,
        found,
        "nobody has tried a handover with it: live-migrate or restart the guest, or ask for it to be tested",
    )
