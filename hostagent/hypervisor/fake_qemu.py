"""The fake's `Qemu` port: starting, looking at and ending processes, and their monitors."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hostagent.errors import Failed, NeedsOperator, OutcomeUnknown
from hostagent.hypervisor import LaunchOrder, ProcessId, RunState
from hostagent.hypervisor.fake_monitor import FakeMonitor
from hostagent.hypervisor.fake_physics import becomes_qemu, dies
from hostagent.hypervisor.fake_world import FaultKind, Process, State, World

_MOVED_BY = 100  # QEMU moves what -add-fd names to another number

# QEMU 7.2's and 10.0's defaults, of the ones that an update looks at
CAPABILITIES = {"events": False, "x-ignore-shared": False, "late-block-activate": False, "dirty-bitmaps": False}
PARAMETERS = {"downtime-limit": 300, "max-bandwidth": 134217728, "multifd-channels": 2}


@dataclass(frozen=True)
class FakeQemu:
    """The QEMU processes of a world."""

    world: World

    def identify(self, pid: int) -> ProcessId:
        with self.world.look() as state:
            process = state.processes.get(pid)
            if process is None or not process.alive:
                raise Failed(f"looking at process {pid}", expected="it running", found="no such process")
            return ProcessId(pid, process.start_ticks)

    def alive(self, process: ProcessId) -> bool:
        with self.world.look() as state:
            return _found(state, process) is not None or _leaving(state, process) is not None

    def leaving(self, process: ProcessId) -> bool:
        with self.world.look() as state:
            return _leaving(state, process) is not None

    def owner(self, process: ProcessId) -> tuple[int, int]:
        return os.getuid(), os.getgid()

    def launch(self, order: LaunchOrder) -> FakeLaunch:
        doing = "starting the new QEMU"
        with self.world.change() as state:
            old = _found(state, order.old)
            if old is None:
                raise Failed(doing, expected="the old one's surroundings", found="it is gone")
            for path, like in order.listeners.values():
                if path.exists() or not like.exists():
                    raise Failed(doing, expected=f"{like} there, {path} not there", found="otherwise")
            pid = state.next_pid
            state.next_pid += 100
            state.processes[pid] = process = Process(
                pid,
                start_ticks=state.now_ns // 10_000_000,
                guest=old.guest,
                argv=self.world.keep_text(json.dumps(order.argv)),
                state=RunState.OTHER,
                vcpus=old.vcpus,
                waits_for=os.getpid(),
                capabilities=dict(CAPABILITIES),
                parameters=dict(PARAMETERS),
                sockets=[str(path) for path, _ in order.listeners.values()],
                taps={n: old.taps[fd] for n, fd in order.taken_over.items() if fd in old.taps},
                pipes={n + _MOVED_BY: old.pipes[fd] for n, fd in order.taken_over.items() if fd in old.pipes},
            )
            if len(process.taps) + len(process.pipes) != len(order.taken_over):
                process.alive = False
                raise Failed(doing, expected="the old one's descriptors", found="others")
            process.fdsets = dict(enumerate(process.pipes))
            for path, _ in order.listeners.values():
                path.write_text(str(pid))
            problem = _write_pid_file(order.pid_file, pid)
            return FakeLaunch(self.world, ProcessId(pid, process.start_ticks), problem)

    def kill(self, process: ProcessId, within_seconds: float) -> None:
        with self.world.change() as state:
            if (left := _leaving(state, process)) is not None:
                left.leaving = False
            found = _found(state, process)
            if found is None:
                return
            if state.take(FaultKind.KILL_HANGS, found.guest):
                found.stays = True
                raise NeedsOperator(f"ending QEMU {process.pid}", found="it is still there", hint="hostagent recover")
            dies(self.world, state, found, tidily=False)

    def wait_gone(self, process: ProcessId, within_seconds: float) -> bool:
        with self.world.change() as state:
            if (left := _leaving(state, process)) is not None:
                left.leaving = False
            if _found(state, process) is None:
                return True
            state.now_ns += round(within_seconds * 1e9)
            return False

    def monitor(self, path: Path, within_seconds: float) -> FakeMonitor:
        doing = f"asking QEMU at {path.name}: connecting"
        with self.world.change() as state:
            try:
                process = state.processes[int(path.read_text())]
            except (OSError, ValueError, KeyError) as error:
                raise Failed(doing, expected="an open connection", found="no socket") from error
            if not process.alive:
                raise Failed(doing, expected="an open connection", found="Connection refused")
            if process.hung or process.client or process.waits_for:
                state.now_ns += round(within_seconds * 1e9)
                raise OutcomeUnknown(doing, expected=f"an answer within {within_seconds:g} s", found="none")
            process.client = f"{os.getpid()}/{state.now_ns}"
            return FakeMonitor(self.world, process.pid, process.client, state.now_ns)

    def flush(self, process: ProcessId, files: tuple[str, ...], within_seconds: float) -> None:
        with self.world.change() as state:
            found = _found(state, process)
            if found is not None and state.take(FaultKind.DISK_SLOW, found.guest):
                state.now_ns += round(within_seconds * 1e9)
                raise OutcomeUnknown("flushing the images", expected=f"done in {within_seconds:g} s", found="not")

    # -- surroundings ---------------------------------------------------------------------------------------------

    def place_threads(self, old: ProcessId, new: ProcessId, pairs: Mapping[int, int]) -> None:
        with self.world.change() as state:
            if _found(state, old) is None or _found(state, new) is None:
                raise Failed("placing the new QEMU's threads", found="a process is gone")

    def differences(self, old: ProcessId, new: ProcessId, *, opened: tuple[str, ...] = ()) -> tuple[str, ...]:
        with self.world.change() as state:
            here = _found(state, old)
            if here is None or _found(state, new) is None:
                raise Failed("comparing surroundings", expected="both processes there", found="one is gone")
            return ("umask: 0002, 0022",) if state.take(FaultKind.DIFFERENT, here.guest) else ()

    def ram_inodes(self, process: ProcessId) -> frozenset[tuple[int, int]]:
        with self.world.look() as state:
            found = _found(state, process)
            return frozenset((one[0], one[1]) for one in found.ram) if found else frozenset()

    def log_pipes(self, process: ProcessId) -> tuple[int, ...]:
        with self.world.look() as state:
            found = _found(state, process)
            return tuple(sorted(found.pipes)) if found else ()

    def same_file(self, one: ProcessId, fd: int, other: ProcessId, other_fd: int) -> bool:
        with self.world.look() as state:
            here, there = _found(state, one), _found(state, other)
            if here is None or there is None:
                return False
            return fd in here.pipes and here.pipes[fd] == there.pipes.get(other_fd)

    def last_words(self, guest: str, within_seconds: float = 0.0) -> str:
        with self.world.look() as state:
            return state.words.get(guest, "")

    def remove_log(self, guest: str) -> None:
        with self.world.change() as state:
            state.words.pop(guest, None)

    # -- taps -------------------------------------------------------------------------------------------------------

    def tap_descriptor(self, process: ProcessId, name: str) -> int:
        with self.world.look() as state:
            found = _found(state, process)
            for fd, tap in (found.taps if found else {}).items():
                if tap == name:
                    return fd
        raise Failed(f"finding tap {name}", expected=f"QEMU {process.pid} to have it", found="no such descriptor")

    def tap_settings(self, process: ProcessId, taps: tuple[int, ...]) -> Mapping[int, str]:
        with self.world.look() as state:
            return {fd: state.taps[_tap(state, process, fd)] for fd in taps}

    def put_taps(self, process: ProcessId, settings: Mapping[int, str]) -> None:
        with self.world.change() as state:
            found = _found(state, process)
            for fd, text in settings.items():
                if found is None or fd in found.taps:
                    state.taps[_tap(state, process, fd)] = text

    @contextmanager
    def keeping_taps(self, process: ProcessId, settings: Mapping[int, str]) -> Iterator[None]:
        try:
            yield
        finally:
            if settings:
                self.put_taps(process, settings)


@dataclass
class FakeLaunch:
    """A process that waits for `go`, or for its launcher's death."""

    world: World
    process: ProcessId
    problem: str
    _told: bool = False

    def __enter__(self) -> FakeLaunch:
        return self

    def __exit__(self, *_: object) -> None:
        if self._told:
            return
        with self.world.change() as state:
            process = _found(state, self.process)
            if process is not None:
                dies(self.world, state, process, tidily=False)

    def go(self) -> None:
        self._told = True
        with self.world.change() as state:
            process = _found(state, self.process)
            if process is None:
                raise Failed("starting the new QEMU", found="it is gone")
            if self.problem:
                dies(self.world, state, process, tidily=False)
                raise Failed("starting the new QEMU", found=self.problem)
            becomes_qemu(self.world, state, process)


def _found(state: State, process: ProcessId) -> Process | None:
    found = state.processes.get(process.pid)
    return found if found and found.alive and found.start_ticks == process.start_ticks else None


def _leaving(state: State, process: ProcessId) -> Process | None:
    found = state.processes.get(process.pid)
    return found if found and found.leaving and found.start_ticks == process.start_ticks else None


def _tap(state: State, process: ProcessId, fd: int) -> str:
    found = _found(state, process)
    if found is None or fd not in found.taps:
        raise Failed(f"reaching tap {fd} of QEMU {process.pid}", found="no such descriptor")
    return found.taps[fd]


def _write_pid_file(path: Path, pid: int) -> str:
    try:
        with path.open("x") as file:
            file.write(f"{pid}\n")
    except FileExistsError as error:
        return str(error)
    return ""


def booted(process: Process) -> Process:
    """The process as libvirt leaves it after the guest's start."""
    return replace(process, capabilities={**CAPABILITIES, "events": True}, parameters=dict(PARAMETERS))
