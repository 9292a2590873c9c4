"""One QEMU's monitor, spoken to directly: only where libvirt does not hold it.

A QEMU monitor serves one client. hostagent connects while libvirt's daemon is away and closes before it comes back.
The library is asyncio; an update is a sequence, so each connection keeps a private loop and runs it per question.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import QMPClient, QMPError
from qemu.qmp.error import ProtocolError
from qemu.qmp.events import EventListener
from qemu.qmp.message import Message
from qemu.qmp.protocol import Runstate
from qemu.qmp.qmp_client import ExecuteError

from hostagent.arguments.command_line import BLOCK_NAME
from hostagent.errors import Failed, OutcomeUnknown
from hostagent.hypervisor import Inventory, Moment, MoveStatus, RunState, Uncarried
from hostagent.hypervisor.qmp_verbs import BALLAST, QmpVerbs, as_mapping, as_rows, as_run_state
from hostagent.libvirt_files.vnc_display import VncDisplay

T = TypeVar("T")
Question = tuple[str, Mapping[str, object]]
"""A command and its arguments."""

ANSWER_SECONDS = 5.0  # QEMU answers in well under a millisecond; past this it hangs
_SEVERAL_TIMES = 3  # as long for many questions that are asked at once
LATE_SECONDS = 0.2  # for one that was late before, or may be: a guest stands still meanwhile
_HEARD_SECONDS = 0.02  # past its deadline, for an answer that is there: on a busy host we may be late, and not QEMU
_POLLING = "guest-stats-polling-interval"
# Of BlockIOThrottle (QEMU, qapi/block-core.json): those it wants always, and those it takes.
_NO_LIMITS = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
_LIMITS = (
    *_NO_LIMITS,
    *(f"{name}_max" for name in _NO_LIMITS),
    *(f"{name}_max_length" for name in _NO_LIMITS),
    *("iops_size", "group"),
)
_ENDED = {"completed", "failed", "cancelled"}

# What libvirt asks a QEMU that it comes back to; an error to any of these makes it kill the guest
# (libvirt 9.0 src/qemu/qemu_process.c, qemuProcessReconnect). 11.3 was seen to ask no others but qom-list and qom-get.
RECONNECT_QUESTIONS = (
    "query-migrate-capabilities",
    "query-status",
    "query-target",
    "query-machines",
    "query-hotpluggable-cpus",
    "query-cpus-fast",
    "query-iothreads",
    "query-memory-devices",
    "query-block",
    "query-named-block-nodes",
    "query-chardev",
    "query-balloon",
    "query-jobs",
    "query-block-jobs",
    "query-fdsets",
    "query-migrate",
)


_NO_HELLO = "Failed to establish session"  # of qemu.qmp; a refused connection is another one
_AGAIN_SECONDS = 0.02


def _wall_ahead() -> float:
    return time.time() - time.monotonic()


class _Client(QMPClient):
    """Has no log of what is said: it is a tenth of what a question costs, and written out before anybody reads it."""

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        return msg


def _client() -> tuple[QMPClient, EventListener]:
    client, events = _Client("hostagent"), EventListener(names=("STOP", "RESUME", "MIGRATION"))
    client.register_listener(events)
    return client, events


class QmpMonitor(QmpVerbs):
    """`Monitor` over a unix socket."""

    def __init__(self, path: Path, within_seconds: float) -> None:
        self._path = path
        self._loop = asyncio.new_event_loop()
        self._client, self._events = _client()
        self._moments: dict[str, Moment] = {}
        self._migration = ""
        self._told_to_move = False
        self._patience = ANSWER_SECONDS
        self._left: Callable[[], float] | None = None
        self._ahead = _wall_ahead()
        try:
            self._open(within_seconds)
        except BaseException:
            self._loop.close()
            raise

    def _open(self, within_seconds: float) -> None:
        """Connect; a QEMU that is just letting another client go may drop the next one before it has said hello."""
        ends = time.monotonic() + within_seconds
        while True:
            try:
                return self._within(max(0.0, ends - time.monotonic()), self._connect(), "connecting")
            except Failed as error:
                if _NO_HELLO not in str(error) or time.monotonic() > ends:
                    raise
            time.sleep(_AGAIN_SECONDS)
            self._client, self._events = _client()

    # -- asking ----------------------------------------------------------------------------------------------

    def answer_within(self, left: Callable[[], float]) -> None:
        self._left = left

    def inventory(self) -> Inventory:
        nodes, consoles, sets, iothreads, cpus, memory, jobs, objects, devices = (
            as_rows(answer)
            for answer in self._ask_all(
                _question("query-named-block-nodes", flat=True),
                *map(_question, ("query-chardev", "query-fdsets", "query-iothreads", "query-cpus-fast")),
                *map(_question, ("query-memory-devices", "query-jobs")),
                *(_question("qom-list", path=path) for path in ("/objects", "/machine/peripheral")),
            )
        )
        images = [node for node in nodes if node.get("node-name") not in (None, "", BALLAST)]
        there = _children(objects)
        ram = [name for name, kind in there.items() if kind.startswith("child<memory-backend-")]
        by_path = self._ask_all(*(_question("qom-get", path=f"/objects/{name}", property=BLOCK_NAME) for name in ram))
        return Inventory(
            devices=tuple(sorted(_children(devices))),
            block_nodes={str(node["node-name"]): str(node.get("file", "")) for node in images},
            chardevs=tuple(sorted(str(row["label"]) for row in consoles)),
            terminals={
                str(row["label"]): str(row["filename"]).removeprefix("pty:")
                for row in consoles
                if str(row["filename"]).startswith("pty:")
            },
            iothreads={str(row["id"]): int(row["thread-id"]) for row in iothreads},
            vcpu_threads={int(row["cpu-index"]): int(row["thread-id"]) for row in cpus},
            objects=tuple(sorted(there)),
            memory_devices=tuple(sorted(_memory_device(row) for row in memory)),
            ram_named_by_path={name: bool(answer) for name, answer in zip(ram, by_path, strict=True)},
            jobs=tuple(str(row.get("id", row)) for row in jobs),
            fdsets={int(row["fdset-id"]): int(row["fds"][0]["fd"]) for row in sets if row["fds"]},
        )

    def display(self) -> str:
        answer = as_mapping(self.ask("query-vnc"))
        if not answer.get("enabled"):
            return ""
        unix = answer.get("family") == "unix"
        return str(answer.get("service" if unix else "host", "")) if unix else f"{answer['host']}:{answer['service']}"

    def open_display(self, display: VncDisplay) -> None:
        if display.password:
            self.ask("set_password", protocol="vnc", password=display.password)
        if display.valid_until:
            ends = datetime.fromisoformat(display.valid_until).replace(tzinfo=UTC)  # libvirt keeps it in UTC
            self.ask("expire_password", protocol="vnc", time=str(round(ends.timestamp())))
        if self.display() == display.place:
            return
        at: dict[str, object] = {"type": "inet", "host": display.address, "port": str(display.port)}
        if display.socket:
            at = {"type": "unix", "path": display.socket}
        self.ask("display-update", type="vnc", addresses=[at])

    def uncarried(self) -> Uncarried:
        throttles = {}
        for row in as_rows(self.ask("query-block")):
            inserted = row.get("inserted") or {}
            if limits := {key: inserted[key] for key in _LIMITS if inserted.get(key)}:
                throttles[str(row["qdev"])] = {**_NO_LIMITS, **limits}
        polling = {}
        for name, kind in self._typed("/machine/peripheral"):
            if kind == "child<virtio-balloon-pci>":
                seconds = self.ask("qom-get", path=f"/machine/peripheral/{name}", property=_POLLING)
                polling[name] = int(str(seconds))
        return Uncarried(throttles, polling)

    def set_again(self, wanted: Uncarried, *, links_down: Collection[str], reboot: str) -> None:
        for name, limits in wanted.throttles.items():
            self.ask("block_set_io_throttle", id=name, **limits)
        for name, seconds in wanted.polling.items():
            if seconds:
                self.ask("qom-set", path=f"/machine/peripheral/{name}", property=_POLLING, value=seconds)
        for name in links_down:
            self.ask("set_link", name=name, up=False)
        if reboot != "reset":
            self.ask("set-action", reboot=reboot)

    def reconnect_questions(self) -> None:
        self._ask_all(
            *map(_question, RECONNECT_QUESTIONS),
            _question("qom-list", path="/machine/peripheral"),
            may_refuse=lambda question, found: question == "query-balloon" and "No balloon device" in found,
        )

    # -- moving the state ------------------------------------------------------------------------------------

    def receive_state(self, channel: int) -> None:
        self._migration, self._told_to_move = "", True
        super().receive_state(channel)

    def send_state(self, channel: int) -> None:
        self._migration, self._told_to_move = "", True
        self._moments.pop("STOP", None)
        super().send_state(channel)

    def wait_stopped(self, within_seconds: float) -> bool:
        async def stopped() -> None:
            while "STOP" not in self._moments and self._migration not in _ENDED:
                await self._next_event()

        try:
            self._within(within_seconds, stopped(), "waiting for the guest to stand still")
        except OutcomeUnknown:
            return self.run_state() is not RunState.RUNNING
        return "STOP" in self._moments

    def wait_moved(self, within_seconds: float) -> MoveStatus:
        """Wait for QEMU's MIGRATION events: polling would add its interval to the pause."""

        async def ended() -> None:
            while self._migration not in _ENDED:
                await self._next_event()

        if not self._told_to_move:
            status = self.move().status  # a crossing that somebody began before us may have ended before us
            if status is not MoveStatus.UNDER_WAY:
                return status
        try:
            self._within(within_seconds, ended(), "waiting for the device state to cross")
        except OutcomeUnknown:
            self._patience = LATE_SECONDS
            status = self.move().status  # the event may be late or switched off; the state is not
            self._patience = ANSWER_SECONDS
            if status is MoveStatus.UNDER_WAY:
                raise
            return status
        return MoveStatus.COMPLETED if self._migration == "completed" else MoveStatus.FAILED

    def resume(self, within_seconds: float) -> None:
        self._moments.pop("RESUME", None)

        async def go_on() -> None:
            # At once: the guest stands still. To one that runs already it changes nothing, and no event comes.
            before, _ = await asyncio.gather(self._client.execute("query-status"), self._client.execute("cont"))
            if as_run_state(before) is not RunState.RUNNING:
                await self._heard("RESUME")

        self._within(within_seconds, go_on(), "cont")

    def stop(self, within_seconds: float) -> None:
        self._moments.pop("STOP", None)

        async def stop() -> None:
            await self._client.execute("stop")
            await self._heard("STOP")

        if self.run_state() is RunState.RUNNING:  # else it would be paused anew, whatever it is
            self._within(within_seconds, stop(), "stop")

    def quit(self) -> None:
        """Ask it to leave; it may be gone before it answers."""
        try:
            self.ask("quit")
        except Failed:
            pass
        except OutcomeUnknown:
            pass  # whoever asks watches the process, not this answer

    def stopped_at(self) -> Moment | None:
        return self._moments.get("STOP")

    def resumed_at(self) -> Moment | None:
        return self._moments.get("RESUME")

    def close(self) -> None:
        if self._loop.is_closed():
            return
        try:
            self._loop.run_until_complete(asyncio.wait_for(self._client.disconnect(), ANSWER_SECONDS))
        except Exception:  # noqa: S110 - whatever it says, it is over: the other side is gone, or was interrupted
            pass
        finally:
            self._loop.close()

    def __enter__(self) -> QmpMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- inside ----------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        await self._client.connect(str(self._path))

    def give(self, channel: int, name: str) -> None:
        self._client.send_fd_scm(channel)
        self.ask("getfd", fdname=name)

    async def _heard(self, event: str) -> None:
        while event not in self._moments:
            await self._next_event()

    async def _next_event(self) -> None:
        if self._events.empty() and self._client.runstate is not Runstate.RUNNING:
            raise EOFError("it closed the connection")
        event = asyncio.ensure_future(self._events.get())
        gone = asyncio.ensure_future(self._client.runstate_changed())
        try:
            await asyncio.wait({event, gone}, return_when=asyncio.FIRST_COMPLETED)
            if event.done():
                self._take(event.result())
        finally:
            event.cancel()
            gone.cancel()

    def _take(self, event: Message) -> None:
        name = str(event["event"])
        if name == "MIGRATION":
            self._migration = str(as_mapping(event["data"])["status"])
            return
        stamp = as_mapping(event["timestamp"])
        wall = int(stamp["seconds"]) + int(stamp["microseconds"]) / 1e6
        self._moments[name] = Moment(wall, time.monotonic(), self._ahead, _wall_ahead())

    def ask(self, command: str, **arguments: object) -> object:
        return self._answered(self._client.execute(command, arguments or None), command, self._patience)

    def _ask_all(
        self, *questions: Question, may_refuse: Callable[[str, str], bool] = lambda _question, _found: False
    ) -> list[object]:
        """The answers, as `ask`; all are asked at once: on a busy host each turn of QEMU's is waited for."""

        async def ask(question: Question) -> object:
            command, arguments = question
            try:
                return await self._client.execute(command, arguments or None)
            except ExecuteError as error:
                if may_refuse(command, str(error)):
                    return None
                raise

        async def ask_all() -> list[object]:
            answers = await asyncio.gather(*map(ask, questions), return_exceptions=True)
            for answer in answers:
                if isinstance(answer, BaseException):
                    raise answer
            return answers

        doing = " ".join(sorted({command for command, _ in questions}))
        return self._answered(ask_all(), doing, _SEVERAL_TIMES * self._patience)

    def _answered(self, asking: Coroutine[Any, Any, T], doing: str, patience: float) -> T:
        seconds = patience if self._left is None else max(LATE_SECONDS, min(patience, self._left()))
        try:
            answer = self._within(seconds, asking, doing)
        except OutcomeUnknown:
            self._patience = LATE_SECONDS
            raise
        for event in self._events.clear():
            self._take(event)
        return answer

    def _typed(self, path: str) -> list[tuple[str, str]]:
        rows = as_rows(self.ask("qom-list", path=path))
        return [(str(row["name"]), str(row["type"])) for row in rows]

    def _within(self, seconds: float, coroutine: Coroutine[Any, Any, T], doing: str) -> T:
        asking = f"asking QEMU at {self._path.name}: {doing}"
        try:
            return self._loop.run_until_complete(_in_time(coroutine, max(seconds, 0.0)))
        except TimeoutError as error:
            raise OutcomeUnknown(asking, expected=f"an answer within {seconds:g} s", found="none") from error
        except ExecuteError as error:
            raise Failed(f"asking QEMU at {self._path.name}: {error.sent['execute']}", found=str(error)) from error
        except (QMPError, ProtocolError, OSError, EOFError) as error:
            raise Failed(asking, expected="an open connection", found=str(error) or type(error).__name__) from error


async def _in_time(coroutine: Coroutine[Any, Any, T], seconds: float) -> T:
    """Its result; TimeoutError when there is none in time, nor in what has arrived by then."""
    task = asyncio.ensure_future(coroutine)
    for patience in (seconds, _HEARD_SECONDS):
        await asyncio.wait((task,), timeout=patience)
        if task.done():
            return task.result()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        return await task
    raise TimeoutError


def _question(command: str, **arguments: object) -> Question:
    return command, arguments


def _children(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Name -> type of everything below a place in QOM (`qom-list`)."""
    return {str(row["name"]): str(row["type"]) for row in rows if str(row["type"]).startswith("child<")}


def _memory_device(row: Mapping[str, Any]) -> str:
    """What it is and where; not when it was plugged in."""
    told = {name: value for name, value in as_mapping(row["data"]).items() if name != "hotplugged"}
    return " ".join((str(row["type"]), *(f"{name}={value}" for name, value in sorted(told.items()))))
