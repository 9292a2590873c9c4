"""What surrounds every verb that changes something: the host's lock, recovery first, a guard during an update."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hostagent import wiring
from hostagent.config import Config
from hostagent.errors import HostagentError, NeedsOperator
from hostagent.guard import Guard
from hostagent.hypervisor.libvirt import boot_id
from hostagent.setup import setup_host
from hostagent.setup.host_files import HostFiles
from hostagent.setup.persistent_ram import mount_ram
from hostagent.update.host_lock import HostLock
from hostagent.update.journal import Outcome, SqliteJournal, UpdateRecord
from hostagent.update.recovery import any_has_landed, get_ready_after_boot, recover
from hostagent.update.saga import Teller
from hostagent.update.subject import Ports


@dataclass
class Session:
    """The host is ours: nobody else changes it meanwhile."""

    config: Config
    lock: HostLock
    journal: SqliteJournal
    recovered: tuple[UpdateRecord, ...]  # what was open when it began, as it is now
    left_to_guard: bool = False  # an error broke out of an update: the guard recovers once this process is gone

    @contextmanager
    def guarded(self) -> Iterator[Ports]:
        """Ports for an update that a guard watches over, until the update is closed or waits for a person."""
        guard = Guard(self.config, self.lock.fd, self.config.paths.state / "guard.log")
        ports = wiring.ports_of(self.config, self.journal, watcher=guard)
        try:
            yield ports
        except BaseException:
            self.left_to_guard = bool(self.journal.open_updates())  # a guest may stand still: nobody here knows
            if not self.left_to_guard:
                guard.dismiss()
            raise
        finally:
            ports.libvirt.disconnect()  # a roll has ports of its own for each group
            for host in ports.hosts.values():
                host.disconnect()
        guard.dismiss()


@contextmanager
def changing(config: Config, doing: str, tell: Teller) -> Iterator[Session]:
    """Take the host's lock and finish or undo what was left open.

    Raises Refused when somebody else changes the host.
    """
    lock = HostLock.at(wiring.host_lock_path(config))
    journal = wiring.journal_of(config)  # makes the directory that the lock is in
    session = None
    try:
        lock.take(doing, wiring.now())
        ports = wiring.ports_of(config, journal)
        recovered = recover(ports, boot_id=boot_id(), tell=tell) if journal.open_updates() else ()
        ports.libvirt.disconnect()
        session = Session(config, lock, journal, recovered)
        yield session
    finally:
        if session is None or not session.left_to_guard:
            lock.release()
        journal.close()


def after_boot(config: Config) -> None:
    """What must be so before libvirt's daemon starts: guests' RAM in its place, libvirt's hook told who is held."""
    try:
        if config.setup.ram_device:
            _have_ram(config)
    finally:  # whatever became of that: nobody else may start guests that are held
        with _ports_at_boot(config) as ports:
            if ports is not None:
                get_ready_after_boot(ports, boot_id=boot_id())


def _have_ram(config: Config) -> None:
    """Mounted as it is for guests that are held there; else made anew: what other guests left would only fill it."""
    wanted = setup_host.wanted_on_this_host(config, HostFiles())
    kept = wiring.kernel_of(config).was_leapt_to() and _ram_is_held(config)
    target = config.setup.memory_backing_dir
    mount_ram(Path(config.setup.ram_device), target, wanted.qemu_uid, wanted.qemu_gid, fresh=not kept)


def _ram_is_held(config: Config) -> bool:
    """Whether RAM of guests has come over from another kernel; yes where that cannot be told."""
    try:
        with _ports_at_boot(config) as ports:
            return ports is not None and any_has_landed(ports, boot_id=boot_id())
    except HostagentError:
        return True


@contextmanager
def _ports_at_boot(config: Config) -> Iterator[Ports | None]:
    """None where there never was an update."""
    if not wiring.journal_path(config).exists():
        yield None
        return
    journal = wiring.journal_of(config)
    try:
        yield wiring.ports_of(config, journal)
    finally:
        journal.close()


def require_nothing_open(session: Session) -> None:
    """Raises NeedsOperator when something is still open after recovery: no new update on top of it."""
    for update in session.recovered:
        if update.is_open:
            waiting = [guest for guest in update.guests.values() if guest.outcome is Outcome.NEEDS_OPERATOR]
            raise NeedsOperator(
                f"update {update.id} is still open",
                found="; ".join(f"{guest.name}: {guest.reason}" for guest in waiting) or "it could not be closed",
                hint="hostagent status; then: hostagent recover",
            )
