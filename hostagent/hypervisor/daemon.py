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

from hostagent import processes
from hostagent.errors import Failed, HostagentError
from hostagent.hypervisor.driver_lock import DriverLock

POLL_SECONDS = 0.02
RETRY_SECONDS = 0.2

# Sockets first: an open socket starts the service again (systemd.socket(5)). libvirt 9.0's units.
_UNITS = (
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
        doing = f"stopping libvirt's daemon (pid {pid})"
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
    """libvirtd.service and its sockets."""

    lock: DriverLock
    answers: Callable[[], bool]
    active: tuple[str, ...] = field(default=())

    def is_up(self) -> bool:
        return self.lock.holder() is not None

    def stop(self, within_seconds: float) -> None:
        self.active = self._units("is-active", "active", within_seconds) or self.active
        if self.active:
            processes.run(["systemctl", "stop", *self.active], within_seconds=within_seconds)

    def start(self, within_seconds: float) -> None:
        # Whoever recovers did not stop them: then what is enabled was active.
        units = self.active or self._units("is-enabled", "enabled", within_seconds) or ("libvirtd.service",)

        def start_once() -> None:
            # Starts that our lock has doomed count against the units' start limit. 1: a unit that is not loaded.
            processes.run(["systemctl", "reset-failed", *units], within_seconds=within_seconds, accept=(0, 1))
            processes.run(["systemctl", "start", *units], within_seconds=within_seconds)

        _start(start_once, self.is_up, self.answers, within_seconds)

    def _units(self, question: str, wanted: str, within_seconds: float) -> tuple[str, ...]:
        """The units of which systemctl answers a question as wanted; it exits 1, 3 or 4 if one is otherwise."""
        argv = ["systemctl", question, *_UNITS]
        said = processes.run(argv, within_seconds=within_seconds, accept=(0, 1, 3, 4)).stdout.splitlines()
        return tuple(unit for unit, state in zip(_UNITS, said, strict=False) if state.strip() == wanted)

    def restart_hint(self) -> str:
        return "systemctl start libvirtd.socket libvirtd.service"


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
