"""A guest that is reused from one fault to the next, and what must be true of it after each.

For the real host of the bench only: libvirt, QEMU and the guest's own proofs are asked, never hostagent.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import libvirt
import psutil

from hostagent.facts import QemuTree
from hostagent.hypervisor.qemu_process import HostQemu
from hostagent.plan import Technique
from hostagent.update.journal import Outcome, UpdateRecord
from tests.bench.guest_spec import HOST_ADDRESS, GuestSpec
from tests.bench.host import LIBVIRTD_PID, LIBVIRTD_START, RAM, Host, daemons
from tests.bench.lab import BUDGET_SECONDS, Lab
from tests.bench.peer import Peer
from tests.bench.proof import Proof, ProofReport
from tests.crash import real_updater
from tests.crash.real_updater import GUARD, End, How, Order

MILLISECOND = 1_000_000
LIMIT = 300.0
"""Seconds after which something that must happen is taken for something that never does."""
FOLDERS = (
    Path("/run/libvirt/qemu"),
    Path("/var/lib/libvirt/qemu"),
    Path("/var/lib/hostagent/held"),
    Path("/run/hostagent/held"),
)
"""Where hostagent leaves things on a host while it works."""


def wait_for(condition: Callable[[], bool], what: str, limit: float = LIMIT) -> None:
    """Looks again and again; AssertionError when it does not become true."""
    ends = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < ends, f"expected {what} within {limit:g} s"
        time.sleep(0.02)


@dataclass
class World:
    """The host with its guests."""

    host: Host
    peer: Peer
    lab: Lab
    guests: dict[str, Tested] = field(default_factory=dict)
    files: frozenset[str] = frozenset()
    sound: bool = False  # whether the last check went well
    technique: Technique = Technique.HANDOVER
    before: QemuTree | None = None  # where the first guest was as the last update was cut off, and was to go
    to: QemuTree | None = None

    def renew(self) -> None:
        """After a test that broke it: everything is ended, and begun anew."""
        for process in [*guards(), *self.host.qemu_processes()]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for path in self.lab.config.paths.state.glob("journal.sqlite*"):
            path.unlink()
        for process in daemons():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        wait_for(lambda: not daemons(), "libvirt's daemon to be gone")
        self.host.start_libvirtd()
        specs = [guest.spec for guest in self.guests.values()]
        for spec in specs:
            self.host.remove_guest(spec)
        self.guests.clear()
        shutil.rmtree(RAM / "hostagent", ignore_errors=True)
        shutil.rmtree(self.lab.config.paths.state / "held", ignore_errors=True)
        self.boot(*specs)

    def boot(self, *specs: GuestSpec) -> None:
        """Start guests and look at them as they are before anything was done to them."""
        for spec in specs:
            self.host.boot(spec)
        for spec in specs:
            self.guests[spec.name] = Tested.booted(self, spec)
        self.files = everything()
        self.sound = True

    @property
    def guest(self) -> Tested:
        """The first one."""
        return next(iter(self.guests.values()))

    def remove(self, spec: GuestSpec) -> None:
        """End a guest that the test had for itself."""
        self.host.remove_guest(spec)
        self.guests.pop(spec.name, None)
        self.files = everything()

    @property
    def other_tree(self) -> QemuTree:
        """The QEMU that the guest does not run on."""
        return self.lab.system if self.guest.tree() == self.lab.newer else self.lab.newer

    # -- updates ---------------------------------------------------------------------------------------------

    def start_updater(self, order: Order) -> Updater:
        """An updater of its own, in the background."""
        return Updater(order)

    def cut_off(self, end: End, *, budget_seconds: float = BUDGET_SECONDS, rehearse: bool = False) -> None:
        """An update to the other QEMU whose updater is killed; returns when its guard, if any, is done."""
        self.before, self.to = self.guest.tree(), self.other_tree
        order = Order(
            to=self.to.name, budget_seconds=budget_seconds, end=end, rehearse=rehearse, technique=self.technique
        )
        self.killed(order)
        assert (end.how is How.KILL_GUARD_TOO) <= bool(self.open_updates())

    def killed(self, order: Order) -> None:
        """The same, wherever that updater is killed."""
        updater = self.start_updater(order)
        code = updater.wait(LIMIT)
        assert code == -signal.SIGKILL, f"expected it to be killed at {order.end}, found exit code {code}"
        self.wait_unguarded()

    @contextmanager
    def stopped(self, order: Order) -> Iterator[Halted]:
        """An updater that stands still at a row of its journal while the block runs, and ends after it."""
        updater = self.start_updater(order)
        status = Path(f"/proc/{updater.pid}/stat")
        wait_for(lambda: not status.exists() or status.read_text().rpartition(")")[2].split()[0] in "TZ", "it to stop")
        halted = Halted(self, updater)
        try:
            assert updater.is_alive(), "expected it to stop, found it ended"
            yield halted
        finally:
            os.kill(updater.pid, signal.SIGCONT)
            halted.code = updater.wait(LIMIT)
            self.wait_unguarded()

    def run(self, order: Order) -> int:
        """An update from its beginning to its end; the updater's exit code."""
        code = self.start_updater(order).wait(LIMIT)
        self.wait_unguarded()
        return code

    def wait_unguarded(self) -> None:
        """Until no guard is at work."""
        _, alive = psutil.wait_procs(guards(), LIMIT)
        assert not alive, "expected the guard to be done"

    def open_updates(self) -> list[UpdateRecord]:
        return [update for update in self.lab.updates() if update.is_open]

    # -- what must be true -----------------------------------------------------------------------------------

    def check(self, *, on: QemuTree | None = None, traffic: bool = True) -> None:
        """Everything that must hold between two updates; `on`: the QEMU that must run the first guest."""
        self.wait_unguarded()
        assert not self.open_updates(), [
            (update.id, [(guest.name, guest.outcome, guest.reason) for guest in update.guests.values()])
            for update in self.open_updates()
        ]
        assert driver_lock_is_libvirts()
        for guest in self.guests.values():
            guest.check(traffic=traffic)
        if on is not None:
            assert self.guest.tree() == on
        found = everything()
        assert found == self.files, (sorted(found - self.files), sorted(self.files - found))
        assert not (RAM / "hostagent").exists(), "expected no pinned RAM"
        self.sound = True

    def last(self, name: str | None = None) -> tuple[Outcome | None, str]:
        """How a guest of the last update ended, and why."""
        update = self.lab.updates()[-1]
        guest = next(g for g in update.guests.values() if name in {None, g.name})
        return guest.outcome, guest.reason


class Updater:
    """A process that updates as the command line does; forked from one that has everything loaded."""

    def __init__(self, order: Order) -> None:
        self._process = _FORKS.Process(target=real_updater.main, args=(order.model_dump_json(),))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def wait(self, limit: float) -> int:
        """Its exit code, negative for a signal."""
        self._process.join(limit)
        assert self._process.exitcode is not None, f"expected the updater to end within {limit:g} s"
        return self._process.exitcode

    def is_alive(self) -> bool:
        return self._process.is_alive()


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.crash.real_updater"])


@dataclass
class Halted:
    """An updater that stands still."""

    world: World
    updater: Updater
    code: int | None = None

    def pids(self, name: str) -> tuple[int, int]:
        """The old and the new QEMU of a guest, 0 when there is none yet."""
        update = self.world.lab.updates()[-1]
        notes = next(guest.notes for guest in update.guests.values() if guest.name == name)
        return _pid(notes.get("old")), _pid(notes.get("new"))


def _pid(process: object) -> int:
    return int(process["pid"]) if isinstance(process, dict) else 0


@dataclass
class Tested:
    """One guest, as it was at first."""

    world: World
    spec: GuestSpec
    first: ProofReport
    domain_id: int
    ram: frozenset[tuple[int, int]]  # device and inode of its files
    taps: list[str]

    @classmethod
    def booted(cls, world: World, spec: GuestSpec) -> Tested:
        domain = world.host.connection.lookupByUUIDString(spec.uuid)
        first = Proof(domain).wait_booted()
        guest = cls(world, spec, first, domain.ID(), frozenset(), [])
        return replace(guest, ram=guest.ram_files(), taps=guest.tap_settings())

    def ram_files(self) -> frozenset[tuple[int, int]]:
        """The files that hold its RAM; none for a guest whose RAM has no name."""
        found = [path.stat() for path in self.world.host.ram_files(self.domain)]
        return frozenset((seen.st_dev, seen.st_ino) for seen in found)

    @property
    def domain(self) -> libvirt.virDomain:
        return self.world.host.connection.lookupByUUIDString(self.spec.uuid)

    @property
    def proof(self) -> Proof:
        return Proof(self.domain)

    def processes(self) -> list[psutil.Process]:
        """Every living QEMU that says it is this guest."""
        found = []
        for process in self.world.host.qemu_processes():
            with suppress(psutil.NoSuchProcess):
                if self.spec.uuid in process.cmdline():
                    found.append(process)
        return found

    def tree(self) -> QemuTree:
        """The QEMU that runs it."""
        (process,) = self.processes()
        exe = process.exe()
        return next(t for t in (self.world.lab.system, self.world.lab.newer) if os.path.realpath(t.emulator) == exe)

    def tap_settings(self) -> list[str]:
        """Virtio header length and offloads of its taps."""
        (process,) = self.processes()
        folder = Path(f"/proc/{process.pid}/fd")
        taps = tuple(int(fd.name) for fd in folder.iterdir() if str(fd.readlink()) == "/dev/net/tun")
        qemu = HostQemu()
        return sorted(qemu.tap_settings(qemu.identify(process.pid), taps).values())

    def felt_ms(self) -> float:
        """How long it stood still since the last reset of its peer; it runs now."""
        self.world.peer.wait_for_ticks(self.spec.address)
        return self.world.peer.felt(self.spec.address).stood_still_ns / MILLISECOND

    def forget_gaps(self) -> None:
        self.world.peer.reset(self.spec.address)

    def check(self, *, traffic: bool = True) -> None:
        """One QEMU runs it, libvirt knows which, and the guest is whole."""
        (process,) = self.processes()
        domain = self.domain
        assert domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING, domain.state()
        if self.world.technique is Technique.HANDOVER:  # libvirt numbers a guest anew that it restores
            assert domain.ID() == self.domain_id
        assert int(Path(f"/run/libvirt/qemu/{self.spec.name}.pid").read_text()) == process.pid
        record = Path(f"/run/libvirt/qemu/{self.spec.name}.xml").read_text()
        assert f"pid='{process.pid}'" in record
        assert domain.memoryStats()["actual"] == self.spec.memory_mib * 1024  # needs the monitor and the job
        assert domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE
        assert self.ram_files() == self.ram
        if traffic:
            self.check_alive()
        assert self.tap_settings() == self.taps

    def check_alive(self) -> None:
        """Disk requests complete, packets come and go, and every page and record is right."""
        proof, before = self.proof, self.proof.report()
        ticks = self.world.peer.felt(self.spec.address).ticks

        def goes_on() -> bool:
            now = proof.report()
            return (
                now.disk.last > before.disk.last
                and now.tcp.acked > before.tcp.acked
                and self.world.peer.felt(self.spec.address).ticks > ticks
            )

        wait_for(goes_on, "disk, connection and ticks to go on")
        report = proof.check()
        assert report.good, report
        assert report.boot_id == self.first.boot_id


def everything() -> frozenset[str]:
    """Every file below the folders that hostagent writes to, without libvirt's numbers of guests."""
    found = (str(path) for folder in FOLDERS for path in folder.rglob("*"))
    return frozenset(re.sub(r"(/|/domain-)\d+-", r"\1N-", path) for path in found)


def guards() -> list[psutil.Process]:
    """Every guard that lives."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE and GUARD in (process.info["cmdline"] or ()):
            found.append(process)
    return found


def libvirtd_pid() -> int | None:
    """The process that holds the lock on driver.pid, asked of the kernel's own list."""
    inode = Path("/run/libvirt/qemu/driver.pid").stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1] == "POSIX" and fields[5].endswith(f":{inode}"):
            return int(fields[4])
    return None


def driver_lock_is_libvirts() -> bool:
    pid = libvirtd_pid()
    return pid is not None and psutil.Process(pid).name() == "libvirtd"


def start_libvirtd_early() -> bool:
    """What an impatient person or a package does; whether it stays up and has its driver."""
    subprocess.run(LIBVIRTD_START, check=False, capture_output=True)
    wait_for(lambda: libvirtd_pid() is not None or not daemons(), "the daemon to be up or gone")
    return libvirtd_pid() is not None


@contextmanager
def world(*specs: GuestSpec, rehearse: bool = False, technique: Technique = Technique.HANDOVER) -> Iterator[World]:
    """A host with booted guests, which are to be updated by that technique."""
    with Host() as host, Peer(HOST_ADDRESS) as peer:
        made = World(host, peer, Lab.set_up(rehearse=rehearse), technique=technique)
        if technique is Technique.HOLD:
            made.lab.install_hook()
            host.restart_libvirtd()
        made.boot(*specs)
        yield made


__all__ = ["LIBVIRTD_PID", "World", "world"]
