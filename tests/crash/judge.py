"""What must be true of the host once an update has ended, or was recovered: design, "Promises"."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

from hostagent.facts import GuestState
from hostagent.hypervisor import RunState
from hostagent.hypervisor.fake_physics import POLLING, RIGHT_TAP, THROTTLES
from hostagent.hypervisor.fake_qemu import PARAMETERS
from hostagent.hypervisor.fake_world import LIBVIRT, GuestLife, Process, State
from hostagent.update.journal import Outcome, UpdateRecord
from tests.crash import shapes
from tests.crash.rig import UPDATE_ID, Rig

SWAPPED = {Outcome.UPDATED: "new", Outcome.ROLLED_BACK: "old"}
RUNS = {Outcome.UPDATED: shapes.NEW.emulator, Outcome.ROLLED_BACK: shapes.OLD.emulator}


def outcomes(rig: Rig, updates: Sequence[UpdateRecord] | None = None) -> dict[str, Outcome | None]:
    """How the update of each guest ended, by name; a guest that the journal does not name is missing.

    updates: the journal, by one who has it folded already.
    """
    return {
        guest.name: guest.outcome
        for update in (rig.updates() if updates is None else updates)
        if update.id == UPDATE_ID
        for guest in update.guests.values()
    }


def reason(rig: Rig, name: str) -> str:
    """Why a guest ended as it did."""
    found = [g.reason for update in rig.updates() for g in update.guests.values() if g.name == name]
    return found[-1] if found else "not in the journal"


def problems(
    rig: Rig,
    *,
    daemon_up: bool = True,
    gone: Container[str] = (),
    updates: Sequence[UpdateRecord] | None = None,
) -> list[str]:
    """Everything that is not as promised; [] when all is well. `gone`: guests that somebody else has ended."""
    return list(_problems(rig, daemon_up, gone, rig.updates() if updates is None else updates))


def _problems(rig: Rig, daemon_up: bool, gone: Container[str], updates: Sequence[UpdateRecord]) -> Iterator[str]:
    yield from rig.host.violations()
    ended = outcomes(rig, updates)
    for update in updates:
        yield from _open_for_a_reason(update)
    with rig.host.world.look() as state:
        if state.daemon.up is not daemon_up:
            yield f"libvirt is {'up' if state.daemon.up else 'down'}"
        for uuid, guest in state.guests.items():
            if guest.name not in rig.uuids:
                if state.living(uuid):
                    yield f"the throw-away guest {guest.name} is still there"
                continue
            outcome = ended.get(guest.name) or Outcome.ROLLED_BACK
            living = state.living(uuid)
            if guest.name in gone:
                yield from (f"{guest.name} was ended, but process {one.pid} is there" for one in living)
            elif outcome in RUNS:
                emulator = shapes.OLD.emulator if rig.scenario.swaps else RUNS[outcome]
                yield from _runs_well(rig, state, guest, living, emulator)
            elif outcome is Outcome.NEEDS_OPERATOR:
                if guest.name not in rig.scenario.rebooted and not any(one.holds == guest.life for one in living):
                    yield f"{guest.name} waits for a person, but nothing holds its state"
            else:
                yield from (f"{guest.name} is {outcome}, but process {one.pid} is there" for one in living)
    if rig.scenario.swaps and rig.scenario.component == "modules":
        yield from _swapped(rig, updates)
    if state.daemon.up:
        for name, uuid in rig.uuids.items():
            if name not in gone and (ended.get(name) or Outcome.ROLLED_BACK) in RUNS:
                yield from _believed(rig, name, uuid)
    if Outcome.NEEDS_OPERATOR not in ended.values():
        yield from _left_over(
            rig, [name for name in rig.uuids if name not in gone and (ended.get(name) or Outcome.ROLLED_BACK) in RUNS]
        )


def _swapped(rig: Rig, updates: Sequence[UpdateRecord]) -> Iterator[str]:
    ended = next((update.outcome for update in updates if update.id == UPDATE_ID), Outcome.ROLLED_BACK)
    runs = rig.component.build()
    if ended in SWAPPED and runs != SWAPPED[ended]:
        yield f"the update is {ended}, and {runs} runs of what was to be swapped"


def _open_for_a_reason(update: UpdateRecord) -> Iterator[str]:
    waiting = any(guest.outcome is Outcome.NEEDS_OPERATOR for guest in update.guests.values())
    if update.is_open and not waiting:
        yield f"update {update.id} is open, and nobody is asked for"
    if not update.is_open and waiting:
        yield f"update {update.id} is closed while somebody is asked for"


def _runs_well(rig: Rig, state: State, guest: GuestLife, living: list[Process], emulator: str) -> Iterator[str]:
    name = guest.name
    if len(living) != 1:
        yield f"{name} has the processes {[one.pid for one in living]}"
        return
    process = living[0]
    if rig.host.world.argv(process)[0] != emulator:
        yield f"{name} is run by {rig.host.world.argv(process)[0]}"
    paused = name in rig.scenario.paused
    wanted = {RunState.PAUSED, RunState.POSTMIGRATE} if paused else {RunState.RUNNING}
    if process.state not in wanted:
        yield f"{name} is {process.state}"
    yield from _booted_as_often_as_promised(rig, guest, emulator)
    if process.holds != guest.life:
        yield f"{name} is in a state that is past"
    capabilities = process.capabilities
    if [on for on, state_of in capabilities.items() if state_of] != ["events"] or process.ballast:
        yield f"{name} is left with {capabilities}{' and ballast' * process.ballast}"
    if process.parameters != PARAMETERS:
        yield f"{name} is left with {process.parameters}"
    if (process.throttles, process.polling) != (THROTTLES, POLLING):
        yield f"{name} is left without its limits: {process.throttles}, {process.polling}"
    xml = rig.host.world.text(guest.xml)
    wanted_at = (["net0"] * ("<link state='down'/>" in xml), "shutdown" if "<on_reboot>destroy<" in xml else "reset")
    if (process.links_down, process.reboot) != wanted_at:
        yield f"{name} is left with links down {process.links_down}, at reboot {process.reboot}, not {wanted_at}"
    for tap in process.taps.values():
        if state.taps[tap] != RIGHT_TAP:
            yield f"tap {tap} of {name} is left with {state.taps[tap]}"
    if guest.uuid in state.daemon.views and state.daemon.views[guest.uuid].marked:
        yield f"{name} is left with a mark in its definition"
    if state.daemon.up and process.client != LIBVIRT:
        yield f"the monitor of {name} is {process.client or 'nobody'}'s"
    for path, device, inode, _ in guest.ram:
        found = Path(path).stat() if Path(path).exists() else None
        if found is None or (found.st_dev, found.st_ino) != (device, inode):
            yield f"the RAM file of {name} is not in its place"
    for path in (*rig.host.world.lib_dir(guest).iterdir(), rig.root / "run" / f"{name}.pid"):
        if path.read_text().strip() != str(process.pid):
            yield f"{path.name} of {name} is {path.read_text().strip()}'s, not {process.pid}'s"


def _booted_as_often_as_promised(rig: Rig, guest: GuestLife, emulator: str) -> Iterator[str]:
    """Once for a guest that is rebooted; and again, to come back to the old QEMU. Nobody else ever does."""
    rebooted = guest.name in rig.scenario.rebooted
    allowed = ({2} if emulator == shapes.NEW.emulator else {1, 2, 3}) if rebooted else {1}
    if guest.boots not in allowed:
        yield f"{guest.name} has booted {guest.boots} times"


def _believed(rig: Rig, name: str, uuid: str) -> Iterator[str]:
    guest = rig.host.libvirt.guest(uuid)
    living = rig.host.processes(uuid)
    process = living[0] if len(living) == 1 else None
    if guest is None or guest.process is None or process is None or guest.process.pid != process.pid:
        yield f"libvirt takes {name} for {guest and guest.process and guest.process.pid}"
        return
    wanted = GuestState.PAUSED_BY_OWNER if name in rig.scenario.paused else GuestState.RUNNING
    if guest.state is not wanted:
        yield f"libvirt takes {name} for {guest.state} ({guest.state_reason})"
    if guest.definition.emulator != rig.host.world.argv(process)[0]:
        yield f"libvirt takes {name} for run by {guest.definition.emulator}"


def _left_over(rig: Rig, alive: list[str]) -> Iterator[str]:
    expected = {"run/driver.pid", *(f"run/{name}.{end}" for name in alive for end in ("xml", "pid"))}
    root = f"{rig.root}/"
    with rig.host.world.look() as state:
        for guest in state.guests.values():
            if guest.name in alive:
                folder = str(rig.host.world.lib_dir(guest)).removeprefix(root)
                expected |= {f"{folder}/monitor.sock", f"{folder}/org.qemu.guest_agent.0"}
                expected |= {path.removeprefix(root) for path, *_ in guest.ram}
    for folder in ("run", "lib", "ram", "state/held", "state/run", "state/rehearsal"):
        for at, _, names in os.walk(root + folder):
            found = {f"{at}/{name}".removeprefix(root) for name in names}
            yield from (f"left over: {path}" for path in sorted(found - expected))
    if (rig.root / "ram" / "hostagent").exists():
        yield "left over: the folder of the pins"
    for empty in (rig.root / "ram" / "libvirt" / "qemu").iterdir():
        if not any(empty.iterdir()):
            yield f"left over: the empty folder {empty.name}"
