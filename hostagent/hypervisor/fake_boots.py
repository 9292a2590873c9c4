"""The fake's guests as they shut themselves down and boot anew."""

from __future__ import annotations

from hostagent.errors import Failed
from hostagent.hypervisor.domain_xml import read_definition
from hostagent.hypervisor.fake_metadata import with_policy
from hostagent.hypervisor.fake_physics import SHUTDOWN_NS, begins_to_run, dies
from hostagent.hypervisor.fake_saves import starts
from hostagent.hypervisor.fake_world import FaultKind, GuestLife, State, World

MINUTES_NS = 120_000_000_000
_BOOTS = "00000000-0000-4000-9000-{:012x}"


def is_asked_to_shut_down(state: State, guest: GuestLife) -> None:
    """Someone has pressed its power button, or told its agent: it sees to that in its own time, or never."""
    process = state.processes[state.daemon.views[guest.uuid].monitor_pid]
    if state.take(FaultKind.SHUTDOWN_IGNORED, guest.uuid):
        return
    late = state.take(FaultKind.SHUTDOWN_LATE, guest.uuid)
    process.ends_at_ns = process.ends_at_ns or state.now_ns + (MINUTES_NS if late else SHUTDOWN_NS)


def boots_anew(world: World, state: State, guest: GuestLife, emulator: str | None) -> None:
    """From its disks, with fresh RAM, if the hook lets it."""
    doing = f"starting {guest.name}"
    if guest.uuid in state.daemon.views:
        raise Failed(doing, found=f"domain '{guest.name}' is already active")
    xml = with_policy(world.text(guest.xml), guest.policy)
    if state.take(FaultKind.START_FAILS, guest.uuid):
        guest.off = "failed"
        raise Failed(doing, found="internal error: process exited while connecting to monitor")
    if guest.managed_save:
        state.violated(f"{guest.name} was booted past a state that libvirt keeps")
    guest.xml = world.keep_text(xml)
    process = starts(world, state, guest, xml, emulator or read_definition(xml).emulator)
    files = zip(guest.ram, process.ram, strict=True)
    guest.ram = [(path, device, inode, size) for (path, _, _, size), (device, inode) in files]
    guest.life += 1
    guest.boots += 1
    process.holds = guest.life
    guest.lag_ns = guest.stands_since_ns = 0  # it reads the host's clock as it boots
    begins_to_run(state, process)
    view = state.daemon.views[guest.uuid]
    view.state, view.reason = "running", "booted"
    guest.silent = state.take(FaultKind.BOOT_SILENT, guest.uuid)
    if state.take(FaultKind.BOOT_EXITS, guest.uuid):
        dies(world, state, process, tidily=False)


def boot_id(guest: GuestLife) -> str:
    """Of the guest's own boot."""
    return _BOOTS.format(guest.boots)
