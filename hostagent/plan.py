"""What will be done to each guest, and why not more: values, no behaviour beyond asking."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from hostagent.facts import Component, QemuTree


class ClockPolicy(StrEnum):
    """What to do with a guest's clock after its pause."""

    STEP = "step"  # set it forward when it is behind
    REPORT = "report"  # measure only
    OFF = "off"


class Method(StrEnum):
    """How a guest is carried through an update, the least disruptive first."""

    IN_PLACE = "in-place"  # the RAM stays where it is
    IN_PLACE_COPY = "in-place-copy"  # copied within the host while the guest runs, once: it is in a file from then on
    LIVE_MIGRATE = "live-migrate"  # to another host while the guest runs, and perhaps back
    REBOOT = "reboot"  # shut down in order, and started anew

    @property
    def in_place(self) -> bool:
        """Whether the guest stays on its host, with its memory."""
        return self in (Method.IN_PLACE, Method.IN_PLACE_COPY)


class Technique(StrEnum):
    """How an in-place method is done."""

    HANDOVER = "handover"  # a new QEMU beside the old one takes the guest over
    HOLD = "hold"  # saved without its RAM, which stays, and restored: its QEMU is gone meanwhile


class Reason(StrEnum):
    """Why a method is out: bounded, so that it can label a metric."""

    STATE = "state"
    RAM_ORDINARY = "ram-ordinary"
    RAM_NOT_SHARED = "ram-not-shared"
    RAM_DISCARD = "ram-discard"
    RAM_FILE = "ram-file"
    RAM_ROOM = "ram-room"
    SPICE = "spice"
    GRAPHICS = "graphics"
    PASSTHROUGH = "passthrough"
    VHOST_USER = "vhost-user"
    VIRTIOFS = "virtiofs"
    TPM = "tpm"
    USER_NETWORK = "user-network"
    JOB = "job"
    OPTION = "option"
    CHANGED_SINCE_BOOT = "changed-since-boot"
    SETTING_NOT_CARRIED = "setting-not-carried"
    FEATURE = "feature"
    LOCK_MANAGER = "lock-manager"
    SECURITY_LABEL = "security-label"
    PROCESS = "process"
    BINARY = "binary"
    LIFECYCLE = "lifecycle"
    BOOT_PROOF = "boot-proof"
    BUDGET = "budget"
    POLICY = "policy"
    NOT_ASKED = "not-asked"
    UPDATE_DOMAIN = "update-domain"
    PEER = "peer"
    PEER_ROOM = "peer-room"
    PEER_CPU = "peer-cpu"
    PEER_MACHINE = "peer-machine"
    PEER_VERSION = "peer-version"
    PEER_NETWORK = "peer-network"
    STORAGE = "storage"
    HOST = "host"


@dataclass(frozen=True)
class Blocker:
    """One reason why a method cannot be used for a guest."""

    reason: Reason
    expected: str
    found: str
    hint: str = ""

    def __str__(self) -> str:
        line = f"expected {self.expected}, found {self.found}"
        return f"{line} (hint: {self.hint})" if self.hint else line


class Verdict(StrEnum):
    """What an update would do to a guest."""

    UPDATE = "update"
    UP_TO_DATE = "up to date"
    NOT_RUNNING = "not running"
    MOVED_ON = "moved on since"  # of a way back: somebody brought it elsewhere
    BLOCKED = "blocked"


@dataclass(frozen=True)
class Prediction:
    """How long a guest will probably stand still, and what that rests on."""

    pause_seconds: float
    measured: int  # earlier pauses on this host; 0: a first estimate
    of_itself: bool  # whether those were the guest's own
    copy_seconds: float | None = None  # how long its RAM is copied for beforehand, while it runs; None: not at all


@dataclass(frozen=True)
class Way:
    """A method by which a guest could be updated: a rung of its ladder."""

    method: Method
    technique: Technique | None  # of a method in place
    predicted: Prediction | None
    blockers: tuple[Blocker, ...]  # every reason why it cannot be; () when it can
    copied_bytes: int = 0  # of RAM; 0 when it is kept
    peer: str = ""  # where it migrates to
    copied_disks: tuple[str, ...] = ()  # files of this host that are copied there


@dataclass(frozen=True)
class GuestPlan:
    """What will be done to one guest."""

    name: str
    uuid: str
    verdict: Verdict
    method: Method | None
    technique: Technique | None
    before: QemuTree | None
    blockers: tuple[Blocker, ...]
    budget_seconds: float
    predicted: Prediction | None = None  # of a guest that would be updated
    copied_bytes: int = 0  # of RAM; 0 when it is kept
    clock: ClockPolicy = ClockPolicy.STEP
    ways: tuple[Way, ...] = ()  # its ladder; the first that nothing is against is the one above
    peer: str = ""  # where it migrates to
    boot_tcp: str = ""  # what answers once it has booted, if it has no agent: "HOST:PORT"
    copied_disks: tuple[str, ...] = ()  # files of this host that are copied there

    @property
    def lower(self) -> tuple[Way, ...]:
        """What it could be updated by if the planned method fails, the least disruptive first."""
        methods = [way.method for way in self.ways]
        at = methods.index(self.method) + 1 if self.method in methods else 0
        return tuple(way for way in self.ways[at:] if not way.blockers)

    def by(self, way: Way) -> GuestPlan:
        """The same, by that way."""
        return replace(
            self,
            method=way.method,
            technique=way.technique,
            predicted=way.predicted,
            copied_bytes=way.copied_bytes,
            peer=way.peer,
            copied_disks=way.copied_disks,
        )


class _OfGuests:
    """What a plan says of its guests."""

    guests: tuple[GuestPlan, ...]

    @property
    def to_update(self) -> tuple[GuestPlan, ...]:
        """The guests that would be carried over, or held."""
        return tuple(guest for guest in self.guests if guest.verdict is Verdict.UPDATE)

    @property
    def blocked(self) -> tuple[GuestPlan, ...]:
        """The guests that an asked-for update cannot take; where all have to be held they stop everything."""
        return tuple(guest for guest in self.guests if guest.verdict is Verdict.BLOCKED)


@dataclass(frozen=True)
class Place:
    """Which part of a roll an update is: of guests that go in groups, one group after the other."""

    roll: str  # an id, which all updates of the roll share
    group: int  # from 1
    groups: int


@dataclass(frozen=True)
class Plan(_OfGuests):
    """What will be done on the host; made from facts alone."""

    component: str
    to: QemuTree
    guests: tuple[GuestPlan, ...]
    blockers: tuple[Blocker, ...]  # of the host: they stop every guest
    undoes: str = ""  # the update that it brings guests back from
    adopts: bool = False  # guests stay on their QEMU; only their RAM goes into files
    groups: tuple[tuple[str, ...], ...] = ()  # names of guests, in the order in which they go; (): all at once
    place: Place | None = None  # of a plan that is for one group of another's


@dataclass(frozen=True)
class HostPlan(_OfGuests):
    """What will be swapped for the whole host, and what that means for its guests; made from facts alone."""

    component: str  # what was asked for
    changes: tuple[Component, ...]  # what runs, and what will
    to: QemuTree | None  # where held guests are brought to as well; None: they stay
    guests: tuple[GuestPlan, ...]
    blockers: tuple[Blocker, ...]
    swaps: tuple[str, ...]  # the components, in the order in which they are swapped
    swap_seconds: float  # how long that will probably take, with all guests standing still
