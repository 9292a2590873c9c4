"""Recovery by the guard, with the locks that it shared with the updater. Imported by it before there is any hurry."""

from __future__ import annotations

import sys
from contextlib import suppress
from datetime import UTC, datetime

from hostagent import wiring
from hostagent.config import Config
from hostagent.hypervisor.driver_lock import DriverLock
from hostagent.hypervisor.libvirt import boot_id
from hostagent.update.host_lock import GUARDING, HostLock
from hostagent.update.recovery import recover


def take_over(config: Config, lock: DriverLock, host_lock_fd: int) -> None:
    """Finish or undo what the updater left; what stays open waits for `hostagent recover`."""
    host_lock = HostLock.at(wiring.host_lock_path(config), host_lock_fd)
    host_lock.take(GUARDING, wiring.now())
    journal = wiring.journal_of(config)
    ports = wiring.ports_of(config, journal, lock=lock)
    for update in recover(ports, boot_id=boot_id(), tell=_tell):
        say(f"update {update.id}: {update.outcome or 'still open'}")


def say(words: str) -> None:
    """A line in the guard's log, if there is room for it."""
    with suppress(OSError):
        print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC guard: {words}", file=sys.stderr, flush=True)


def _tell(key: str, step: str, doing: str) -> None:
    say(f"guest={key or '-'} step={step} {doing}")
