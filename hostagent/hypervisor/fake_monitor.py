"""The fake's monitor of one QEMU."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from hostagent.arguments.command_line import DIMM, CommandLine
from hostagent.errors import Failed, OutcomeUnknown
from hostagent.hypervisor import Inventory, Moment, Move, MoveStatus, RunState, Uncarried
from hostagent.hypervisor.fake_physics import dies, go_on, ram_sizes, stands_still
from hostagent.hypervisor.fake_world import FaultKind, Process, State, World
from hostagent.libvirt_files.vnc_display import VncDisplay

ANSWER_SECONDS = 5.0
LATE_SECONDS = 0.2
WALL_SECONDS = 1_790_000_000.0  # the wall clock at the world's beginning


@dataclass
class FakeMonitor:
    """One connection; the only one that its QEMU answers while it is open."""

    world: World
    pid: int
    client: str
    since_ns: int
    _channel: int = field(default=-1)
    _left: Callable[[], float] | None = None

    # Descriptors on which a QEMU waits for state: both ends of a crossing are given from the same process.
    _waiting: ClassVar[dict[int, int]] = {}

    # -- asking ---------------------------------------------------------------------------------------------------

    def run_state(self) -> RunState:
        with self._asked("query-status", changes=False) as (_, process):
            return process.state

    def capabilities(self) -> Mapping[str, bool]:
        with self._asked("query-migrate-capabilities", changes=False) as (_, process):
            return dict(process.capabilities)

    def set_capabilities(self, wanted: Mapping[str, bool]) -> None:
        if not wanted:
            return
        with self._asked("migrate-set-capabilities") as (_, process):
            for name in wanted:
                if name not in process.capabilities:
                    raise self._refusal("migrate-set-capabilities", f"Parameter 'capability' is not {name}")
            if process.move is MoveStatus.UNDER_WAY:
                raise self._refusal("migrate-set-capabilities", "There's a migration process in progress")
            process.capabilities |= wanted

    def parameters(self) -> Mapping[str, object]:
        with self._asked("query-migrate-parameters", changes=False) as (_, process):
            return dict(process.parameters)

    def set_parameters(self, wanted: Mapping[str, object]) -> None:
        if wanted:
            with self._asked("migrate-set-parameters") as (_, process):
                process.parameters |= wanted

    def answer_within(self, left: Callable[[], float]) -> None:
        self._left = left

    def blocked_reasons(self) -> tuple[str, ...]:
        with self._asked("query-migrate") as (state, process):
            return ("a device refuses",) if state.take(FaultKind.BLOCKED, process.guest) else ()

    def inventory(self) -> Inventory:
        with self._asked("query-everything", changes=False) as (_, process):
            line = CommandLine.parse(self.world.argv(process))
            objects = (item.get("id") for item in line.named("object"))
            return Inventory(
                devices=tuple(sorted(line.device_ids())),
                block_nodes={node.name: node.filename for node in line.block_nodes()},
                chardevs=tuple(sorted(line.chardev_ids())),
                terminals={},
                iothreads={name: process.pid + 50 + n for n, name in enumerate(line.iothread_ids())},
                vcpu_threads={n: process.pid + 1 + n for n in range(process.vcpus)},
                objects=tuple(sorted(objects)),
                memory_devices=tuple(sorted(str(item) for item in line.named("device", DIMM))),
                ram_named_by_path={},
                jobs=(),
                fdsets=dict(process.fdsets),
            )

    def display(self) -> str:
        with self._asked("query-vnc", changes=False) as (_, process):
            return process.display

    def open_display(self, display: VncDisplay) -> None:
        with self._asked("display-update") as (_, process):
            process.display = display.place

    def uncarried(self) -> Uncarried:
        with self._asked("query-block", changes=False) as (_, process):
            throttles = {name: {"iops": limit} for name, limit in process.throttles.items()}
            return Uncarried(throttles, dict(process.polling))

    def set_again(self, wanted: Uncarried, *, links_down: Collection[str], reboot: str) -> None:
        with self._asked("block_set_io_throttle") as (_, process):
            process.throttles = {name: int(str(limits["iops"])) for name, limits in wanted.throttles.items()}
            process.polling = dict(wanted.polling)
            process.links_down, process.reboot = sorted(links_down), reboot

    def reconnect_questions(self) -> None:
        with self._asked("query-machines") as (state, process):
            late = process.state is not RunState.INMIGRATE
            if state.take(FaultKind.QUESTION_FAILS_LATE if late else FaultKind.QUESTION_FAILS, process.guest):
                raise self._refusal("query-machines", "no such command")

    # -- moving the state -------------------------------------------------------------------------------------------

    def receive_state(self, channel: int) -> None:
        with self._asked("migrate-incoming") as (_, process):
            if process.state is not RunState.INMIGRATE or process.listens:
                raise self._refusal("migrate-incoming", "The incoming migration has already been started")
            process.listens = True
            self._channel = os.dup(channel)
            self._waiting[self._channel] = self.pid

    def send_state(self, channel: int) -> None:
        with self._asked("migrate") as (state, process):
            if process.state is RunState.POSTMIGRATE:
                raise self._refusal("migrate", "Can't migrate the vm that was paused due to previous migration")
            if process.state not in {RunState.RUNNING, RunState.PAUSED}:
                raise self._refusal("migrate", f"Guest is {process.state}")
            process.peer = self._who_waits_at(channel)
            process.move, process.move_error, process.stopped_ns = MoveStatus.UNDER_WAY, "", 0
            process.was_running = process.state is RunState.RUNNING
            state.processes[process.peer].move = MoveStatus.UNDER_WAY

    def _who_waits_at(self, channel: int) -> int:
        os.write(channel, b"QEVM")
        readable = select.select(list(self._waiting), [], [], 0)[0] if self._waiting else []
        for fd in readable:
            if os.read(fd, 4) == b"QEVM":
                return self._waiting[fd]
        raise self._refusal("migrate", "Broken pipe")

    def move(self) -> Move:
        with self._asked("query-migrate", changes=False) as (state, process):
            peer = state.processes.get(process.peer)
            total = sum(ram_sizes(self.world.argv(peer))) if peer else 0
            left = process.ram_left if process.ram_left >= 0 else None
            return Move(process.move, process.moved_bytes, process.move_error, left, total)

    def wait_begun(self, within_seconds: float) -> None:
        if self.move().status is not MoveStatus.UNDER_WAY:
            raise Failed("beginning to copy the RAM", expected="QEMU to begin", found="nothing")

    def wait_sent(self, within_seconds: float) -> Move:
        with self._asked("waiting") as (state, _):
            state.now_ns += round(within_seconds * 1e9)
        return self.move()

    def wait_stopped(self, within_seconds: float) -> bool:
        with self._asked("waiting") as (state, _):
            state.now_ns += round(within_seconds * 1e9)
        return self.run_state() is not RunState.RUNNING

    # -- a copy of the RAM ------------------------------------------------------------------------------------------

    def put_ballast(self, *, bitmap: bool) -> None:
        with self._asked("blockdev-add") as (_, process):
            if process.ballast:
                raise self._refusal("blockdev-add", "Duplicate nodes with node-name='hostagent-ballast'")
            process.ballast, process.bitmap = True, bitmap

    def drop_ballast(self) -> None:
        with self._asked("blockdev-del") as (_, process):
            if process.move is MoveStatus.UNDER_WAY and process.bitmap:
                raise self._refusal("block-dirty-bitmap-remove", "Bitmap is currently in use by another operation")
            process.ballast = process.bitmap = False

    def watch_dirtying(self) -> None:
        with self._asked("calc-dirty-rate"):
            pass

    def dirtying(self) -> float | None:
        with self._asked("query-dirty-rate") as (state, process):
            return 1e15 if state.take(FaultKind.DIRTY_FAST, process.guest) else 0.0

    def halt(self) -> None:
        self.stop(ANSWER_SECONDS)

    def go_on(self) -> None:
        with self._asked("cont") as (state, process):
            go_on(self.world, state, process)

    # -- the crossing's end -----------------------------------------------------------------------------------------

    def wait_moved(self, within_seconds: float) -> MoveStatus:
        status = self.move().status
        if status is MoveStatus.NONE or status is MoveStatus.UNDER_WAY:
            with self._asked("waiting") as (state, _):
                state.now_ns += round(within_seconds * 1e9)
            if status is MoveStatus.UNDER_WAY:
                raise OutcomeUnknown(f"asking QEMU {self.pid}: waiting for the state to cross", found="none")
        return status

    def resume(self, within_seconds: float) -> None:
        with self._asked("cont") as (state, process):
            guest = process.guest
            if state.take(FaultKind.CONT_FAILS, guest):
                raise self._refusal("cont", "Input/output error")
            if state.take(FaultKind.CONT_LOST, guest):
                raise self._no_answer("cont", within_seconds, state)
            go_on(self.world, state, process)
            if not process.alive:
                raise Failed(f"asking QEMU {self.pid}: cont", expected="an open connection", found="EOFError")
            if state.take(FaultKind.CONT_UNHEARD, guest):
                raise self._no_answer("cont", within_seconds, state)
            if process.state is not RunState.RUNNING:
                raise self._no_answer("cont", within_seconds, state)

    def stop(self, within_seconds: float) -> None:
        with self._asked("stop") as (state, process):
            if process.state is RunState.RUNNING:
                stands_still(state, process, RunState.PAUSED)

    def quit(self) -> None:
        with self.world.change() as state:
            process = state.processes[self.pid]
            hears = process.alive and process.client == self.client and not process.hung
            if hears and not state.take(FaultKind.QUIT_HANGS, process.guest):
                dies(self.world, state, process, tidily=True)

    def stopped_at(self) -> Moment | None:
        return self._moment(lambda process: process.stopped_ns)

    def resumed_at(self) -> Moment | None:
        return self._moment(lambda process: process.resumed_ns)

    def close(self) -> None:
        if self._channel >= 0:
            self._waiting.pop(self._channel, None)
            os.close(self._channel)
            self._channel = -1
        with self.world.change() as state:
            process = state.processes[self.pid]
            if process.client == self.client:
                process.client = ""

    def __enter__(self) -> FakeMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- inside -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _asked(self, command: str, *, changes: bool = True) -> Iterator[tuple[State, Process]]:
        left = ANSWER_SECONDS if self._left is None else self._left()
        with self.world.change() if changes else self.world.look() as state:
            process = state.processes[self.pid]
            if not process.alive or process.client != self.client:
                doing = f"asking QEMU {self.pid}: {command}"
                raise Failed(doing, expected="an open connection", found="EOFError")
            old = "-incoming" not in self.world.argv(process)
            if process.hung or (old and state.take(FaultKind.OLD_SILENT, process.guest)):
                seconds = max(LATE_SECONDS, min(ANSWER_SECONDS, left))
                raise self._no_answer(command, seconds, state)
            yield state, process

    def _no_answer(self, command: str, seconds: float, state: State) -> OutcomeUnknown:
        state.now_ns += round(seconds * 1e9)
        return OutcomeUnknown(
            f"asking QEMU {self.pid}: {command}", expected=f"an answer within {seconds:g} s", found="none"
        )

    def _refusal(self, command: str, said: str) -> Failed:
        return Failed(f"asking QEMU {self.pid}: {command}", found=said)

    def _moment(self, of: Callable[[Process], int]) -> Moment | None:
        with self.world.look() as state:
            at = of(state.processes[self.pid])
            ahead = WALL_SECONDS
            return Moment(ahead + at / 1e9, at / 1e9, ahead, ahead) if at >= self.since_ns else None
