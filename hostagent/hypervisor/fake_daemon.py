"""The fake's `Daemon` port, and what libvirt's daemon does to guests when it comes back to them.

As libvirt 9.0 does it (src/qemu/qemu_process.c, qemuProcessReconnect; libvirt-reconnect.md): what it believes comes
from the record file alone, and an error on the way makes it kill the guest.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from hostagent.errors import Failed, HostagentError
from hostagent.hypervisor import RunState
from hostagent.hypervisor.fake_physics import dies, libvirt_cleans_up
from hostagent.hypervisor.fake_world import LIBVIRT, FaultKind, GuestLife, Process, State, View, World
from hostagent.libvirt_files.runtime_record import RuntimeRecord
from hostagent.locks import OpenFileLock

_REASONS = {
    RunState.PAUSED: "user",
    RunState.POSTMIGRATE: "migration",
    RunState.FINISH_MIGRATE: "migration",
    RunState.INMIGRATE: "migration",
}


@dataclass(frozen=True)
class FakeDaemon:
    """libvirt's daemon, as something to stop and to start."""

    world: World

    def is_up(self) -> bool:
        with self.world.change() as state:
            return state.daemon.up

    def stop(self, within_seconds: float) -> None:
        with self.world.change() as state:
            if state.take(FaultKind.DAEMON_STAYS_UP):
                state.now_ns += round(within_seconds * 1e9)
                raise Failed("stopping libvirt's daemon", found="it still runs")
            leaves(self.world, state)

    def start(self, within_seconds: float) -> None:
        with self.world.change() as state:
            if state.daemon.up:
                return
            if state.take(FaultKind.DAEMON_STAYS_DOWN) or not comes_back(self.world, state):
                state.now_ns += round(within_seconds * 1e9)
                raise Failed("waiting for libvirt's daemon", found="none")

    def restart_hint(self) -> str:
        return "start the fake daemon"


def leaves(world: World, state: State) -> None:
    """It ends, by itself or by force: guests stay, its connections close, its lock goes."""
    state.daemon.up = False
    state.daemon.views, state.daemon.waiting = {}, []
    for guest in state.guests.values():
        guest.off = ""  # it forgets that
    for process in state.living():
        if process.client == LIBVIRT:
            process.client = ""
    _driver_lock(world).release()


def comes_back(world: World, state: State) -> bool:
    """It starts, unless somebody holds the driver's lock, and comes back to every guest that has a record."""
    lock = _driver_lock(world)
    free = lock.acquire()
    if lock.fd is not None:
        os.close(lock.fd)
    if not free:
        return False
    state.daemon.up = True
    for path in sorted(world.libvirt_run.glob("*.xml")):
        _reconnect(world, state, path)
    return True


def _driver_lock(world: World) -> OpenFileLock:
    """The daemon's own hold, on a copy of the world's descriptor: the open file stays with the world."""
    return OpenFileLock(world.libvirt_run / "driver.pid", os.dup(world.daemon_lock), 0o644)


def wait_for_monitors(world: World, state: State) -> None:
    """Guests whose monitor somebody else had: libvirt goes on with them as soon as it can."""
    waiting, state.daemon.waiting = state.daemon.waiting, []
    for path in waiting:
        _reconnect(world, state, Path(path))


def _reconnect(world: World, state: State, path: Path) -> None:
    try:
        record = RuntimeRecord.parse(path.read_bytes())
        guest = state.guests[record.uuid]
    except (OSError, HostagentError, KeyError):
        return None  # "Failed to load config": the guest is dropped, whatever runs
    listening = _who_listens(state, Path(record.monitor_path))
    process = state.processes.get(record.pid)
    if listening is None:
        return _kills(world, state, guest, process)
    if listening.hung or listening.client not in ("", LIBVIRT):
        state.daemon.waiting.append(str(path))
        return None
    taken_over = "-incoming" in world.argv(listening)
    if taken_over and state.take(FaultKind.QUESTION_FAILS_LATE, guest.uuid):
        return _kills(world, state, guest, process)
    listening.client = LIBVIRT
    believed, reason = record.state, record.reason
    if listening.state is RunState.RUNNING and believed != "running":
        believed, reason = "running", "unpaused"
    elif listening.state is not RunState.RUNNING and believed == "running":
        believed, reason = "paused", _REASONS.get(listening.state, "unknown")
    in_files = record.ram_source == "file"
    if guest.ram and not in_files:
        state.violated(f"libvirt does not know that the RAM of {guest.name} is in files: they would be left")
    view = View(record.pid, listening.pid, believed, reason, record.emulator, ram_in_files=in_files)
    state.daemon.views[guest.uuid] = view
    _save_record(path, record, believed, reason)
    return None


def _who_listens(state: State, monitor: Path) -> Process | None:
    try:
        process = state.processes[int(monitor.read_text())]
    except (OSError, ValueError, KeyError):
        return None
    return process if process.alive else None


def _kills(world: World, state: State, guest: GuestLife, process: Process | None) -> None:
    """The monitor cannot be reached: libvirt ends what the record names, and cleans up."""
    if process is not None and process.alive:
        if process.holds == guest.life:
            state.violated(f"libvirt killed {guest.name} as it came back to it")
        dies(world, state, process, tidily=False)
    libvirt_cleans_up(world, state, guest.uuid, "libvirt came back and found it dead")


def _save_record(path: Path, record: RuntimeRecord, believed: str, reason: str) -> None:
    """libvirt writes the record anew when it has come back."""
    old, new = f"<domstatus state='{record.state}' reason='{record.reason}'", f"<domstatus state='{believed}' "
    data = record.data.replace(old.encode(), (new + f"reason='{reason}'").encode())
    if data != record.data:
        beside = path.with_suffix(".xml.new")
        beside.write_bytes(data)
        beside.rename(path)


def emulator_in(xml: str, emulator: str) -> str:
    """The live XML as it is with that emulator."""
    return re.sub(r"<emulator>.*?</emulator>", f"<emulator>{emulator}</emulator>", xml)
