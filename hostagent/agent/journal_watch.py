"""Watches the journal and the host's lock: tells what updates do, and recovers what nobody sees to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hostagent.agent.healing import Healing
from hostagent.agent.lane import Lane
from hostagent.agent.log import Level, Log, Value
from hostagent.agent.tail import OpenUpdate, Tail, Told
from hostagent.agent.work import Stream, Works
from hostagent.errors import ExitCode, HostagentError
from hostagent.update.host_lock import HostLock

_SAID_LIMIT = 4096  # characters of what a recovery says beside its result


@dataclass
class JournalWatch:
    """What stands open, and who is at work. Lives in the service's loop."""

    log: Log
    tail: Tail
    lock: HostLock  # only looked at
    works: Works
    lane: Lane
    monotonic: Callable[[], float]
    healing: Healing = field(default_factory=Healing)
    open: Mapping[str, OpenUpdate] = field(default_factory=dict)  # updates that have no end in the journal yet
    at_work: str = ""  # who has the host's lock, and since when
    fault: str = ""  # why the journal cannot be read
    _first: bool = True
    _recovery: asyncio.Task[None] | None = None

    @property
    def is_recovering(self) -> bool:
        """Whether a recovery of ours is under way."""
        return self._recovery is not None and not self._recovery.done()

    async def tick(self) -> None:
        """Look at both, tell what is new, and begin to recover where that is due."""
        try:
            told, self.open, self.at_work = await self.lane.do(self._look)
            self.fault = ""
        except HostagentError as error:
            if str(error) != self.fault:
                self.log("journal cannot be read", level=Level.ERROR, error=str(error))
            self.fault = str(error)
            return
        if self._first:
            self._first = False
            self._tell_where_it_stands()
        for line in told:
            _say(self.log, line)
        busy = self.at_work or self.is_recovering or self.works.changing is not None
        if not busy and self.healing.is_due(frozenset(self.open), self.monotonic()):
            self._recovery = asyncio.create_task(self._recover(), name="recovery")

    async def recovered(self, within_seconds: float) -> bool:
        """Wait until a recovery that is under way has ended, or so long; whether none is under way any more."""
        if self._recovery is not None:
            await asyncio.wait([self._recovery], timeout=within_seconds)
        return not self.is_recovering

    def update_of(self, uuid: str) -> str:
        """The open update that a guest is in; "" when there is none."""
        return next((update.id for update in self.open.values() if uuid in update.left), "")

    def _look(self) -> tuple[tuple[Told, ...], Mapping[str, OpenUpdate], str]:
        told = self.tail.news()  # first: what is open once nobody has the lock stays open
        return told, self.tail.open_updates(), self.lock.held_by()

    def _news(self) -> tuple[tuple[Told, ...], Mapping[str, OpenUpdate]]:
        return self.tail.news(), self.tail.open_updates()

    def _tell_where_it_stands(self) -> None:
        if self.tail.last_ended is not None:
            last = self.tail.last_ended
            self.log.tell("last update", "", last.update, last.level, last.more)
        for update in self.open.values():
            self.log("update is open", update=update.id, component=update.component, guests_left=len(update.left))
        if self.at_work:
            self.log("waiting for who is at work", at_work=self.at_work)

    async def _recover(self) -> None:
        trying = frozenset(self.open)
        for update in sorted(trying):
            self.log("recovering", update=update)
        code, said = await self._run()
        if code == ExitCode.REFUSED:  # somebody was faster
            self.log("recovery put off", level=Level.WARNING, said=said)
            self.healing.tried(trying, self.monotonic())
            return
        try:
            told, self.open = await self.lane.do(self._news)
        except HostagentError:
            told = ()  # the next tick says so
        for line in told:
            _say(self.log, line)
        left = trying & frozenset(self.open)
        for update in sorted(trying):
            if update in left:
                waiting = len(self.open[update].waiting)
                more: dict[str, Value] = {"exit_code": code, "guests_waiting": waiting, "said": said}
                self.log.tell("not recovered", "", update, Level.ERROR, more.items())
            else:
                self.log("recovered", update=update)
        self.healing.tried(left, self.monotonic())

    async def _run(self) -> tuple[int, str]:
        """Its exit code, and the last of what it said beside its result."""
        said = ""
        try:
            async with await self.works.start(("recover", "--json"), changes=True) as work:
                async for chunk in work:
                    if chunk.stream is Stream.ERR:
                        said = (said + chunk.text)[-_SAID_LIMIT:]
                return await work.exit_code(), (said.strip().splitlines() or [""])[-1]
        except HostagentError as error:
            return error.exit_code, str(error)


def _say(log: Log, line: Told) -> None:
    log.tell(line.event, line.guest, line.update, line.level, line.more)
