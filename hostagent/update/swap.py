"""One guest in the middle of a handover: what is known about it, and the doors its steps go through.

`Notes` is what a later process needs to go on after a crash; it is in the journal before it is acted upon. Everything
else here (open monitors, the deadline) can be had again from the world.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from hostagent.errors import HostagentError, NeedsOperator
from hostagent.hypervisor import Moment, Monitor, ProcessId, Sender
from hostagent.update.subject import KILL_SECONDS, GuestOfUpdate, Pin, Ports

KEEP_RAM = {"x-ignore-shared": True, "events": True}  # both sides, while the state crosses
COPY_RAM = {"x-ignore-shared": False, "dirty-bitmaps": True, "events": True}
UNLIMITED = 1 << 40  # bytes/s
LOCK_LATE = {"late-block-activate": True}  # the new one takes the disks' locks when it is told to run, not before


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


@dataclass
class GuestSwap(GuestOfUpdate[Notes]):
    """The subject of a handover's guest steps."""

    adapter = TypeAdapter(Notes)
    technique = "handover"

    copies: bool = False  # its RAM has no name: it is copied into a file
    adopts_definition: bool = True  # then its persistent definition gets such RAM too
    moved_bytes: int | None = None
    new_record: bytes | None = None
    copy_began: float = 0.0  # of the monotonic clock
    copied: bool = False  # all of its RAM once, in this process
    crossed: bool = False  # both QEMUs have told this process that the state is over
    proven: bool = False  # asked in this process, and answered
    unproven: NeedsOperator | None = None  # why libvirt would kill the guest if its daemon came back now
    _monitors: dict[Path, Monitor] = field(default_factory=dict)

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
