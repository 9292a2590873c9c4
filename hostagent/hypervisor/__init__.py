"""What an update asks of libvirt and QEMU, in hostagent's own verbs.

The real things (`libvirt.py`, `qmp.py`, `qemu_process.py`, `daemon.py`) and the in-memory fake (`fake.py`) both keep
these protocols and pass the same contract tests. Seconds everywhere; a call that gets no answer in its time raises
OutcomeUnknown, and the caller asks the world.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from hostagent.clock import GuestAgent
from hostagent.facts import Guest, GuestState, Host
from hostagent.libvirt_files.capability_cache import CapabilityCache
from hostagent.libvirt_files.vnc_display import VncDisplay
from hostagent.policy import PolicyPart


class RunState(StrEnum):
    """QEMU's run state, as `query-status` names it (QAPI RunState); others are not acted on."""

    RUNNING = "running"
    PAUSED = "paused"
    PRELAUNCH = "prelaunch"
    INMIGRATE = "inmigrate"
    FINISH_MIGRATE = "finish-migrate"
    POSTMIGRATE = "postmigrate"
    OTHER = "other"


class ShutDownBy(StrEnum):
    """How a guest is asked to shut itself down."""

    AGENT = "its agent"
    ACPI = "ACPI"  # as if somebody pressed its power button


class MoveStatus(StrEnum):
    """How far the crossing of device state is (QAPI MigrationStatus, folded)."""

    NONE = "none"
    UNDER_WAY = "under way"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True)
class Move:
    """One side's view of the crossing."""

    status: MoveStatus
    ram_bytes: int = 0  # bytes of RAM that crossed; far below the RAM's size when it was kept
    error: str = ""
    ram_left: int | None = None  # bytes of RAM that are yet to cross in this pass; None before the first has begun
    ram_total: int = 0


@dataclass(frozen=True)
class ProcessId:
    """A process, told apart from a later one with the same pid by its start (proc(5), field 22)."""

    pid: int
    start_ticks: int


@dataclass(frozen=True)
class Moment:
    """When QEMU said something: its own wall-clock stamp and our monotonic one on arrival, seconds.

    The wall clock less the monotonic one, before it said so and on arrival, tells whether the wall clock was set.
    """

    qemu_wall: float
    monotonic: float
    ahead_before: float
    ahead: float


@dataclass(frozen=True)
class Inventory:
    """What a QEMU says it is made of; compared between two of them, and with the argument list."""

    devices: tuple[str, ...]  # ids below /machine/peripheral
    block_nodes: Mapping[str, str]  # node name -> file name
    chardevs: tuple[str, ...]
    terminals: Mapping[str, str]  # character device -> the pseudo terminal that QEMU opened for it
    iothreads: Mapping[str, int]  # id -> thread id
    vcpu_threads: Mapping[int, int]  # vCPU index -> thread id
    objects: tuple[str, ...]
    memory_devices: tuple[str, ...]
    ram_named_by_path: Mapping[str, bool]  # memory backend -> how its block is called in the stream: by path, or id
    jobs: tuple[str, ...]
    fdsets: Mapping[int, int]  # fdset number -> descriptor in that process


@dataclass(frozen=True)
class Uncarried:
    """What was set through a monitor, and neither arguments nor the stream hold."""

    throttles: Mapping[
        str, Mapping[str, object]
    ]  # place of a block device in QOM -> arguments of block_set_io_throttle
    polling: Mapping[str, int]  # balloon's id -> how often it asks for statistics, seconds


class Sender(Protocol):
    """What can be asked of a QEMU that sends its state, also by way of libvirt, while that has its monitor."""

    def run_state(self) -> RunState: ...
    def capabilities(self) -> Mapping[str, bool]: ...
    def set_capabilities(self, wanted: Mapping[str, bool]) -> None: ...
    def parameters(self) -> Mapping[str, object]: ...
    def set_parameters(self, wanted: Mapping[str, object]) -> None: ...
    def blocked_reasons(self) -> tuple[str, ...]: ...
    def send_state(self, channel: int) -> None: ...
    def move(self) -> Move: ...
    def wait_begun(self, within_seconds: float) -> None:
        """Wait until the crossing is set up: QEMU knows from then on what the guest writes. Failed when it is not."""
        ...

    def wait_sent(self, within_seconds: float) -> Move:
        """Wait until all of the RAM has crossed once, or the crossing has ended, or that long."""
        ...

    def halt(self) -> None:
        """Have the guest stand still."""
        ...

    def go_on(self) -> None:
        """Have it run again."""
        ...

    def put_ballast(self, *, bitmap: bool) -> None:
        """Add an empty block node that no guest sees; with a bitmap on it a copy does not end by itself.

        QEMU stops the guest for the rest of a copy when less is left than it can send within `downtime-limit`. Of a
        bitmap nothing is sent before that (migration/block-dirty-bitmap.c): at a limit of 0 the moment never comes.
        """
        ...

    def drop_ballast(self) -> None:
        """Take it away again; done when there is none."""
        ...

    def watch_dirtying(self) -> None:
        """Begin to measure how fast the guest writes to its RAM; it takes a second."""
        ...

    def dirtying(self) -> float | None:
        """What was measured, bytes per second; None when it has not been measured yet."""
        ...


class Monitor(Sender, Protocol):
    """The one connection to a QEMU's monitor. While it is open nobody else gets an answer there."""

    def answer_within(self, left: Callable[[], float]) -> None:
        """From now on wait for an answer for as long as this says (seconds), and hardly longer."""
        ...

    def inventory(self) -> Inventory: ...
    def display(self) -> str:
        """Where its VNC display is, as VncDisplay.place says it; "" when nobody can connect to it."""
        ...

    def open_display(self, display: VncDisplay) -> None:
        """Have the VNC display there, with its password; done when it is there already."""
        ...

    def uncarried(self) -> Uncarried: ...
    def set_again(self, wanted: Uncarried, *, links_down: Collection[str], reboot: str) -> None:
        """Set what another QEMU had: `links_down` are network cards, `reboot` is what a reboot of the guest does."""
        ...

    def reconnect_questions(self) -> None:
        """Ask everything that libvirt asks when its daemon comes back; raises Failed on the first refusal."""
        ...

    def receive_state(self, channel: int) -> None: ...
    def wait_stopped(self, within_seconds: float) -> bool:
        """Wait until the guest stands still for the last of its state; whether it did."""
        ...

    def wait_moved(self, within_seconds: float) -> MoveStatus:
        """Wait until the crossing has ended on this side, and how; OutcomeUnknown when it has not in time."""
        ...

    def resume(self, within_seconds: float) -> None:
        """Run the vCPUs; returns when QEMU has said that they run."""
        ...

    def stop(self, within_seconds: float) -> None: ...
    def quit(self) -> None: ...
    def stopped_at(self) -> Moment | None: ...
    def resumed_at(self) -> Moment | None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Monitor: ...
    def __exit__(self, *_: object) -> None: ...


BeforeItsEnd = Callable[[bytes, Callable[[], bool]], None]
"""Called with a guest's state before libvirt ends its QEMU, and with what says whether libvirt still waits."""


@dataclass(frozen=True)
class Standing:
    """What libvirt says of a guest at one moment; quicker to be had than its facts."""

    state: GuestState
    reason: str
    process: ProcessId | None
    emulator: str
    job: str = ""
    marked: bool = False  # hostagent's mark is in its live definition: it was restored by us


@dataclass(frozen=True)
class LaunchOrder:
    """How to start the new QEMU beside the old one, in its surroundings.

    Descriptor numbers are those of the argument list; the new process gets its own at the same numbers.
    """

    old: ProcessId
    argv: tuple[str, ...]
    listeners: Mapping[int, tuple[Path, Path]]  # number -> (path to bind, the old socket whose owner and mode it takes)
    taken_over: Mapping[int, int]  # number -> descriptor in the old process to duplicate (taps, log pipes)
    vhosts: tuple[int, ...]  # numbers that get a fresh /dev/vhost-net
    pid_file: Path  # created, with the pid in it, and kept locked by the new process


class Launch(Protocol):
    """A process that waits, before it becomes the new QEMU, until its pid is in the journal.

    A context manager: one that was not told to go ends at its exit.
    """

    @property
    def process(self) -> ProcessId: ...
    def go(self) -> None: ...
    def __enter__(self) -> Launch: ...
    def __exit__(self, *_: object) -> None: ...


class Qemu(Protocol):
    """The QEMU processes of the host."""

    def identify(self, pid: int) -> ProcessId: ...
    def alive(self, process: ProcessId) -> bool: ...
    def leaving(self, process: ProcessId) -> bool:
        """Whether it still exists and runs nothing any more: it was killed, and has yet to give back what it has."""
        ...

    def owner(self, process: ProcessId) -> tuple[int, int]:
        """User and group that it runs as."""
        ...

    def launch(self, order: LaunchOrder) -> Launch: ...
    def kill(self, process: ProcessId, within_seconds: float) -> None:
        """End it by SIGKILL and see it gone; done when it is gone already."""
        ...

    def wait_gone(self, process: ProcessId, within_seconds: float) -> bool: ...
    def monitor(self, path: Path, within_seconds: float) -> Monitor: ...
    def flush(self, process: ProcessId, files: tuple[str, ...], within_seconds: float) -> None:
        """Bring what the host has of these images onto their disks: QEMU waits for that while the guest stands still.

        Raises OutcomeUnknown when a disk does not answer in time.
        """
        ...

    def place_threads(self, old: ProcessId, new: ProcessId, pairs: Mapping[int, int]) -> None:
        """Give each new thread (value) the cgroup, affinity, policy and priority of its old one (key)."""
        ...

    def differences(self, old: ProcessId, new: ProcessId, *, opened: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Where the surroundings differ beyond the explained list; `opened` are files that only the new one has."""
        ...

    def tap_descriptor(self, process: ProcessId, name: str) -> int:
        """The descriptor of the tap of that name in the process; Failed when it has none."""
        ...

    def tap_settings(self, process: ProcessId, taps: tuple[int, ...]) -> Mapping[int, str]:
        """Descriptor -> its settings, as text that put_taps understands."""
        ...

    def put_taps(self, process: ProcessId, settings: Mapping[int, str]) -> None:
        """Set them; of a card that was taken out meanwhile there is nothing to set."""
        ...

    def keeping_taps(self, process: ProcessId, settings: Mapping[int, str]) -> AbstractContextManager[None]:
        """Write the settings back as often as a starting QEMU resets them."""
        ...

    def ram_inodes(self, process: ProcessId) -> frozenset[tuple[int, int]]:
        """(device, inode) of every file that the process maps shared and writable."""
        ...

    def log_pipes(self, process: ProcessId) -> tuple[int, ...]:
        """Descriptors of pipes that lead out of the process beside its output: one of each, in their order."""
        ...

    def same_file(self, one: ProcessId, fd: int, other: ProcessId, other_fd: int) -> bool: ...
    def last_words(self, guest: str, within_seconds: float = 0.0) -> str:
        """What a new QEMU of that guest wrote before it left; "" if nothing. virtlogd may write it a moment later."""
        ...

    def remove_log(self, guest: str) -> None:
        """Remove the log of a guest that is gone for good."""
        ...


class Daemon(Protocol):
    """libvirt's daemon, as something to stop and to start, and the lock that keeps it out."""

    def is_up(self) -> bool: ...
    def stop(self, within_seconds: float) -> None: ...
    def start(self, within_seconds: float) -> None:
        """Start it and wait until it answers."""
        ...

    def restart_hint(self) -> str:
        """The command with which a person would start it."""
        ...


class Libvirt(Protocol):
    """libvirt through its API."""

    def host(self) -> Host: ...
    def guest(self, uuid: str) -> Guest | None:
        """The guest's facts now; None when libvirt does not know it."""
        ...

    def settled(self, uuid: str) -> None:
        """Wait until libvirt has come back to the guest after a start of its daemon; raises Failed when it has not."""
        ...

    def live_xml(self, uuid: str) -> str: ...
    def sender(self, uuid: str) -> AbstractContextManager[Sender]:
        """The guest's QEMU by way of libvirt, which has its monitor while the daemon is up."""
        ...

    def adopt_definition(self, uuid: str) -> bool:
        """Have the guest's RAM in shared files from its next boot on; whether that changed its definition."""
        ...

    def put_policy(self, uuid: str, own: PolicyPart) -> None:
        """Have that, and nothing else, as the guest's own policy, in its live definition and its persistent one.

        Raises Failed when it does not stand in both afterwards.
        """
        ...

    def capability_cache(self, emulator: str, virtualisation: str, machine: str) -> CapabilityCache:
        """libvirt's own cache on that emulator, warmed first."""
        ...

    def capability_filters(self) -> tuple[str, ...]:
        """The setting of that name in qemu.conf."""
        ...

    def memory_backing_dir(self) -> str:
        """Where libvirt puts RAM files, from qemu.conf."""
        ...

    def agent(self, uuid: str) -> AbstractContextManager[GuestAgent]: ...
    def start_transient(self, xml: str) -> Guest: ...
    def destroy(self, uuid: str) -> None: ...
    def standing(self, uuid: str) -> Standing | None:
        """Where the guest stands now; None when libvirt does not know it."""
        ...

    def active(self) -> tuple[str, ...]:
        """The names of all guests that run, or are paused."""
        ...

    def wait_ended(self, uuid: str, within_seconds: float) -> bool:
        """Wait until libvirt has cleaned up behind a QEMU that is gone; whether it has."""
        ...

    def suspend(self, uuid: str) -> None:
        """Have the guest stand still, as its owner would."""
        ...

    def resume(self, uuid: str) -> None:
        """Have it run; done when it does."""
        ...

    def save(self, uuid: str, qemu: ProcessId, path: Path, within_seconds: float, written: BeforeItsEnd) -> None:
        """Write its state into a file and end its QEMU: virDomainSave.

        Where the host allows that, `written` is called in between, from another thread, with the whole image, which is
        not marked as such yet, and with what says whether libvirt still waits: as long as it does nobody else gets at
        the guest. When it raises, that is raised, and the guest is still there. It may end the QEMU. OutcomeUnknown
        when the save takes longer; libvirt goes on with it.
        """
        ...

    def abort_job(self, uuid: str, within_seconds: float) -> None:
        """Break a save off that goes on, and wait until it has ended, one way or the other; done when none goes on."""
        ...

    def restore(self, path: Path, within_seconds: float) -> None:
        """Start the guest that such a file is of; it stands still. OutcomeUnknown as for `save`."""
        ...

    def unmark(self, uuid: str) -> None:
        """Take hostagent's mark out of the live definition; done when there is none."""
        ...

    def shut_down(self, uuid: str, by: ShutDownBy, within_seconds: float) -> bool:
        """Ask the guest to shut itself down, and whether that was asked: not of one that does not run.

        Whether it does so is another matter. OutcomeUnknown when there is no answer in time: libvirt waits for a while
        until an agent has obeyed. One that has obeyed may have been cut off before it answered, which is a Failed.
        """
        ...

    def terminate(self, uuid: str, within_seconds: float) -> None:
        """End the guest's QEMU by SIGTERM, without asking the guest: what it has not written to its disks is lost.

        Done when it does not run. OutcomeUnknown as for `save`.
        """
        ...

    def start(self, uuid: str, emulator: str | None, within_seconds: float) -> None:
        """Boot a guest that is shut off, from its persistent definition, which stays as it is.

        emulator: that it is to run on; None: the definition's own. Raises Failed where libvirt keeps a saved state
        of the guest, which would be past then. OutcomeUnknown as for `save`.
        """
        ...

    def wait_started(self, uuid: str, within_seconds: float) -> None:
        """Wait while libvirt is still starting the guest, or that long."""
        ...

    def wait_agent(self, uuid: str, within_seconds: float) -> bool:
        """Wait until the guest's agent answers; whether it does. One that does not run is not waited for."""
        ...

    def usable(self) -> bool:
        """Whether the daemon answers on a fresh connection."""
        ...

    def disconnect(self) -> None:
        """Close the connection, before the daemon is stopped."""
        ...
