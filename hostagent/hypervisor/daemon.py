"""libvirt's daemon, stopped and started: through systemd where that is init, by signal and command elsewhere.

Which daemon it is, is not guessed from names: it is the process that holds the lock on driver.pid. Whatever was active
before is started again, nothing else.
"""

from __future__ import annotations

import os
import select
import shlex
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hostagent import processes
from hostagent.errors import Failed, HostagentError
from hostagent.hypervisor.driver_lock import DriverLock

POLL_SECONDS = 0.02
_DELETED = " (deleted)"
RETRY_SECONDS = 0.2
# libvirt ends itself when its drivers have not ended for 30 s (virNetDaemonRun). 11.3 often does: its node device
# driver waits for a thread that waits for it (nodeStateShutdownWait). The guests run meanwhile; none has been touched.
LEAVES_SECONDS = 45.0

# Sockets first: an open socket starts the service again (systemd.socket(5)). Units of libvirt 9.0 to 11.3: the QEMU
# driver's own daemon, and the one for everything. Where both are there, qemu:///system is the first (libvirt,
# remoteGetUNIXSocket). The other modular daemons stay up: a daemon that comes back to its guests asks them.
_MODULAR = ("virtqemud.socket", "virtqemud-ro.socket", "virtqemud-admin.socket", "virtqemud.service")
_MONOLITHIC = (
    "libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket", "libvirtd-tcp.socket", "libvirtd-tls.socket",
    "libvirtd.service",
)  # fmt: skip


@dataclass
class CommandDaemon:
    """A daemon that runs without an init that knows it: ended by SIGTERM, started by a command."""

    lock: DriverLock
    command: Sequence[str]
    answers: Callable[[], bool]

    def is_up(self) -> bool:
        return self.lock.holder() is not None

    def stop(self, within_seconds: float) -> None:
        pid = self.lock.holder()
        if pid is None:
            return
        doing, within_seconds = f"stopping libvirt's daemon (pid {pid})", max(within_seconds, LEAVES_SECONDS)
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            signal.pidfd_send_signal(handle, signal.SIGTERM)
            if not select.select([handle], [], [], within_seconds)[0]:
                raise Failed(doing, expected=f"it gone within {within_seconds:g} s", found="it still runs")
        except ProcessLookupError:
            pass
        finally:
            os.close(handle)

    def start(self, within_seconds: float) -> None:
        def start_once() -> None:
            processes.run(list(self.command), within_seconds=within_seconds)

        _start(start_once, self.is_up, self.answers, within_seconds)

    def restart_hint(self) -> str:
        return shlex.join(self.command)


@dataclass
class SystemdDaemon:
    """virtqemud.service or libvirtd.service, and its sockets."""

    lock: DriverLock
    answers: Callable[[], bool]
    units: tuple[str, ...] = field(default=())  # stopped, or to be started

    def is_up(self) -> bool:
        return self.lock.holder() is not None

    def stop(self, within_seconds: float) -> None:
        states = _unit_states(within_seconds)
        active = tuple(unit for unit in (*_MODULAR, *_MONOLITHIC) if states.get(unit, _Unit()).active)
        if active:
            self.units = active
            processes.run(["systemctl", "stop", *active], within_seconds=max(within_seconds, LEAVES_SECONDS))

    def start(self, within_seconds: float) -> None:
        self.units = self.units or _usual_units(_unit_states(within_seconds))

        def start_once() -> None:
            # Starts that our lock has doomed count against the units' start limit. 1: a unit that is not loaded.
            processes.run(["systemctl", "reset-failed", *self.units], within_seconds=within_seconds, accept=(0, 1))
            processes.run(["systemctl", "start", *self.units], within_seconds=within_seconds)

        _start(start_once, self.is_up, self.answers, within_seconds)

    def restart_hint(self) -> str:
        return shlex.join(["systemctl", "start", *(self.units or ("libvirtd.socket", "libvirtd.service"))])


# They hold the pipes of guests' logs, and leases on their disks: reloaded, each executes itself anew and keeps them.
_OTHERS = ("virtlogd.service", "virtlockd.service")
_RELOAD_SECONDS = 20.0


def reload_others(proc: Path = Path("/proc")) -> None:
    """Have virtlogd and virtlockd run what is installed, where their files were replaced; no guest's log is cut off.

    virtlogd(8): SIGUSR1, systemd's reload. Raises Failed when one has not survived it.
    """
    for unit in _OTHERS:
        exe = _replaced(unit, proc)
        if exe is None or not Path(exe).exists():
            continue  # current, or not there, or its package was removed: it runs on as it is
        processes.run(["systemctl", "reload", unit], within_seconds=_RELOAD_SECONDS)

        def reloaded(unit: str = unit) -> bool:
            return _main_exe(unit, proc) != "" and _replaced(unit, proc) is None

        wait_until(reloaded, _RELOAD_SECONDS, f"waiting for {unit} to run what is installed")


def _replaced(unit: str, proc: Path) -> str | None:
    """The file that the unit's process was started from, where that is not there any more, or another one."""
    exe = _main_exe(unit, proc)
    return exe.removesuffix(_DELETED) if exe.endswith(_DELETED) else None


def _main_exe(unit: str, proc: Path) -> str:
    argv = ["systemctl", "show", "--property=MainPID", "--value", unit]
    pid = processes.run(argv, within_seconds=_RELOAD_SECONDS).stdout.strip()
    try:
        return os.readlink(proc / pid / "exe") if pid not in ("", "0") else ""  # noqa: PTH115 - need not be there
    except OSError:
        return ""


@dataclass(frozen=True)
class _Unit:
    exists: bool = False
    active: bool = False
    enabled: bool = False


def _unit_states(within_seconds: float) -> dict[str, _Unit]:
    """By name; `systemctl is-enabled` stops at the first unit that a host does not have (systemd 252), `show` tells."""
    shown = ["--property=Id", "--property=LoadState", "--property=ActiveState", "--property=UnitFileState"]
    argv = ["systemctl", "show", *shown, *_MODULAR, *_MONOLITHIC]
    states = {}
    for block in processes.run(argv, within_seconds=within_seconds).stdout.split("\n\n"):
        said = dict(line.partition("=")[::2] for line in block.splitlines())
        states[said.get("Id", "")] = _Unit(
            exists=said.get("LoadState") != "not-found",
            active=said.get("ActiveState") == "active",
            enabled=said.get("UnitFileState") == "enabled",
        )
    return states


def _usual_units(states: dict[str, _Unit]) -> tuple[str, ...]:
    """What was active before, when somebody else stopped it: what is enabled; of one daemon, for they conflict."""
    for kind in (_MODULAR, _MONOLITHIC):
        if enabled := tuple(unit for unit in kind if states.get(unit, _Unit()).enabled):
            return enabled
    services = (kind[-1] for kind in (_MONOLITHIC, _MODULAR))
    return (next((name for name in services if states.get(name, _Unit()).exists), _MONOLITHIC[-1]),)


def _start(
    start_once: Callable[[], None], is_up: Callable[[], bool], answers: Callable[[], bool], within_seconds: float
) -> None:
    """Start it until it answers: one start fails, or does nothing, while another is under way that our lock dooms."""

    def up_and_answers() -> bool:
        if not is_up():
            try:
                start_once()
            except HostagentError:
                time.sleep(RETRY_SECONDS)
                raise
        return answers()

    wait_until(up_and_answers, within_seconds, "waiting for libvirt's daemon")


def wait_until(condition: Callable[[], bool], within_seconds: float, doing: str) -> None:
    """Ask until it is so; raises Failed when it is not in time."""
    ends = time.monotonic() + within_seconds
    last: HostagentError | None = None
    while True:
        try:
            if condition():
                return
        except HostagentError as error:
            last = error
        if time.monotonic() > ends:
            raise Failed(doing, expected=f"an answer within {within_seconds:g} s", found=str(last or "none"))
        time.sleep(POLL_SECONDS)
