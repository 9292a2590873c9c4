"""libvirt's daemon: taken away for a while, brought back, and what it believes afterwards."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from hostagent.errors import Failed, HostagentError, NeedsOperator
from hostagent.facts import GuestState
from hostagent.hypervisor import Libvirt, ProcessId
from hostagent.hypervisor.domain_xml import live_differences
from hostagent.libvirt_files.memory_backing import with_shared_ram
from hostagent.update.beside import unpin
from hostagent.update.swap import GuestSwap, HostSwap


def detach(host: HostSwap) -> None:
    """Stop libvirt's daemon and keep it out. QEMU processes stay."""
    ports = host.ports
    ports.watcher.ready()
    if ports.daemon.is_up():  # one that is away comes back to nobody, and runs no job
        _let_it_come_back(host)
        if not host.urgent:
            no_jobs(ports.libvirt)
    ports.libvirt.disconnect()
    ports.daemon.stop(ports.config.libvirt.daemon.ready_seconds)
    if not ports.lock.acquire():
        raise Failed(
            "taking libvirt's driver lock",
            expected="it free, with the daemon stopped",
            found=f"pid {ports.lock.holder()} has it",
        )
    ports.watcher.hold(ports.lock)


def _let_it_come_back(host: HostSwap) -> None:
    """A daemon that is stopped while it comes back to a guest may end that guest: for it that is an error.

    One that never gets there is stopped all the same: another guest may stand still.
    """
    for swap in host.guests:
        if swap.saved is not None:
            with suppress(HostagentError):
                host.ports.libvirt.settled(swap.uuid)


def no_jobs(libvirt: Libvirt) -> None:
    """A migration, backup or block job of any guest would be cut off with the daemon: raises Failed for one."""
    busy = [f"{guest.name}: {guest.job}" for guest in libvirt.host().guests if guest.job]
    if busy:
        raise Failed(
            "taking libvirt's daemon away", expected="no job on any guest", found="; ".join(busy), hint="wait for it"
        )


def is_detached(host: HostSwap) -> bool:
    return host.ports.lock.held()


def attach(host: HostSwap) -> None:
    """Give the lock up and start the daemon; it comes back to every guest as after any restart."""
    ports = host.ports
    for swap in host.guests:
        swap.close_monitors()
    for swap in host.guests:  # one that runs is worth more than the daemon, which can come back at any time
        if swap.unproven and swap.new_is_alive() and not swap.rehearsal:
            raise swap.unproven
    ports.lock.release()
    try:
        ports.daemon.start(ports.config.libvirt.daemon.ready_seconds)
    except HostagentError as error:
        raise NeedsOperator(
            "starting libvirt's daemon again",
            expected="it to answer",
            found=str(error),
            hint=ports.daemon.restart_hint(),
        ) from error


def is_attached(host: HostSwap) -> bool:
    return host.ports.libvirt.usable()


def look_at_guest(swap: GuestSwap) -> None:
    """What libvirt believes must be true before the pins go."""
    believed(swap, swap.new_process)
    if not swap.rehearsal:
        before = with_shared_ram(swap.notes.live_xml) if swap.copies else swap.notes.live_xml
        changed = live_differences(before, swap.ports.libvirt.live_xml(swap.uuid))
        swap.measured({"xml_differences": list(changed)})
    unpin(swap)


def believed(swap: GuestSwap, process: ProcessId) -> None:
    """Raises NeedsOperator unless libvirt takes the guest for what it is, run by this process.

    Its owner may have paused or resumed it meanwhile, and it may have stopped by itself; what must not be is a guest
    that stands still because of us.
    """
    swap.ports.libvirt.settled(swap.uuid)
    guest = swap.ports.libvirt.guest(swap.uuid)
    wanted = GuestState.RUNNING if swap.notes.was_running else GuestState.PAUSED_BY_OWNER
    doing = f"{swap.name}: looking at it through libvirt"
    if guest is None or guest.process is None:
        raise NeedsOperator(doing, expected=wanted, found="libvirt does not run it", hint=f"virsh dominfo {swap.uuid}")
    if guest.process.pid != process.pid or guest.domain_id != swap.notes.domain_id:
        raise NeedsOperator(
            doing,
            expected=f"pid {process.pid}, id {swap.notes.domain_id}",
            found=f"pid {guest.process.pid}, id {guest.domain_id}",
        )
    if guest.state not in _NOT_OURS and guest.state_reason not in _STOPPED_BY_ITSELF:
        raise NeedsOperator(
            doing,
            expected=wanted,
            found=f"{guest.state} ({guest.state_reason})",
            hint=f"virsh resume {swap.uuid}",
        )


_NOT_OURS = {
    *(GuestState.RUNNING, GuestState.PAUSED_BY_OWNER, GuestState.PM_SUSPENDED),
    *(GuestState.SHUTTING_DOWN, GuestState.CRASHED),
}
_STOPPED_BY_ITSELF = {"I/O error", "watchdog", "crashed"}  # reasons for a pause, as the libvirt border words them


def is_unpinned(swap: GuestSwap) -> bool:
    ours = (
        *(pin.link for pin in swap.notes.pins),
        swap.notes.kept_record,
        swap.notes.old_record,
        swap.notes.old_pid_file,
    )
    return not any(Path(path).exists() for path in ours)
