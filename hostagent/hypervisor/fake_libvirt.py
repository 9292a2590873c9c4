"""The fake's `Libvirt` and `GuestAgent` ports."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hostagent.clock import AgentError, AgentFault, GuestAgent
from hostagent.errors import Failed, HostagentError, OutcomeUnknown, Refused
from hostagent.facts import Guest, GuestState, Host, QemuProcess, QemuTree, RamFile, RamRoom, Version
from hostagent.hypervisor import BeforeItsEnd, ProcessId, RunState, Sender, ShutDownBy, Standing
from hostagent.hypervisor.domain_xml import read_definition
from hostagent.hypervisor.fake_boots import boot_id, boots_anew, is_asked_to_shut_down
from hostagent.hypervisor.fake_daemon import emulator_in, leaves, wait_for_monitors
from hostagent.hypervisor.fake_metadata import in_namespace, with_policy
from hostagent.hypervisor.fake_monitor import WALL_SECONDS, FakeMonitor
from hostagent.hypervisor.fake_physics import dies, go_on, libvirt_cleans_up, stands_still
from hostagent.hypervisor.fake_saves import guest_of_image, restores, writes_state
from hostagent.hypervisor.fake_world import LIBVIRT, FaultKind, GuestLife, Process, State, View, World
from hostagent.libvirt_files.capability_cache import CapabilityCache, cache_file_name, flags_of_capability_cache
from hostagent.libvirt_files.held_definition import NAMESPACE
from hostagent.libvirt_files.memory_backing import with_shared_ram
from hostagent.policy import PolicyPart
from hostagent.policy_xml import written_policy

BOOT_ID = "00000000-0000-4000-8000-000000000001"


@dataclass(frozen=True)
class FakeLibvirt:
    """libvirt's API; `boot` starts a guest from XML."""

    world: World
    trees: tuple[QemuTree, ...]
    boot: Callable[[str], str]

    def host(self) -> Host:
        with self._asked("listing guests") as state:
            uuids = list(state.guests)
        guests = [guest for uuid in uuids if (guest := self.guest(uuid)) is not None]
        return Host(
            hostname="fake",
            kernel="6.1.0-fake",
            boot_id=BOOT_ID,
            libvirt=Version(9, 0),
            libvirt_uri="fake:///system",
            qemu=self.trees,
            guests=tuple(sorted(guests, key=lambda guest: guest.name)),
            lock_manager="",
            memory_backing_dir=self.memory_backing_dir(),
            ram_room=RamRoom("tmpfs", unpromised=1 << 40, available=1 << 40),
            hold_hook=True,
        )

    def guest(self, uuid: str) -> Guest | None:
        with self._asked(f"finding guest {uuid}") as state:
            guest, view = state.guests.get(uuid), state.daemon.views.get(uuid)
            if guest is None or (view is None and not guest.persistent):
                return None
            _answers(state, guest)
            xml = self._xml(state, guest)
            process = self._process(state, guest) if view else None
            return Guest(
                name=guest.name,
                uuid=uuid,
                domain_id=guest.domain_id if view else None,
                state=_state(view.state, view.reason) if view else GuestState.SHUT_OFF,
                state_reason=view.reason if view else guest.off,
                persistent=guest.persistent,
                autostart=guest.autostart,
                definition=read_definition(xml),
                process=process,
                qemu=self._tree(process),
                job="a domain job" if view and (view.saving or _leaves(state, uuid)) else "",
                managed_save=guest.managed_save,
                ram_files=tuple(
                    RamFile(f"ram{n}", path, device, inode, size)
                    for n, (path, device, inode, size) in enumerate(guest.ram)
                )
                if view
                else (),
            )

    def settled(self, uuid: str) -> None:
        doing = "waiting until libvirt is back at a guest"
        with self._asked(doing) as state:
            guest = state.guests.get(uuid)
            if guest is not None:
                _answers(state, guest)
            if uuid not in state.daemon.views:
                raise Failed(doing, expected=f"guest {uuid}", found="none")

    def live_xml(self, uuid: str) -> str:
        with self._asked("reading a guest's definition") as state:
            guest = state.guests.get(uuid)
            if guest is None or uuid not in state.daemon.views:
                raise Failed("reading a guest's definition", expected=f"guest {uuid}", found="none")
            return self._xml(state, guest)

    def capability_cache(self, emulator: str, virtualisation: str, machine: str) -> CapabilityCache:
        with self._asked(f"having libvirt examine {emulator}"):
            path = self.world.root / "cache" / "capabilities" / cache_file_name(emulator)
            try:
                return flags_of_capability_cache(path.read_bytes())
            except OSError as error:
                raise Failed(f"reading {path}", found=str(error)) from error

    def capability_filters(self) -> tuple[str, ...]:
        return ()

    def memory_backing_dir(self) -> str:
        return str(self.world.root / "ram")

    @contextmanager
    def sender(self, uuid: str) -> Iterator[Sender]:
        doing = "reaching a guest's QEMU"
        with self._asked(doing) as state:
            guest, view = state.guests.get(uuid), state.daemon.views.get(uuid)
            if guest is None or view is None:
                raise Failed(doing, expected=f"guest {uuid}", found="none")
            _answers(state, guest)
        yield FakeMonitor(self.world, view.monitor_pid, LIBVIRT, 0)

    def adopt_definition(self, uuid: str) -> bool:
        with self._asked("changing a guest's definition") as state:
            guest = state.guests[uuid]
            before, guest.shared_from_next_boot = guest.shared_from_next_boot, True
            return not before

    def put_policy(self, uuid: str, own: PolicyPart) -> None:
        doing = "changing a guest's policy"
        with self._asked(doing) as state:
            guest = state.guests.get(uuid)
            if guest is None:
                raise Failed(doing, expected=f"guest {uuid}", found="none")
            _answers(state, guest)
            text = in_namespace(written_policy(own))
            if uuid in state.daemon.views:
                record = self.world.libvirt_run / f"{guest.name}.xml"
                record.write_text(with_policy(record.read_text(), text))
                guest.xml = self.world.keep_text(with_policy(self.world.text(guest.xml), text))
            if guest.persistent:
                guest.policy = text

    @contextmanager
    def agent(self, uuid: str) -> Iterator[GuestAgent]:
        yield FakeAgent(self.world, uuid)

    def start_transient(self, xml: str) -> Guest:
        with self._asked("starting a throw-away guest"):
            name = re.search("<name>(.*?)</name>", xml)
            if name and (self.world.held / f"{name[1]}.held").exists() and self.world.hook_is_asked:
                found = f"Hook script execution failed: {name[1]}: it is held by hostagent"
                raise Failed("starting a throw-away guest", found=found)
        guest = self.guest(self.boot(xml))
        assert guest is not None  # noqa: S101 - it was just started
        return guest

    def destroy(self, uuid: str) -> None:
        with self._asked("ending a guest") as state:
            view = state.daemon.views.get(uuid)
            if view is None:
                return
            process = state.processes[view.pid]
            if process.alive:
                dies(self.world, state, process, tidily=False)
            if uuid in state.daemon.views:  # it did not look after that process
                libvirt_cleans_up(self.world, state, uuid, "")
            state.guests[uuid].ended = state.guests[uuid].off = "destroyed"

    # -- standing still, leaving, coming back --------------------------------------------------------------------

    def standing(self, uuid: str) -> Standing | None:
        guest = self.guest(uuid)
        if guest is None:
            return None
        process = ProcessId(guest.process.pid, guest.process.start_ticks) if guest.process else None
        with self._asked("looking at a guest") as state:
            view = state.daemon.views.get(uuid)
            marked = view is not None and view.marked
        return Standing(guest.state, guest.state_reason, process, guest.definition.emulator, guest.job, marked)

    def active(self) -> tuple[str, ...]:
        with self._asked("listing guests") as state:
            return tuple(state.guests[uuid].name for uuid in state.daemon.views)

    def wait_ended(self, uuid: str, within_seconds: float) -> bool:
        with self._asked("waiting for a guest's end") as state:
            if uuid not in state.daemon.views:
                return True
            ends = [one.ends_at_ns for one in state.living(uuid) if one.ends_at_ns]
            state.now_ns = max(state.now_ns, min([state.now_ns + round(within_seconds * 1e9), *ends]))
        return (now := self.standing(uuid)) is None or not now.state.active

    def suspend(self, uuid: str) -> None:
        with self._active("pausing a guest", uuid) as (state, guest, view):
            if state.take(FaultKind.SUSPEND_FAILS, uuid):
                raise Failed(f"{guest.name}: pausing it", found="internal error")
            stands_still(state, state.processes[view.monitor_pid], RunState.PAUSED)
            if view.state == "running":
                view.state, view.reason = "paused", "user"

    def resume(self, uuid: str) -> None:
        doing = "resuming a guest"
        with self._active(doing, uuid) as (state, guest, view):
            if view.state == "running":
                return
            if state.take(FaultKind.CONT_FAILS, uuid):
                raise Failed(f"{guest.name}: {doing}", found="Input/output error")
            if state.take(FaultKind.CONT_LOST, uuid):
                raise _unheard(state, doing)
            go_on(self.world, state, state.processes[view.monitor_pid])
            view.state, view.reason = "running", "unpaused"
            if uuid not in state.daemon.views:
                raise Failed(f"{guest.name}: {doing}", found="the monitor was closed")
            if state.take(FaultKind.CONT_UNHEARD, uuid):
                raise _unheard(state, doing)

    def save(self, uuid: str, qemu: ProcessId, path: Path, within_seconds: float, written: BeforeItsEnd) -> None:
        doing = "saving a guest"
        with self._active(doing, uuid) as (state, guest, view):
            if view.saving:
                raise Failed(f"{guest.name}: {doing}", found="cannot acquire state change lock")
            if state.take(FaultKind.SAVE_FAILS, uuid):
                raise Failed(f"{guest.name}: {doing}", found="No space left on device")
            if state.take(FaultKind.SAVE_HANGS, uuid):
                view.saving = True
                raise _unheard(state, doing)
            if state.take(FaultKind.SAVE_EXITS, uuid):
                dies(self.world, state, state.processes[view.monitor_pid], tidily=False)
                raise Failed(f"{guest.name}: {doing}", found="the monitor was closed")
            writes_state(self.world, state, guest, path, self._xml(state, guest))
            view.saving, view.marks_next = True, str(path)
            if not state.take(FaultKind.SAVE_ASKS_NOBODY, uuid):
                view.held_up_by = os.getpid()
        if view.held_up_by:
            self._asks_before_it_ends(uuid, path, written)
        with self._asked(doing) as state:  # and it has gone on with it by now
            if state.take(FaultKind.SAVE_DAEMON_DIES, uuid):
                leaves(self.world, state)
            if not state.daemon.up or uuid in state.daemon.views:
                raise Failed(doing, found="the connection was reset")
            if state.take(FaultKind.SAVE_UNHEARD, uuid):
                raise _unheard(state, doing)

    def _asks_before_it_ends(self, uuid: str, path: Path, written: BeforeItsEnd) -> None:
        with self.world.held_up(uuid):
            try:
                written(path.read_bytes(), lambda: self._waits(uuid))
            except HostagentError:
                with self.world.change() as state:
                    if (view := state.daemon.views.get(uuid)) is not None:
                        view.saving, view.marks_next = False, ""
                raise

    def _waits(self, uuid: str) -> bool:
        with self.world.change() as state:
            if state.take(FaultKind.SAVE_DAEMON_DIES_SOON, uuid):
                leaves(self.world, state)
            return state.daemon.up and uuid in state.daemon.views

    def abort_job(self, uuid: str, within_seconds: float) -> None:
        with self._asked("breaking a job off") as state:
            if (view := state.daemon.views.get(uuid)) is not None:
                view.saving = False

    def restore(self, path: Path, within_seconds: float) -> None:
        doing = f"restoring a guest from {path}"
        with self._asked(doing) as state:
            uuid = guest_of_image(path)
            if state.take(FaultKind.RESTORE_HANGS, uuid):
                raise _unheard(state, doing)
            restores(self.world, state, path)
            if state.take(FaultKind.RESTORE_EXITS, uuid):
                process = state.processes[state.daemon.views[uuid].monitor_pid]
                dies(self.world, state, process, tidily=False)
            if state.take(FaultKind.RESTORE_UNHEARD, uuid):
                raise _unheard(state, doing)

    def unmark(self, uuid: str) -> None:
        with self._active("taking a mark off", uuid) as (_, _, view):
            view.marked = False

    # -- shutting down and starting ------------------------------------------------------------------------------

    def shut_down(self, uuid: str, by: ShutDownBy, within_seconds: float) -> bool:
        doing = f"asking a guest by {by} to shut down"
        with self._asked(doing) as state:
            if uuid in state.guests and uuid not in state.daemon.views:
                return False
        with self._active(doing, uuid) as (state, guest, _):
            silent = guest.silent or state.take(FaultKind.NO_AGENT, uuid)
            if by is ShutDownBy.AGENT and silent:
                raise Failed(f"{guest.name}: {doing}", found="Guest agent is not responding")
            if state.take(FaultKind.SHUTDOWN_REFUSED, uuid):
                raise Failed(f"{guest.name}: {doing}", found="cannot acquire state change lock")
            is_asked_to_shut_down(state, guest)
            if state.take(FaultKind.SHUTDOWN_CUTS_AGENT_OFF, uuid):
                state.now_ns += 10_000_000_000
                raise Failed(f"{guest.name}: {doing}", found="Guest agent disappeared while executing command")
            if state.take(FaultKind.SHUTDOWN_UNHEARD, uuid):
                raise _unheard(state, doing)
        return True

    def terminate(self, uuid: str, within_seconds: float) -> None:
        self.destroy(uuid)

    def start(self, uuid: str, emulator: str | None, within_seconds: float) -> None:
        doing = "starting a guest"
        with self._asked(doing) as state:
            guest = state.guests.get(uuid)
            if guest is None:
                raise Failed(doing, expected=f"guest {uuid}", found="none")
            if guest.managed_save:
                raise Failed(f"{guest.name}: {doing}", expected="no saved state of it", found="one")
            if emulator not in {None, *(tree.emulator for tree in self.trees)}:
                raise Failed(f"{guest.name}: {doing}", found=f"Cannot check QEMU binary {emulator}")
            if state.take(FaultKind.START_HANGS, uuid):
                raise _unheard(state, doing)
            boots_anew(self.world, state, guest, emulator)
            if state.take(FaultKind.START_UNHEARD, uuid):
                raise _unheard(state, doing)

    def wait_started(self, uuid: str, within_seconds: float) -> None:
        with self._asked("waiting until a guest is started"):
            pass  # here a start is over at once

    def wait_agent(self, uuid: str, within_seconds: float) -> bool:
        with self._asked("waiting for a guest's agent") as state:
            guest = state.guests.get(uuid)
            if guest is None or uuid not in state.daemon.views:
                return False
            if not guest.silent and not state.take(FaultKind.NO_AGENT, uuid) and _runs(state, guest):
                return True
            state.now_ns += round(within_seconds * 1e9)
            return False

    @contextmanager
    def _active(self, doing: str, uuid: str) -> Iterator[tuple[State, GuestLife, View]]:
        with self._asked(doing) as state:
            guest, view = state.guests.get(uuid), state.daemon.views.get(uuid)
            if guest is None or view is None:
                raise Failed(doing, expected=f"guest {uuid} running, or paused", found="none")
            _answers(state, guest)
            yield state, guest, view

    def usable(self) -> bool:
        with self.world.look() as state:
            return state.daemon.up

    def disconnect(self) -> None:
        pass

    @contextmanager
    def _asked(self, doing: str) -> Iterator[State]:
        with self.world.change() as state:
            if not state.daemon.up:
                raise Refused(doing, expected="libvirt to answer", found="no daemon")
            wait_for_monitors(self.world, state)
            yield state

    def _xml(self, state: State, guest: GuestLife) -> str:
        xml, view = self.world.text(guest.xml), state.daemon.views.get(guest.uuid)
        if view is None:
            xml = with_policy(xml, guest.policy)
        if view is not None and view.ram_in_files:
            xml = with_shared_ram(xml)
        if view is not None and view.marked:
            xml = xml.replace("</domain>", f"<metadata><hold xmlns='{NAMESPACE}'/></metadata></domain>")
        return emulator_in(xml, view.emulator) if view else xml

    def _process(self, state: State, guest: GuestLife) -> QemuProcess | None:
        """As the real one: what the pid file names."""
        try:
            pid = int((self.world.libvirt_run / f"{guest.name}.pid").read_text())
        except (OSError, ValueError):
            return None
        found = state.processes.get(pid)
        if found is None or not found.alive or found.guest != guest.uuid:
            return None
        argv = self.world.argv(found)
        return QemuProcess(pid, found.start_ticks, argv[0], exe_deleted=False, argv=argv)

    def _tree(self, process: QemuProcess | None) -> QemuTree | None:
        return next((tree for tree in self.trees if process and tree.emulator == process.exe), None)


@dataclass(frozen=True)
class FakeAgent:
    """A guest's agent, which knows its clock."""

    world: World
    uuid: str
    host: str = ""

    def ask(self, command: str, arguments: dict[str, object] | None, within_seconds: float) -> object:
        with self.world.change() as state:
            guest = state.guests[self.uuid]
            silent = guest.silent or state.take(FaultKind.NO_AGENT, self.uuid)
            process = _runs(state, guest)
            up = state.peers[self.host].alive if self.host else state.daemon.up
            if not up or silent or process is None or process.host != self.host:
                raise AgentError(AgentFault.NO_AGENT, "it does not answer")
            if command in ("guest-file-open", "guest-file-close"):
                return 1000 if command == "guest-file-open" else {}
            if command == "guest-file-read":
                text = base64.b64encode(f"{boot_id(guest)}\n".encode()).decode()
                return {"count": 37, "buf-b64": text, "eof": True}
            now = round(WALL_SECONDS * 1e9) + state.now_ns
            if command == "guest-get-time":
                return now - guest.lag_ns
            if command == "guest-set-time" and arguments is not None:
                guest.lag_ns = now - int(str(arguments["time"]))
                return {}
            raise AgentError(AgentFault.COMMAND_DISABLED, command)


def _unheard(state: State, doing: str) -> OutcomeUnknown:
    state.now_ns += 10_000_000_000
    return OutcomeUnknown(doing, expected="an answer from libvirt", found="none")


def _leaves(state: State, uuid: str) -> bool:
    passing = state.passing.get(uuid)
    return passing is not None and not passing.done and not passing.source


def _runs(state: State, guest: GuestLife) -> Process | None:
    living = state.living(guest.uuid)
    return next((one for one in living if one.state is RunState.RUNNING), None)


def _answers(state: State, guest: GuestLife) -> None:
    """While libvirt waits for a guest's monitor, nothing can be asked about the guest."""
    if any(Path(path).stem == guest.name for path in state.daemon.waiting):
        state.now_ns += 10_000_000_000
        raise OutcomeUnknown(f"{guest.name}: looking at it", expected="an answer from libvirt", found="none")


def _state(state: str, reason: str) -> GuestState:
    if state == "running":
        return GuestState.RUNNING
    return GuestState.PAUSED_BY_OWNER if reason == "user" else GuestState.PAUSED_OTHERWISE
