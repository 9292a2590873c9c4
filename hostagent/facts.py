"""What was seen on the host, frozen: the only thing that planning looks at.

Sizes are bytes. Nothing here does I/O.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Self


@dataclass(frozen=True, order=True)
class Version:
    """A component's upstream version, ordered."""

    major: int
    minor: int
    micro: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``7.2``, ``10.0.2`` or ``1:10.0.2+ds-2~bpo12+1``; ValueError otherwise."""
        found = re.match(r"(?:\d+:)?(\d+)\.(\d+)(?:\.(\d+))?", text)
        if found is None:
            raise ValueError(f"expected a version like 10.0.2, found {text!r}")
        return cls(*(int(part or 0) for part in found.groups()))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.micro}"


class GuestState(StrEnum):
    """A guest's state as libvirt gives it, as far as planning tells states apart."""

    RUNNING = "running"
    PAUSED_BY_OWNER = "paused by its owner"
    PAUSED_OTHERWISE = "paused"  # io-error, migrating, watchdog, ...: state_reason says which
    PM_SUSPENDED = "suspended by the guest"
    SHUTTING_DOWN = "shutting down"
    CRASHED = "crashed"
    SHUT_OFF = "shut off"
    UNKNOWN = "unknown"

    @property
    def active(self) -> bool:
        """Whether a QEMU process belongs to a guest in this state."""
        return self is not GuestState.SHUT_OFF


class RamBacking(StrEnum):
    """How a guest's RAM is backed on the host."""

    SHARED_FILE = "shared file"
    PRIVATE_FILE = "private file"
    MEMFD = "memfd"
    HUGE_PAGES = "huge pages"
    ANONYMOUS = "ordinary"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class RamFile:
    """One RAM block's file on the host."""

    backend: str  # QEMU's id of the memory backend, "pc.ram"
    path: str
    device: int  # st_dev
    inode: int
    size: int


@dataclass(frozen=True)
class RamRoom:
    """What is left for further RAM files, bytes."""

    filesystem: str  # of libvirt's memory_backing_dir: "tmpfs"
    unpromised: int  # its size without that of the RAM files there: guests may not have touched all of theirs yet
    available: int  # of the host's memory (MemAvailable of proc(5))


SYSTEM_QEMU = "system"


@dataclass(frozen=True)
class QemuTree:
    """One QEMU version on the host: the system's own, or a tree of its own beside it."""

    name: str  # SYSTEM_QEMU, or the folder's name below hostagent's qemu directory
    version: Version
    package: str  # the distribution's full version string, or "" when unknown
    emulator: str  # path of qemu-system-x86_64

    def is_build_of(self, other: Self) -> bool:
        """Whether both are the same build, wherever it lies."""
        return self == other or bool(self.package and self.package == other.package)


@dataclass(frozen=True)
class QemuProcess:
    """The QEMU that runs a guest. A pid alone is not an identity; pid and start time are."""

    pid: int
    start_ticks: int  # field 22 of /proc/PID/stat, proc(5)
    exe: str  # what /proc/PID/exe points to, without " (deleted)"
    exe_deleted: bool
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Device:
    """A device of the live definition, as far as checks look at it."""

    element: str  # XML element's name: "disk", "interface", "hostdev", ...
    kind: str  # its type attribute or "" ("bridge", "file", "spice", ...)
    alias: str  # libvirt's alias, "" if it has none
    source: str = ""  # file, device node, bridge or socket path
    detail: str = ""  # model, driver, name; of a disk its target ("vda")
    marks: frozenset[str] = frozenset()  # settings that matter: {"iotune", "link-down", ...}


@dataclass(frozen=True)
class Definition:
    """What the live XML says, reduced to what checks and the rehearsal need."""

    machine: str
    emulator: str
    vcpus: int
    memory: int
    virtualisation: str  # "kvm" or "qemu": libvirt's domain type
    ram: RamBacking
    ram_discard: bool
    devices: tuple[Device, ...]
    features: frozenset[str]  # elements nobody knows how to carry: "numatune", "cputune/cachetune"
    on_reboot: str = "restart"
    on_poweroff: str = "destroy"
    generation_id: bool = False  # <genid>: another one tells the guest that it is a copy
    policy: str = ""  # its own policy, unread: see policy_xml.py
    host_files: tuple[str, ...] = ()  # that its QEMU opens on the host: images, kernel, firmware
    own_firmware: bool = False  # firmware that keeps variables in a file of the guest's


@dataclass(frozen=True)
class Difference:
    """One thing that is no longer as it was when the guest's QEMU started."""

    expected: str  # as the guest booted
    found: str  # as it is now


@dataclass(frozen=True)
class Guest:
    """One libvirt domain."""

    name: str
    uuid: str
    domain_id: int | None  # None when shut off
    state: GuestState
    state_reason: str
    persistent: bool
    autostart: bool
    definition: Definition
    process: QemuProcess | None
    qemu: QemuTree | None  # the tree its process runs from; None: no process, or a binary no tree has
    ram_files: tuple[RamFile, ...]
    drift: tuple[Difference, ...] = ()  # what hotplug, snapshots and the like changed since its QEMU started
    job: str = ""  # a running domain or block job, in words; "" when none
    security_label: str = ""  # of the process, when one is enforced
    label_is_taken: bool = False  # it is one that the settings allow to carry over
    snapshots: int = 0
    checkpoints: int = 0
    argv: tuple[str, ...] = ()  # its arguments, had it booted as it is now; () if nothing changed since
    plugged_taps: tuple[tuple[int, str], ...] = ()  # numbers in them that its QEMU has under others: taps, by name
    memory_room: int | None = None  # bytes that its cgroups let it use beyond what it does; None: no limit
    managed_save: bool = False  # libvirt keeps a state of it, which its next start would load

    @property
    def arguments(self) -> tuple[str, ...]:
        """QEMU's argument list for the guest as it is now; () without a process."""
        return self.argv or (self.process.argv if self.process else ())

    @property
    def loses_writes(self) -> bool:
        """Whether a copy of its memory that is made while it runs would not be whole."""
        return loses_writes(self.definition.virtualisation, self.qemu)


def loses_writes(accelerator: str, qemu: QemuTree | None) -> bool:
    """Whether a QEMU does not know of all that a guest writes while its memory is copied.

    Before 9.0 one that emulates misses writes to pages that it has looked at since (QEMU, "physmem: Fix migration dirty
    bitmap coherency with TCG memory access"); tried with 7.2. KVM keeps its own book.
    """
    return accelerator != "kvm" and (qemu is None or qemu.version < Version(9, 0))


class Freshness(StrEnum):
    """Whether what runs of a component is what is installed."""

    CURRENT = "current"
    OUTDATED = "outdated"
    NOT_THERE = "not there"  # nothing of it runs
    UNKNOWN = "not known"


@dataclass(frozen=True)
class Component:
    """A component of the host: what runs of it, and what would run if it were started anew."""

    name: str  # qemu, libvirtd, kvm, kernel
    running: str
    installed: str
    freshness: Freshness


@dataclass(frozen=True)
class Disk:
    """An image of a guest's disk, where disks may be copied to another host."""

    guest: str  # uuid
    target: str  # "vda"
    path: str
    format: str = ""  # "qcow2" or "raw"
    size: int = 0  # that the guest sees
    fault: str = ""  # why it cannot be copied; "": nothing is known against it


@dataclass(frozen=True)
class Place:
    """Where a copy of a disk would be on a peer."""

    path: str
    room: int = 0  # of its file system
    taken: str = ""  # what is there already
    fault: str = ""  # why nothing can be put there


@dataclass(frozen=True)
class Peer:
    """Another host, as far as a guest that would migrate to it looks at it."""

    name: str  # in the settings
    uri: str
    fault: str = ""  # why nothing more is known of it; "": it answered
    shared: tuple[str, ...] = ()  # directories that are the same there, by the settings
    max_guests: int = 0  # that may be on it; 0: no limit
    libvirt: Version | None = None
    qemu: Version | None = None  # that it starts guests on
    emulator: str = ""  # and where that is there
    machines: frozenset[tuple[str, str]] = frozenset()  # virtualisation and machine type
    memory_left: int = 0  # that no guest of its was promised, and that is free or holds what can be read again
    networks: frozenset[str] = frozenset()  # libvirt's, that are active
    guests: frozenset[tuple[str, str]] = frozenset()  # name and uuid of those that it knows, and their number counts
    misfits: tuple[tuple[str, str], ...] = ()  # uuid of a guest, and what of its processor this host does not have
    places: tuple[Place, ...] = ()  # for the disks that would be copied there
    tunnelled: bool = False  # everything crosses inside the connection of the two libvirts

    def shares(self, path: str) -> bool:
        """Whether a file of this host is the same there, by the settings."""
        return any(PurePosixPath(path).is_relative_to(folder) for folder in self.shared)


@dataclass(frozen=True)
class Destinations:
    """Where guests can migrate to, and whether they come back."""

    peers: tuple[Peer, ...] = ()  # in the order of the settings
    comes_back: bool = True
    home_uri: str = ""  # this host's libvirt, as the peers reach it; "": nobody has said
    copies_storage: bool = False  # disks that a peer does not see are copied to it
    lossy_emulation: bool = False  # guests of which some writes may be lost on the way go all the same
    disks: tuple[Disk, ...] = ()  # if they are: every image of guests that may migrate


@dataclass(frozen=True)
class Host:
    """The host and everything on it that an update looks at."""

    hostname: str
    kernel: str
    boot_id: str
    libvirt: Version
    libvirt_uri: str
    qemu: tuple[QemuTree, ...]
    guests: tuple[Guest, ...]
    lock_manager: str  # "" when none: libvirt's lock_manager setting
    memory_backing_dir: str
    ram_room: RamRoom | None = None  # None: there is no such directory
    reconnect_hook: bool = False  # a qemu hook of somebody else's exists: it runs at every reconnect of libvirt's
    hold_hook: bool = False  # ours does, of this version
    machined: Version | None = None  # systemd-machined's version when it registers guests
    libvirt_clients: int = 0
    destinations: Destinations = Destinations()

    @property
    def system_qemu(self) -> QemuTree | None:
        """The system's own QEMU."""
        return next((tree for tree in self.qemu if tree.name == SYSTEM_QEMU), None)

    @property
    def copies_of_system_qemu(self) -> tuple[QemuTree, ...]:
        """Trees of the same build."""
        own = self.system_qemu
        return tuple(tree for tree in self.qemu if own is not None and tree != own and tree.is_build_of(own))

    def guest(self, name: str) -> Guest | None:
        """The guest of that name, or None."""
        return next((guest for guest in self.guests if guest.name == name), None)
