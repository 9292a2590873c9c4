"""An update of fake guests that can be cut off, disturbed, recovered, and taken up again at any point."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from hostagent.config import Config
from hostagent.errors import Failed, HostagentError
from hostagent.facts import Guest, Host
from hostagent.hypervisor import RunState
from hostagent.hypervisor.driver_lock import DriverLock
from hostagent.hypervisor.fake import FakeHost
from hostagent.hypervisor.fake_component import FakeComponent, FakeKernel, HostEnded
from hostagent.hypervisor.fake_migrating import FakeMigratingHost
from hostagent.hypervisor.fake_storage import DISK_BYTES
from hostagent.hypervisor.fake_world import FakeFile, PeerState
from hostagent.plan import GuestPlan, HostPlan, Method, Plan, Technique, Verdict
from hostagent.planning.copy_checks import ram_to_copy
from hostagent.update.host import update_host, update_qemu
from hostagent.update.journal import Entry, Row, SqliteJournal, UpdateRecord
from hostagent.update.journal_reader import read_updates
from hostagent.update.recovery import get_ready_after_boot, recover
from hostagent.update.subject import NoWatcher, Ports
from tests.crash import shapes

SHARED_MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
UPDATE_ID = "u1"
TCP_PORT = 22
PEER = "b"  # the other host
JOURNAL, FILE, WORLD = "journal", "file", "world"
_FILE_EVENTS = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "open"}
_NOT_KEPT = {"driver.pid", "world.lock", "journal.sqlite-shm"}


@dataclass(frozen=True)
class Scenario:
    """What is updated: guests by name, and which of them their owner has paused."""

    guests: tuple[str, ...] = ("web1", "db1")
    paused: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()  # whose RAM has no name
    kvm: bool = False  # then their QEMU knows what they write
    rehearse: bool = False
    held: tuple[str, ...] = ()  # by which technique they go
    rebooted: tuple[str, ...] = ()  # that are shut down and started anew
    force: bool = False  # those that do not shut themselves down are ended
    migrated: tuple[str, ...] = ()  # that go to the peer
    comes_back: bool = False  # from there
    coherent: bool = False  # the settings vouch for the disks
    copies_disks: bool = False  # the peer does not see those of migrated guests
    swaps: bool = False  # a component of the host, with all guests held; they stay on their QEMU
    component: str = "modules"  # which

    def __str__(self) -> str:
        words = [f"{len(self.guests)} guests", *(f"{name} paused" for name in self.paused)]
        words += [f"{name} copied{' under KVM' if self.kvm else ''}" for name in self.copied]
        words += [f"{name} held" for name in self.held]
        words += [f"{name} rebooted{' by force' if self.force else ''}" for name in self.rebooted]
        disks = " with its disk" if self.copies_disks else ""
        words += [f"{name} migrated{disks}{' there and back' if self.comes_back else ''}" for name in self.migrated]
        words += ["a swap for the host"] if self.swaps else []
        return ", ".join([*words, "rehearsed"] if self.rehearse else words)


@dataclass
class Points:
    """Every moment at which something can happen: around a journal write, before a file operation, after a change.

    `act` is called at each moment that `at` names (from 1; none: at every one). It may kill, disturb, or raise.
    """

    act: Callable[[], None] = lambda: None
    at: int | None = None
    only: tuple[str, ...] = (JOURNAL, FILE, WORLD)
    labels: list[str] = field(default_factory=list)

    def reached(self, kind: str, label: str) -> None:
        if kind not in self.only:
            return
        self.labels.append(f"{kind} {label}")
        if self.at in (None, len(self.labels)):
            kinds, self.only = self.only, ()  # what the act does is no moment of the update
            try:
                self.act()
            finally:
                self.only = kinds


@dataclass
class WatchingGuard(NoWatcher):
    """Who would end the updater when a guest stands still past `until`."""

    until: float | None = None

    def pausing(self, until: float) -> None:
        self.until = until

    def running(self) -> None:
        self.until = None


@dataclass
class WatchedJournal:
    """The journal in its file, with a point before and after each write."""

    journal: SqliteJournal
    points: Points

    def append(self, update: str, *entries: Entry) -> None:
        label = " ".join(f"{entry.kind}{':' if entry.step else ''}{entry.step}" for entry in entries)
        self.points.reached(JOURNAL, f"before {label}")
        self.journal.append(update, *entries)
        self.points.reached(JOURNAL, f"after {label}")

    def rows(self, **which: Any) -> Sequence[Row]:
        return self.journal.rows(**which)

    def open_updates(self) -> Sequence[UpdateRecord]:
        return self.journal.open_updates()


@dataclass(frozen=True)
class Snapshot:
    """Everything on the host's disks at one moment: what is there for others once everybody has died."""

    label: str
    files: dict[str, tuple[int, bytes]]  # below the root -> mode and content
    links: dict[str, int]  # RAM files and pins -> inode

    def disks(self) -> tuple[object, ...]:
        """All but the label."""
        return self.files, self.links


@dataclass
class Rig:
    """One fake host, and updates of its guests."""

    host: FakeHost
    scenario: Scenario
    uuids: dict[str, str]
    tokens: Iterator[int] = field(default_factory=count)
    guard: WatchingGuard = field(default_factory=WatchingGuard)
    cancelled: bool = False  # somebody asked the update to stop
    told: tuple[UpdateRecord, ...] | None = None  # what the journal says, since it was last written to

    watched: ClassVar[list[tuple[Rig, Points]]] = []  # whose file operations are points now

    @property
    def root(self) -> Path:
        return self.host.world.root

    # -- an update and its recovery -------------------------------------------------------------------------------

    def update(self, points: Points | None = None) -> str:
        """The whole update, here; returns what it raised."""
        return self._run(self._carry_out, points or Points(only=()))

    def run(self, work: Callable[[Ports], object]) -> str:
        """Something else, here; returns what it raised."""
        return self._run(work, Points(only=()))

    def recover(self, points: Points | None = None) -> str:
        """Recovery, here; returns what it raised."""
        return self._run(self._recover, points or Points(only=()))

    def boot(self) -> str:
        """What is done as the host boots, before libvirt's daemon starts."""
        return self._run(lambda ports: get_ready_after_boot(ports, boot_id=self.host.world.boot_id()), Points(only=()))

    def _recover(self, ports: Ports) -> None:
        recover(ports, boot_id=self.host.world.boot_id(), tell=_silent)

    def update_killed(self, points: Points) -> int:
        """The whole update in a process of its own; returns how that ended: 0, or a negative signal's number."""
        return self._child(self._carry_out, points)

    def recover_killed(self, points: Points) -> int:
        """Recovery in a process of its own."""
        return self._child(self._recover, points)

    def _carry_out(self, ports: Ports) -> None:
        host = self.host.libvirt.host()
        if self.scenario.swaps:
            self._swap(ports, host)
        else:
            self._bring_over(ports, host)

    def _bring_over(self, ports: Ports, host: Host) -> None:
        guests = tuple(
            GuestPlan(
                *(guest.name, guest.uuid, Verdict.UPDATE, self._method(guest), self._technique(guest)),
                *(guest.qemu, (), 30.0),
                boot_tcp=f"{guest.name}:{TCP_PORT}",
                peer=PEER if guest.name in self.scenario.migrated else "",
                copied_disks=self.own_disks(guest.name),
            )
            for guest in host.guests
            if guest.name in self.uuids
        )
        plan = Plan("qemu", shapes.NEW, guests, ())
        update_qemu(ports, host, plan, update_id=UPDATE_ID, tell=_silent, cancelled=lambda: self.cancelled)

    @property
    def component(self) -> FakeComponent:
        return FakeComponent(self.host.world)

    def _swap(self, ports: Ports, host: Host) -> None:
        guests = tuple(
            GuestPlan(
                *(guest.name, guest.uuid, Verdict.UPDATE, self._method(guest), self._technique(guest)),
                *(guest.qemu, (), 30.0),
                boot_tcp=f"{guest.name}:{TCP_PORT}",
                peer=PEER if guest.name in self.scenario.migrated else "",
                copied_disks=self.own_disks(guest.name),
            )
            for guest in host.guests
            if guest.name in self.uuids
        )
        name = self.scenario.component
        plan = HostPlan(name, (ports.components[name].look(),), None, guests, (), (name,), 0.0)
        update_host(ports, host, plan, update_id=UPDATE_ID, tell=_silent, cancelled=lambda: self.cancelled)

    def own_disks(self, name: str) -> tuple[str, ...]:
        """Files of this host alone."""
        copied = self.scenario.copies_disks and name in self.scenario.migrated
        return (str(self.root / "own" / f"{name}.qcow2"),) if copied else ()

    def _method(self, guest: Guest) -> Method:
        if guest.name in self.scenario.rebooted:
            return Method.REBOOT
        if guest.name in self.scenario.migrated:
            return Method.LIVE_MIGRATE
        return Method.IN_PLACE_COPY if ram_to_copy(guest) else Method.IN_PLACE

    def _technique(self, guest: Guest) -> Technique | None:
        if guest.name in (*self.scenario.rebooted, *self.scenario.migrated):
            return None
        return Technique.HOLD if guest.name in self.scenario.held else Technique.HANDOVER

    def _run(self, work: Callable[[Ports], object], points: Points) -> str:
        try:
            with self._ports(points) as ports:
                work(ports)
        except HostEnded:
            return "HOST ENDED"
        except HostagentError as error:
            return f"{type(error).__name__}: {error}"
        except Exception as error:
            return f"CRASHED {traceback.format_exception_only(error)[0].strip()} at {_where(error)}"
        finally:
            self.host.world.forget(os.getpid())  # a process that has ended leaves nothing behind
        return ""

    def _child(self, work: Callable[[Ports], object], points: Points) -> int:
        self.host.world.store()
        self.told = None
        pid = os.fork()
        if pid == 0:
            self.host.world.shared = True
            gc.disable()  # it would touch, and so copy, every page that is shared with the parent
            try:
                os._exit(3 if self._run(work, points) else 0)
            except BaseException:
                (self.root / "trace").write_text(traceback.format_exc())
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    @contextmanager
    def _ports(self, points: Points) -> Iterator[Ports]:
        """Everything an update goes through, with its points watched."""
        journal = SqliteJournal(self.root / "state" / "journal.sqlite", self.host.world.boot_id(), self.host.clock.wall)
        self.host.world.on_change = lambda: points.reached(WORLD, "changed")
        _watch_files()
        self.watched.append((self, points))
        lock = DriverLock(self.root / "run" / "driver.pid")
        try:
            yield Ports(
                libvirt=self.host.libvirt,
                qemu=self.host.qemu,
                daemon=self.host.daemon,
                lock=lock,
                journal=WatchedJournal(journal, points),
                clock=self.host.clock,
                config=self._config(),
                watcher=self.guard,
                token=lambda: f"t{next(self.tokens)}",
                components={"modules": self.component, "kernel": FakeKernel(self.host.world)},
                secret=lambda: f"{next(self.tokens):032x}",
                answers=self._answers,
                hosts={name: FakeMigratingHost(self.host.world, name, shapes.OLD) for name in ("", PEER)},
            )
        finally:
            self.told = None
            self.watched.pop()
            self.host.world.on_change = None
            if lock.fd is not None:
                os.close(lock.fd)
            journal.close()

    def _answers(self, host: str, port: int, within_seconds: float) -> bool:
        """The port of a guest of that name."""
        uuid = self.uuids[host]
        with self.host.world.change() as state:
            runs = any(one.state is RunState.RUNNING for one in state.living(uuid))
            shown = port == TCP_PORT and runs and not state.guests[uuid].silent
            state.now_ns += 0 if shown else round(within_seconds * 1e9)
            return shown

    def _config(self) -> Config:
        return Config.model_validate(
            {
                "paths": {
                    "state": self.root / "state",
                    "held": self.host.world.held,
                    "libvirt_run": self.root / "run",
                    "libvirt_cache": self.root / "cache",
                    "qemu_conf": self.root / "qemu.conf",
                },
                "update": {"rehearse": self.scenario.rehearse, "copy_seconds": 20.0, "side_by_side": 1},
                "clock": {"samples": 1},
                "reboot": {"shutdown_seconds": 60.0, "boot_seconds": 60.0, "force": self.scenario.force},
                "migrate": {
                    "uri": "fake://home/system",
                    "return": self.scenario.comes_back,
                    "copy_storage": self.scenario.copies_disks,
                    "lossy_emulation": True,
                    "least_seconds": 2.0,
                    "seconds_per_gib": 1.0,
                },
                "peer": [
                    {
                        "name": PEER,
                        "uri": f"fake://{PEER}/system",
                        "transport": "plain",
                        "shared": [self.root / "images"],
                        "coherent": self.scenario.coherent,
                    }
                ],
            }
        )

    # -- looking back, and going back -----------------------------------------------------------------------------

    def updates(self) -> tuple[UpdateRecord, ...]:
        """The journal, folded."""
        if self.watched or self.told is None:  # who is at work writes to it
            self.told = read_updates(self.root / "state" / "journal.sqlite")
        return self.told

    def moments(self, work: Callable[[Points], str], only: tuple[str, ...]) -> list[Snapshot]:
        """As `snapshots`; those with the very same disks are one, for nobody who comes later can tell them apart."""
        kept: list[Snapshot] = []
        for snapshot in self.snapshots(work, only):
            if kept and snapshot.disks() == kept[-1].disks():
                kept[-1] = replace(kept[-1], label=f"{kept[-1].label}, {snapshot.label}")
            else:
                kept.append(snapshot)
        return kept

    def snapshots(self, work: Callable[[Points], str], only: tuple[str, ...]) -> list[Snapshot]:
        """Do the work, and keep the host as it was at each of its points."""
        kept: list[Snapshot] = []
        points = Points(lambda: kept.append(self.snapshot(points.labels[-1])), only=only)
        work(points)
        return kept

    def snapshot(self, label: str) -> Snapshot:
        """The host as it is."""
        self.host.world.store()
        root = f"{self.root}/"
        below = (entry for folder in ("run", "lib", "state") for entry in _files_below(root + folder))
        files = {
            entry.path.removeprefix(root): (entry.stat().st_mode & 0o777, Path(entry).read_bytes())
            for entry in (*_files_in(root), *below)
        }
        links = {entry.path.removeprefix(root): entry.inode() for entry in _files_below(f"{root}ram")}
        for name, inode in links.items():
            self._vault(inode, root + name)
        return Snapshot(label, files, links)

    def _vault(self, inode: int, path: str) -> None:
        """A link to that RAM file, so that a snapshot can bring back the very file."""
        link = self.root / "vault" / str(inode)
        if not link.exists():
            link.parent.mkdir(exist_ok=True)
            os.link(path, link)

    def go_back(self, snapshot: Snapshot) -> None:
        """The host as it was, with everybody dead who was at work then."""
        root = f"{self.root}/"
        for folder in ("lib", "state", "ram"):
            shutil.rmtree(root + folder, ignore_errors=True)
        for entry in _files_in(f"{root}run"):
            Path(entry).unlink()
        for folder in ("lib", "state", "ram/libvirt/qemu"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        for name, (mode, data) in snapshot.files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            path.chmod(mode)
        for name, inode in snapshot.links.items():
            path = self.root / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.link(self.root / "vault" / str(inode), path)
        self.told = None
        self.host.world.reread()
        self.host.world.forget(os.getpid())


def _files_in(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return [entry for entry in found if entry.is_file() and entry.name not in _NOT_KEPT]


def _files_below(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                yield from _files_below(entry.path)
            elif entry.is_file() and entry.name not in _NOT_KEPT:
                yield entry


def _watch_files() -> None:
    """A point before each file operation below the root that is not the world's own."""
    if "audited" in Rig.__dict__:
        return
    Rig.audited = True  # type: ignore[attr-defined]

    def heard(event: str, args: tuple[Any, ...]) -> None:
        if event not in _FILE_EVENTS or not Rig.watched:
            return
        rig, points = Rig.watched[-1]
        path = args[0] if isinstance(args[0], str) else str(args[0])
        if rig.host.world.inside or not path.startswith(f"{rig.root}/") or "journal.sqlite" in path:
            return
        if path.endswith("world.lock") or (event == "open" and not args[2] & os.O_CREAT):
            return
        points.reached(FILE, f"{event} {path.removeprefix(f'{rig.root}/')}")

    sys.addaudithook(heard)


@contextmanager
def rig(scenario: Scenario) -> Iterator[Rig]:
    """A host with the scenario's guests, gone afterwards."""
    folder = SHARED_MEMORY / f"hostagent-crash-{os.getpid()}"  # the same for every world of a process: see conftest
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    folder.mkdir()
    try:
        host = FakeHost.create(folder / "w", (shapes.OLD, shapes.NEW), shapes.CACHES, shapes.q35())
        uuids = {
            name: host.boot(
                shapes.q35(
                    ordinary_ram=name in scenario.copied,
                    kvm=scenario.kvm,
                    shared=name in scenario.migrated,
                    own_disk=name in scenario.migrated and scenario.copies_disks,
                ),
                name,
            )
            for name in scenario.guests
        }
        (folder / "w" / "images").mkdir()
        (folder / "w" / "own").mkdir()
        with host.world.change() as state:
            state.peers[PEER] = PeerState()
            for name in scenario.migrated:
                state.guests[uuids[name]].autostart = True
                if scenario.copies_disks:
                    path = folder / "w" / "own" / f"{name}.qcow2"
                    path.touch(0o600)
                    state.guests[uuids[name]].disks = [str(path)]
                    state.files[f":{path}"] = FakeFile("qcow2", DISK_BYTES, 0)
        for name in scenario.paused:
            host.pause(uuids[name])
        host.world.shared = False  # but for what a child of this process does
        yield Rig(host, scenario, uuids)
        host.world.close()
    finally:
        shutil.rmtree(folder)


def kill_me() -> None:
    """As kill -9, a power button, or the kernel out of memory would."""
    os.kill(os.getpid(), signal.SIGKILL)


def journal_full() -> None:
    """A full disk below the journal."""
    raise Failed("writing the journal", found="database or disk is full")


def disk_full() -> None:
    """A full disk below anything else."""
    raise OSError(28, "No space left on device")


def _where(error: Exception) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/hostagent/" in frame.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"


def _silent(key: str, step: str, doing: str) -> None:
    pass
