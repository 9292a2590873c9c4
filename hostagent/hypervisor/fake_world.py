"""The fake's world: QEMU processes, guests and libvirt's daemon, kept in a directory.

Every operation loads and stores it whole under a lock. So a process that uses the world can be killed anywhere, and
the next one finds the world as it was left. Whoever has the world for itself may keep the state in memory meanwhile
(`shared`). Files, sockets and pid files are real, small files; a socket file holds the pid that listens on it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Final

from hostagent.hypervisor import MoveStatus, RunState

STEP_NS: Final = 10_000  # what any operation takes
LIBVIRT: Final = "libvirt"  # the daemon, as a monitor's client


class FaultKind(StrEnum):
    """What can go wrong in the world by itself."""

    NEW_EXITS = "a new QEMU exits at its start"
    NEW_REFUSES_MACHINE = "a new QEMU does not know the machine type"
    NEW_HANGS = "a new QEMU never answers"
    LOAD_EXITS_EARLY = "the new QEMU exits before all state is sent"
    LOAD_EXITS_LATE = "the new QEMU exits after all state was sent"
    LOAD_HANGS_EARLY = "the new QEMU hangs before all state is sent"
    LOAD_HANGS_LATE = "the new QEMU hangs after all state was sent"
    LOAD_SLOW = "the load takes a minute"
    LOAD_COPIES = "the RAM is sent as well"
    CONT_FAILS = "cont is refused"
    CONT_EXITS = "the QEMU exits at cont"
    CONT_UNHEARD = "cont works, its answer is lost"
    CONT_LOST = "cont is never heard"
    QUIT_HANGS = "a QEMU that was asked to leave stays"
    KILL_HANGS = "a killed QEMU stays: its disk does not answer"
    OLD_SILENT = "the old QEMU's monitor does not answer"
    DAEMON_STAYS_DOWN = "libvirt's daemon does not start"
    DAEMON_STAYS_UP = "libvirt's daemon does not stop"
    COPY_BREAKS = "the new QEMU exits while the RAM is copied"
    COPY_SLOW = "the RAM is hardly copied at all"
    COPY_STALLS = "the guest writes to its RAM faster than that is copied"
    DIRTY_FAST = "the guest is seen to write to its RAM faster than that is copied"
    BLOCKED = "QEMU has a reason against a migration"
    DIFFERENT = "the surroundings differ"
    QUESTION_FAILS = "a question that libvirt will ask is refused"
    QUESTION_FAILS_LATE = "a question that libvirt will ask is refused once the guest is taken over"
    DISK_SLOW = "the images are not flushed in time"
    NO_AGENT = "the guest has no agent"
    STAGE_FAILS = "a component cannot be staged"
    APPLY_FAILS = "a component does not load"
    HOST_RESET = "firmware starts the host anew"
    ROLL_BACK_FAILS = "what a component was before does not load any more"
    SUSPEND_FAILS = "libvirt does not pause a guest"
    SAVE_FAILS = "libvirt does not save a guest"
    SAVE_HANGS = "a save goes on for ever"
    SAVE_UNHEARD = "a save works, its answer is lost"
    SAVE_EXITS = "the QEMU exits as it is saved"
    SAVE_ASKS_NOBODY = "a save cannot be held up before it ends the QEMU"
    SAVE_DAEMON_DIES_SOON = "libvirt's daemon dies while a guest's state is looked at"
    SAVE_DAEMON_DIES = "libvirt's daemon dies once a guest's state is written"
    RESTORE_FAILS = "the restored QEMU refuses the state"
    RESTORE_HANGS = "a restore that never begins is never answered"
    RESTORE_UNHEARD = "a restore works, its answer is lost"
    RESTORE_EXITS = "the restored QEMU exits once it has loaded the state"
    SHUTDOWN_REFUSED = "libvirt does not ask a guest to shut down"
    SHUTDOWN_IGNORED = "a guest does not shut itself down"
    SHUTDOWN_LATE = "a guest takes two minutes to shut itself down"
    SHUTDOWN_UNHEARD = "a guest is asked to shut down, the answer is lost"
    SHUTDOWN_CUTS_AGENT_OFF = "a guest's agent obeys, and is gone before it has answered"
    START_FAILS = "a guest that is shut off does not start"
    START_HANGS = "a start that never begins is never answered"
    START_UNHEARD = "a start works, its answer is lost"
    BOOT_SILENT = "nothing answers in a guest that has booted"
    BOOT_EXITS = "the QEMU exits as the guest boots"
    MIGRATE_REFUSED = "the other libvirt refuses a migration before it begins"
    MIGRATE_BREAKS = "the link breaks while the RAM crosses"
    MIGRATE_STALLS = "the guest writes faster than its RAM crosses"
    MIGRATE_DIES_EARLY = "the peer dies while the RAM crosses"
    MIGRATE_DIES_LATE = "the peer dies once all has crossed"
    MIGRATE_DIES_AFTER = "the peer dies once a guest has left for it"
    FINISH_UNHEARD = "a guest has arrived, the answer is lost, and it goes on where it was"
    MIGRATE_UNHEARD = "a migration works, its answer is lost"
    PEER_SILENT = "a peer does not answer"
    NOT_SHARED = "a directory is not the same on both hosts"
    DISKS_BREAK = "a disk cannot be copied to its end"
    DISKS_HANG = "a disk's copy waits for a peer that is gone"
    NO_PLACE = "a peer has no directory for a disk"
    PLACE_FAILS = "an image for a disk cannot be made"
    PLACE_UNHEARD = "an image for a disk is made, the answer is lost"


@dataclass
class Fault:
    """A fault to come: for one guest or for any ("")."""

    kind: FaultKind
    guest: str = ""
    times: int = 1


@dataclass
class Process:
    """A QEMU process."""

    pid: int
    start_ticks: int
    guest: str  # uuid
    argv: str  # file below argv/
    state: RunState
    vcpus: int = 1
    autostart: bool = False  # started without -S
    waits_for: int = 0  # the real process that has yet to say `go`
    alive: bool = True
    leaving: bool = False  # killed, and still to be seen
    stays: bool = False  # killed, and its disk does not answer
    hung: bool = False
    client: str = ""  # who has its monitor: "", LIBVIRT, or "PID/NUMBER" of a real process
    capabilities: dict[str, bool] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    sockets: list[str] = field(default_factory=list)  # the names that its sockets were bound to
    taps: dict[int, str] = field(default_factory=dict)  # descriptor -> tap
    pipes: dict[int, str] = field(default_factory=dict)
    fdsets: dict[int, int] = field(default_factory=dict)
    throttles: dict[str, int] = field(default_factory=dict)  # disk -> operations a second
    polling: dict[str, int] = field(default_factory=dict)
    display: str = ""
    ram: list[list[int]] = field(default_factory=list)  # (device, inode) that it maps
    disks: bool = False  # whether it has the disks active, and so locked
    holds: int = -1  # the moment of the guest's life that it could go on from; -1 none
    move: MoveStatus = MoveStatus.NONE
    moved_bytes: int = 0
    ram_left: int = -1  # of a copy, bytes; -1 before it has begun
    ballast: bool = False
    bitmap: bool = False  # on the ballast
    copied: list[tuple[str, int, int, int]] = field(default_factory=list)  # RAM files that it was given the RAM in
    move_error: str = ""
    peer: int = 0  # pid that it sends its state to
    listens: bool = False  # waits for state on a channel
    was_running: bool = False  # before it sent its state
    stopped_ns: int = 0
    resumed_ns: int = 0
    links_down: list[str] = field(default_factory=list)  # its network cards that hear nothing
    reboot: str = "reset"  # what it does when the guest reboots
    ends_at_ns: int = 0  # when the guest will have shut itself down; 0: it does not
    host: str = ""  # the peer that it is on; "": this host


@dataclass
class GuestLife:
    """A guest, whoever runs it."""

    uuid: str
    name: str
    domain_id: int
    persistent: bool
    xml: str  # file below argv/
    ram: list[tuple[str, int, int, int]]  # path, device, inode, size
    life: int = 0  # grows each time it begins to run
    executed: dict[str, int] = field(default_factory=dict)  # pid -> how much of its life that process ran
    lag_ns: int = 0  # how far its clock is behind
    stands_since_ns: int = 0  # 0 while it runs
    shared_from_next_boot: bool = False  # its persistent definition was changed so
    ended: str = ""  # why it does not run any more
    off: str = ""  # why, as libvirt words it
    shape: str = ""  # file below texts/: what it is made of
    policy: str = ""  # an element of its persistent definition's metadata
    boots: int = 1  # how often it has booted
    silent: bool = False  # since it has booted nothing in it answers
    managed_save: bool = False  # libvirt keeps a state of it
    autostart: bool = False
    disks: list[str] = field(default_factory=list)  # files that each host has for itself
    wrote: int = 0  # to these; grows each time it begins to run


@dataclass
class FakeFile:
    """A disk's file on one host."""

    format: str
    size: int
    holds: int  # the moment of its guest's writing; -1: nothing that could be used
    by: str = ""  # who made it


@dataclass
class View:
    """What libvirt believes of a guest."""

    pid: int
    monitor_pid: int
    state: str
    reason: str
    emulator: str
    ram_in_files: bool = False  # as the record says, which may be newer than the guest's first definition
    marked: bool = False  # with hostagent's mark in its definition
    saving: bool = False  # a save goes on
    marks_next: str = ""  # of which this image has all, and is marked so next
    held_up_by: int = 0  # the real process that it waits for before that


@dataclass
class DaemonState:
    """libvirt's daemon."""

    up: bool = False
    views: dict[str, View] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)  # guests whose monitor somebody else has


@dataclass
class PeerView:
    """What a peer's libvirt believes of a guest."""

    pid: int
    state: str
    reason: str
    emulator: str
    autostart: bool = False


@dataclass
class PeerState:
    """Another host, with guests of this one."""

    alive: bool = True
    views: dict[str, PeerView] = field(default_factory=dict)
    defined: list[str] = field(default_factory=list)  # uuids of guests that it knows whether they run or not


@dataclass
class Passing:
    """A migration, which goes on by itself."""

    source: str  # a peer's name, "" this host
    target: str
    emulator: str  # there
    left: int  # looks until all has crossed
    copy: int = 0  # pid of what it is to be there; 0: not yet
    done: bool = False
    error: str = ""
    answered: bool = True  # whoever waits hears of the end
    disks_left: int = 0  # looks until all disks have crossed, before the rest
    hangs: bool = False  # until somebody cuts what they are copied over


@dataclass
class State:
    """Everything there is."""

    now_ns: int = 1_000_000_000
    next_pid: int = 1001
    processes: dict[int, Process] = field(default_factory=dict)
    guests: dict[str, GuestLife] = field(default_factory=dict)
    taps: dict[str, str] = field(default_factory=dict)
    daemon: DaemonState = field(default_factory=DaemonState)
    faults: list[Fault] = field(default_factory=list)
    words: dict[str, str] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    modules: str = "old"  # what runs of a component of the host; "gone": nothing
    boots: int = 1  # how often the host has booted
    leapt: int = 0  # the boot that another kernel has started by a leap, with RAM as it was
    images: dict[str, list[Any]] = field(default_factory=dict)  # save image -> uuid and moment of the guest's life
    peers: dict[str, PeerState] = field(default_factory=dict)
    passing: dict[str, Passing] = field(default_factory=dict)  # by uuid: the last migration of each guest
    files: dict[str, FakeFile] = field(default_factory=dict)  # "HOST:PATH": disks that are each host's own

    def living(self, guest: str = "") -> list[Process]:
        """The processes that exist, of one guest or of all."""
        return [one for one in self.processes.values() if one.alive and guest in ("", one.guest)]

    def take(self, kind: FaultKind, guest: str = "") -> bool:
        """Whether that fault happens now; it is used up by it."""
        for fault in self.faults:
            if fault.kind is kind and fault.guest in ("", guest) and fault.times != 0:
                fault.times -= 1
                return True
        return False

    def violated(self, what: str) -> None:
        """A promise was broken."""
        if what not in self.violations:
            self.violations.append(what)


Physics = Callable[["World", State], None]


@dataclass
class World:
    """The directory. `before` lets time pass, `after` looks for broken promises; both see every change.

    Whoever uses one world is a fork of the process that made it: they share the open file that stands for the
    daemon's hold on driver.pid.
    """

    root: Path
    before: Physics
    after: Physics
    daemon_lock: int
    on_change: Callable[[], None] | None = None
    hook_is_asked: bool = True
    inside: bool = False
    shared: bool = True  # other processes see every change; else only those that are there at `store`
    _state: State | None = None
    _held: int = -1  # the file that `_state` is from; open, so that no other file gets its inode
    _stored: bool = True  # the file says what `_state` does
    _texts: dict[str, str] = field(default_factory=dict)
    _thread: threading.Lock = field(default_factory=threading.Lock)
    _held_up: set[str] = field(default_factory=set)  # guests whose save waits for this process

    @contextmanager
    def held_up(self, uuid: str) -> Iterator[None]:
        """While libvirt waits for the block with the end of a guest's save."""
        self._held_up.add(uuid)
        try:
            yield
        finally:
            self._held_up.remove(uuid)

    def holds_up(self, uuid: str) -> bool:
        """Whether it does."""
        return uuid in self._held_up

    @contextmanager
    def change(self) -> Iterator[State]:
        """The state, stored afterwards, however the block ends: what was done is done."""
        with self._thread, self._locked():
            self.inside = True
            state = self._load()
            self._stored = False
            try:
                state.now_ns += STEP_NS
                self.before(self, state)
                yield state
            finally:
                self.after(self, state)
                if self.shared:
                    self._store()
                self.inside = False
        if self.on_change is not None:
            self.on_change()

    @contextmanager
    def look(self) -> Iterator[State]:
        """The state, not to be changed; that time has passed is only stored with the next change."""
        with self._thread, self._locked():
            self.inside = True
            try:
                state = self._load()
                state.now_ns += STEP_NS
                self.before(self, state)
                yield state
            finally:
                self.inside = False

    def text(self, name: str) -> str:
        """An unchanging text of the world."""
        if name not in self._texts:
            self._texts[name] = (self.root / "texts" / name).read_text()
        return self._texts[name]

    def argv(self, process: Process) -> tuple[str, ...]:
        """The argument list of a process."""
        return _words(self.text(process.argv))

    def keep_text(self, text: str) -> str:
        """Keep a text that does not change; returns its name."""
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        path = self.root / "texts" / name
        if not path.exists():
            path.write_text(text)
        return name

    def boot_id(self) -> str:
        """Of the host's boot."""
        with self.look() as state:
            return f"00000000-0000-4000-8000-{state.boots:012x}"

    def end_kernel(self, state: State, *, leaps: bool) -> None:
        """Every process ends, and what is kept in memory goes; RAM files only stay where another kernel leaps in."""
        for process in state.living():
            process.alive = bool(process.host)
        state.daemon = DaemonState()
        shutil.rmtree(self.held, ignore_errors=True)
        state.boots += 1
        if leaps:
            state.leapt = state.boots
            return
        for guest in state.guests.values():
            if not any(one.holds == guest.life for one in state.living(guest.uuid)):
                guest.life += 1  # what was saved of it is past
        for path in (self.root / "ram").rglob("*"):
            if path.is_file():
                path.unlink()

    @property
    def libvirt_run(self) -> Path:
        """libvirt's runtime records and pid files."""
        return self.root / "run"

    @property
    def held(self) -> Path:
        """What the hook is told of held guests."""
        return self.root / "state" / "run" / "held"

    def lib_dir(self, guest: GuestLife) -> Path:
        """The folder with the guest's monitor."""
        return self.root / "lib" / f"domain-{guest.domain_id}-{guest.name}"

    def ram_dir(self, guest: GuestLife) -> Path:
        """The folder for the guest's RAM files, whether it has any or not."""
        return self.root / "ram" / "libvirt" / "qemu" / f"{guest.domain_id}-{guest.name}"

    def _load(self) -> State:
        path = self.root / "world.json"
        if self._state is None or (self._stored and os.fstat(self._held).st_ino != path.stat().st_ino):
            self._hold(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            self._state, self._stored = _read(json.loads(path.read_text())), True
        return self._state

    def store(self) -> None:
        """What is only in memory is in the file, too."""
        with self._thread:
            self._store()

    def _store(self) -> None:
        if self._stored:
            return
        beside = self.root / "world.new"
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.write(fd, json.dumps(self._state, default=vars).encode())
        beside.rename(self.root / "world.json")
        self._hold(fd)
        self._stored = True

    def reread(self) -> None:
        """What the file says counts, whatever is in memory."""
        self._state, self._stored = None, True

    def forget(self, pid: int) -> None:
        """That real process is dead to the world: its monitors are free, what it was about to launch is not."""
        with self.change() as state:
            for process in state.living():
                if process.client.partition("/")[0] == str(pid):
                    process.client = ""
                if process.waits_for == pid:
                    process.alive = False

    def close(self) -> None:
        """Let go of it; the daemon's lock goes with the last who has the world."""
        self._hold(-1)
        os.close(self.daemon_lock)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if not self.shared:
            yield
            return
        fd = os.open(f"{self.root}/world.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _hold(self, fd: int) -> None:
        if self._held >= 0:
            os.close(self._held)
        self._held = fd


def create(root: Path, before: Physics, after: Physics) -> World:
    """An empty world in an empty directory."""
    for name in ("run", "lib", "ram/libvirt/qemu", "texts", "cache/capabilities", "state"):
        (root / name).mkdir(parents=True)
    (root / "world.json").write_text(json.dumps(State(), default=vars))
    daemon_lock = os.open(root / "run" / "driver.pid", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    return World(root, before, after, daemon_lock)


def _read(raw: dict[str, Any]) -> State:
    daemon = raw.pop("daemon")
    return State(
        processes={int(pid): _process(one) for pid, one in raw.pop("processes").items()},
        guests={
            uuid: GuestLife(**{**one, "ram": [tuple(ram) for ram in one["ram"]]})
            for uuid, one in raw.pop("guests").items()
        },
        daemon=DaemonState(
            daemon["up"],
            {uuid: View(**view) for uuid, view in daemon["views"].items()},
            daemon["waiting"],
        ),
        peers={
            name: PeerState(
                one["alive"], {uuid: PeerView(**view) for uuid, view in one["views"].items()}, one["defined"]
            )
            for name, one in raw.pop("peers").items()
        },
        passing={uuid: Passing(**one) for uuid, one in raw.pop("passing").items()},
        files={place: FakeFile(**one) for place, one in raw.pop("files").items()},
        faults=[Fault(FaultKind(one["kind"]), one["guest"], one["times"]) for one in raw.pop("faults")],
        **raw,
    )


def _process(raw: dict[str, Any]) -> Process:
    for name in ("taps", "pipes", "fdsets"):
        raw[name] = {int(number): value for number, value in raw[name].items()}
    raw["copied"] = [tuple(ram) for ram in raw["copied"]]
    return Process(**{**raw, "state": RunState(raw["state"]), "move": MoveStatus(raw["move"])})


@cache
def _words(argv: str) -> tuple[str, ...]:
    words: list[str] = json.loads(argv)
    return tuple(words)
