"""A test guest seen from all sides: by itself, by libvirt, and by the kernel of the host."""

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import libvirt
import psutil

from hostagent.hypervisor.domain_xml import live_differences
from tests.bench.guest_spec import GuestSpec
from tests.bench.host import Host
from tests.bench.lab import Lab
from tests.bench.peer import Felt, Peer
from tests.bench.proof import POLL, Proof, ProofReport

LIMIT = 300.0
"""Seconds after which something that must happen is taken for something that never does."""


@dataclass(frozen=True)
class Look:
    """Everything about a guest at one moment. `report` is None while it stands still and cannot answer."""

    report: ProofReport | None
    felt: Felt
    connections: int
    state: tuple[int, int]
    domain_id: int
    live_xml: str
    persistent_xml: str
    autostart: int | None
    qemus: tuple[int, ...]
    exe: str
    ram: frozenset[tuple[int, int, int]]  # device, inode, size
    console: tuple[int, ...]


@dataclass(frozen=True)
class Watched:
    """A guest on the bench's host; stays good across restarts of libvirtd."""

    host: Host
    peer: Peer
    spec: GuestSpec

    @property
    def domain(self) -> libvirt.virDomain:
        return self.host.connection.lookupByUUIDString(self.spec.uuid)

    @property
    def proof(self) -> Proof:
        return Proof(self.domain)

    @property
    def pid(self) -> int:
        """The QEMU that runs it: there must be exactly one."""
        (pid,) = self.qemus()
        return pid

    @property
    def is_paused(self) -> bool:
        return self.domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED

    def felt(self) -> Felt:
        return self.peer.felt(self.spec.address)

    def forget_gaps(self) -> None:
        self.peer.reset(self.spec.address)

    def wait_for_ticks(self) -> None:
        """Enough that what was felt until now can be told."""
        self.peer.wait_for_ticks(self.spec.address)

    def goes_on(self, since: ProofReport) -> ProofReport:
        """Wait until each of its loops has gone round, and all that it had sent has come back."""
        ends = time.monotonic() + LIMIT
        while not _is_further(now := self.proof.report(), since):
            assert time.monotonic() < ends, f"expected it to go on from {since}, found {now}"
            time.sleep(POLL)
        return now

    def whole_console(self, report: ProofReport) -> tuple[int, ...]:
        """Wait until all that it had written by then is in its log, which somebody else writes."""
        ends = time.monotonic() + LIMIT
        while len(console := self.console()) < report.console_lines:
            assert time.monotonic() < ends, f"expected {report.console_lines} lines, found {len(console)}"
            time.sleep(POLL)
        return console

    def qemus(self) -> tuple[int, ...]:
        """Every QEMU process that is this guest, whoever started it."""
        return tuple(process.pid for process in self.host.qemu_processes() if self.spec.uuid in _words(process))

    def look(self) -> Look:
        return self._look(None if self.is_paused else self.proof.report())

    def look_from_outside(self) -> Look:
        """Of one that has no agent, say."""
        return self._look(None)

    def _look(self, report: ProofReport | None) -> Look:
        domain = self.domain
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
        qemus = self.qemus()
        return Look(
            report=report,
            felt=self.felt(),
            connections=self.peer.connections(self.spec.address),
            state=tuple(domain.state()),
            domain_id=domain.ID(),
            live_xml=domain.XMLDesc(),
            persistent_xml=domain.XMLDesc(flags) if domain.isPersistent() else "",
            autostart=domain.autostart() if domain.isPersistent() else None,
            qemus=qemus,
            exe=str(Path(f"/proc/{qemus[0]}/exe").readlink()) if qemus else "",
            ram=frozenset(_identity(path) for path in self.host.ram_files(domain)),
            console=self.console(),
        )

    def check_that_it_ran_on(self, was: Look, differences: tuple[str, ...] = ()) -> None:
        """As it was, with the same QEMU, and libvirt knows it so, but for what another libvirt says of all guests."""
        self.wait_for_ticks()
        now = self.look()
        assert now.felt.stood_still_ns < 100e6
        assert (now.qemus, now.domain_id, now.state[0]) == (was.qemus, was.domain_id, was.state[0])
        assert live_differences(was.live_xml, now.live_xml) == differences
        assert self.proof.check().good

    def console(self) -> tuple[int, ...]:
        """The numbers that the guest has counted on its serial console, as they stand in its log."""
        text = self.spec.console_log.read_text(errors="replace")
        return tuple(int(number) for number in re.findall(r"^tick (\d+)\r?\n", text, re.MULTILINE))


def _is_further(now: ProofReport, since: ProofReport) -> bool:
    disk = not now.disk.present or now.disk.last > since.disk.last
    traffic = not now.tcp.present or now.tcp.sent > since.tcp.sent <= now.tcp.acked
    return disk and traffic and now.console_lines > since.console_lines


def is_of(exe: str, emulator: str) -> bool:
    """Whether a running executable is that emulator's file."""
    return exe == os.path.realpath(emulator)


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def _identity(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size


# -- what an update must not leave ---------------------------------------------------------------------------

_PLACES = (
    *("/run/libvirt", "/var/lib/libvirt", "/etc/libvirt", "/var/lib/hostagent", "/run/hostagent", "/tmp"),
    *("/dev/shm", "/sys/class/net", "/var/log/libvirt"),
)
_KEPT = re.compile(r"/var/lib/hostagent/(journal\.sqlite(-wal|-shm)?|lock|guard\.log|held|rehearsal)")


def leavings() -> frozenset[str]:
    """Names of all files, network devices and processes that an update could leave on the host."""
    files = {str(path) for place in _PLACES for path in Path(place).rglob("*")}
    processes = [
        f"process {process.info['name']}"
        for process in psutil.process_iter(["name", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid()
    ]
    counted = {f"{name} x {processes.count(name)}" for name in processes}
    return frozenset(counted | {name for name in files if _KEPT.fullmatch(name) is None})


def journal_is_closed(lab: Lab) -> bool:
    return not any(update.is_open for update in lab.updates())
