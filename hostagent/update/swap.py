"""One guest in the middle of a handover: what is known about it, and the doors its steps go through.

`Notes` is what a later process needs to go on after a crash; it is in the journal before it is acted upon. Everything
else here (open monitors, the deadline) can be had again from the world.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import TypeAdapter, ValidationError

from hostagent.clock import HostClock
from hostagent.config import Config
from hostagent.errors import HostagentError, NeedsOperator
from hostagent.facts import QemuTree
from hostagent.hypervisor import Daemon, Libvirt, Moment, Monitor, ProcessId, Qemu, Sender
from hostagent.hypervisor.driver_lock import DriverLock
from hostagent.update.journal import Entry, Journal, Json, Kind
from hostagent.update.pause import Deadline

KILL_SECONDS = 10.0

KEEP_RAM = {"x-ignore-shared": True, "events": True}  # both sides, while the state crosses
COPY_RAM = {"x-ignore-shared": False, "dirty-bitmaps": True, "events": True}
UNLIMITED = 1 << 40  # bytes/s
LOCK_LATE = {"late-block-activate": True}  # the new one takes the disks' locks when it is told to run, not before


class Watcher(Protocol):
    """The guard, as the one who works sees it."""

    def ready(self) -> None:
        """Raises Failed unless somebody watches; to be asked before anything is taken away."""
        ...

    def pausing(self, until: float) -> None:
        """A guest stands still until this moment of the monotonic clock at the latest."""
        ...

    def running(self) -> None:
        """The guest runs again."""
        ...

    def hold(self, lock: DriverLock) -> None:
        """Share the driver lock: it stays locked when the one who works dies."""
        ...


class NoWatcher:
    """Nobody watches: recovery itself runs without a guard."""

    def ready(self) -> None: ...
    def pausing(self, until: float) -> None: ...
    def running(self) -> None: ...
    def hold(self, lock: DriverLock) -> None: ...


@dataclass(frozen=True)
class Ports:
    """Every door to the world, passed in."""

    libvirt: Libvirt
    qemu: Qemu
    daemon: Daemon
    lock: DriverLock
    journal: Journal
    clock: HostClock
    config: Config
    watcher: Watcher
    token: Callable[[], str]  # a few characters, new at every call

    def monotonic(self) -> float:
        """Seconds of the monotonic clock."""
        return self.clock.monotonic_ns() / 1e9


@dataclass(frozen=True)
class Pin:
    """A hard link of ours to a RAM file, so that nobody's clean-up can discard the RAM."""

    ram: str
    link: str
    device: int
    inode: int
    size: int


@dataclass(frozen=True)
class NewRam:
    """A file that RAM is copied into, as libvirt would have made it."""

    path: str
    link: str  # ours to it, which is made first
    size: int
    uid: int
    gid: int
    in_new_folder: bool  # libvirt has made one only for guests that it thought might need it


@dataclass(frozen=True)
class Socket:
    """A listening socket: its number in the argument list, its path, and its path until the old one has left."""

    number: int
    path: str
    temporary: str


@dataclass(frozen=True)
class Notes:
    """What is known about a guest's handover; a field is None until its step has begun."""

    old: ProcessId
    domain_id: int
    was_running: bool
    record: str  # path of libvirt's runtime record
    kept_record: str  # our copy of it as it was
    new_record: str  # what the record will be, until it is put in place
    old_record: str  # a link to it as it was, until there is no way back
    monitor: str  # path of the old one's monitor
    pins: tuple[Pin, ...]
    sockets: tuple[Socket, ...]
    taps: dict[int, str]  # descriptor in the old process -> its settings
    argv: tuple[str, ...]  # of the new one
    taken_over: dict[int, int]
    vhosts: tuple[int, ...]
    pid_file: str  # libvirt's; QEMU keeps it open and locked for as long as it lives
    new_pid_file: str  # the new one's, until it gets that name
    old_pid_file: str  # a link to the old one's, until there is no way back
    flags: tuple[str, ...]  # capability flags for the record
    live_xml: str
    display: str = ""  # socket at which the new one's VNC display waits for the old one to leave
    new_ram: tuple[NewRam, ...] = ()  # of a guest whose RAM is copied
    loses_writes: bool = False  # see copying.py: its QEMU does not see all that the guest writes meanwhile
    halted: bool = False  # it stands still because of us, with libvirt's daemon there
    new: ProcessId | None = None
    capabilities: dict[str, bool] | None = None  # the old one's, before we changed any
    parameters: dict[str, object] | None = None

    @property
    def new_monitor(self) -> Path:
        """Where the new one's monitor listens while the old one's socket has its name."""
        return next(Path(socket.temporary) for socket in self.sockets if socket.path == self.monitor)


_NOTES = TypeAdapter(Notes)


@dataclass
class GuestSwap:
    """The subject of a handover's guest steps."""

    ports: Ports
    update: str
    uuid: str
    name: str
    tree: QemuTree
    budget_seconds: float
    copies: bool = False  # its RAM has no name: it is copied into a file
    adopts_definition: bool = True  # then its persistent definition gets such RAM too
    rehearsal: bool = False
    saved: Notes | None = None
    deadline: Deadline | None = None
    moved_bytes: int | None = None
    new_record: bytes | None = None
    copy_began: float = 0.0  # of the monotonic clock
    copied: bool = False  # all of its RAM once, in this process
    proven: bool = False  # asked in this process, and answered
    unproven: NeedsOperator | None = None  # why libvirt would kill the guest if its daemon came back now
    _unwritten: dict[str, object] = field(default_factory=dict)
    _monitors: dict[Path, Monitor] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The journal's key."""
        return self.uuid

    @property
    def notes(self) -> Notes:
        """What was noted; there is something once the first step has begun."""
        if self.saved is None:
            raise NeedsOperator(f"{self.name}: reading the journal", expected="notes of its handover", found="none")
        return self.saved

    def begin_notes(self, notes: Notes) -> None:
        """Write everything down before anything is touched."""
        self.ports.journal.append(
            self.update, Entry(Kind.NOTED, self.uuid, body=_NOTES.dump_python(notes, mode="json"))
        )
        self.saved = notes

    def note(self, **changes: object) -> None:
        """Write down more, durably, before acting on it."""
        notes = dataclasses.replace(self.notes, **changes)  # type: ignore[arg-type]
        everything = _NOTES.dump_python(notes, mode="json")
        body = {name: everything[name] for name in changes}
        self.ports.journal.append(self.update, Entry(Kind.NOTED, self.uuid, body=body))
        self.saved = notes

    def measured(self, values: Mapping[str, object]) -> None:
        """Write down what was measured, or have the next figures take it along: it decides nothing."""
        self._unwritten |= values
        with suppress(HostagentError):
            self.ports.journal.append(self.update, Entry(Kind.MEASURED, self.uuid, body=dict(self._unwritten)))
            self._unwritten.clear()

    @property
    def crossing_capabilities(self) -> Mapping[str, bool]:
        """The migration capabilities of both sides while the state crosses."""
        return COPY_RAM if self.copies else KEEP_RAM

    @contextmanager
    def sender(self) -> Iterator[Sender]:
        """The old one, by its own monitor while libvirt's daemon is away, else by way of libvirt."""
        if self.ports.lock.held():
            yield self.old_monitor()
            return
        with self.ports.libvirt.sender(self.uuid) as sender:
            yield sender

    def old_monitor(self) -> Monitor:
        """The old one's monitor; only while libvirt's daemon is away."""
        return self._monitor(Path(self.notes.monitor))

    def new_monitor(self) -> Monitor:
        """The new one's monitor, wherever it listens by now."""
        temporary = self.notes.new_monitor
        # One that died at its start took its name with it: libvirt's is the old one's then, until that has gone.
        has_libvirts = not temporary.exists() and (self.new_is_alive() or not self.old_is_alive())
        return self._monitor(Path(self.notes.monitor) if has_libvirts else temporary)

    def _monitor(self, path: Path) -> Monitor:
        if path not in self._monitors:
            self._monitors[path] = self.ports.qemu.monitor(path, self.ports.config.update.start_seconds)
        return self._monitors[path]

    def stopped_at(self) -> Moment | None:
        """When the old one stopped, if that was heard here."""
        monitor = self._monitors.get(Path(self.notes.monitor))
        if monitor is None:
            return None
        with suppress(HostagentError):
            monitor.run_state()  # with the answer comes what it has said since it was last asked
        return monitor.stopped_at()

    def close_monitors(self) -> None:
        """Let go of both: a second client would make libvirt wait for ever."""
        for monitor in self._monitors.values():
            monitor.close()
        self._monitors.clear()

    def new_is_alive(self) -> bool:
        """Whether the new one exists."""
        new = self.saved.new if self.saved else None
        return new is not None and self.ports.qemu.alive(new)

    @property
    def new_process(self) -> ProcessId:
        """The new QEMU; there is one once `start` has noted it."""
        if self.notes.new is None:
            raise NeedsOperator(f"{self.name}: reading the journal", expected="the new QEMU's pid", found="none")
        return self.notes.new

    def end_new(self) -> None:
        """End the new QEMU, if there is one, and see it gone."""
        self.close_monitors()
        if self.notes.new is not None:
            self.ports.qemu.kill(self.notes.new, KILL_SECONDS)

    def is_there(self) -> bool:
        """Whether libvirt has the guest running, or paused; needs its daemon."""
        guest = self.ports.libvirt.guest(self.uuid)
        return guest is not None and guest.state.active

    def old_is_alive(self) -> bool:
        """Whether the old one exists."""
        return self.ports.qemu.alive(self.notes.old)


def read_notes(body: Json) -> Notes | None:
    """The notes folded from the journal; None when nothing was noted yet."""
    if not body:
        return None
    try:
        return _NOTES.validate_python(dict(body))
    except ValidationError as error:
        raise NeedsOperator(
            "reading the journal",
            expected="the notes of a handover",
            found=str(error),
            hint="a hostagent of the version that wrote it",
        ) from error


@dataclass
class HostSwap:
    """The subject of a handover's host steps: libvirt's daemon, for the whole batch."""

    ports: Ports
    update: str
    guests: tuple[GuestSwap, ...]
    urgent: bool = False  # a guest may stand still: another's job is cut off sooner than that it waits

    @property
    def key(self) -> str:
        """The host's key in the journal."""
        return ""
