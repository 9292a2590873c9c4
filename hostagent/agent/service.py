"""The life of the service: heal what a crash left, then serve; watch; end at once when asked to.

::

    begin -> listen -> look at the journal -> recover what stands open -> READY -> watch, serve, heal -> STOPPING -> end

It is one loop. What may take a while runs elsewhere: libvirt's events on threads of their own, looks and the journal
in lanes, verbs in processes. systemd's watchdog is fed while all of them are alive, or known to be only waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NoReturn

from hostagent import __version__, wiring
from hostagent.agent.api.routes import Api
from hostagent.agent.doors import Doors, open_doors
from hostagent.agent.journal_watch import JournalWatch
from hostagent.agent.lane import Lane
from hostagent.agent.launching import Launcher, launcher_of
from hostagent.agent.log import Level, Log, Writer, log_to_stdout, tell_warnings
from hostagent.agent.notify import Notify
from hostagent.agent.tail import Tail
from hostagent.agent.watch import Look, Watch
from hostagent.agent.work import Works
from hostagent.config import DEFAULT_PATH, Config
from hostagent.errors import ExitCode, HostagentError
from hostagent.hypervisor.events import Event, Events
from hostagent.hypervisor.libvirt_events import LibvirtEvents
from hostagent.metrics import Exposition, names_of
from hostagent.update.host_lock import HostLock
from hostagent.update.journal_tail import JournalTail

TICK_SECONDS = 1.0
PULSE_SECONDS = 10.0  # how often it is asked whether all is well; more often where systemd wants to hear it so
STARTING_SECONDS = 5.0  # how often systemd is told that it is still recovering
_JOURNAL_SECONDS = 60.0  # after which a look at the journal is taken for stuck
_LOOK_SECONDS = 900.0  # and one at the host, each call of which has a deadline
_TRACE = 390  # characters of a fault's origin
_LEAVE_SECONDS = 0.2  # for what does not end at once


@dataclass
class Agent:
    """The parts, as they are or as a test has them."""

    config: Config
    log: Log
    notify: Notify
    events: Events
    look: Look
    launcher: Launcher
    settings: str = str(DEFAULT_PATH)  # where they were read
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        state = self.config.paths.state
        self.works = Works(self.launcher, state / "agent")
        self.journal = JournalWatch(
            self.log,
            Tail(wiring.journal_path(self.config)),
            HostLock.at(wiring.host_lock_path(self.config)),
            self.works,
            Lane("journal"),
            time.monotonic,
        )
        self.watch = Watch(self.log, self.config.paths.held, self.journal.update_of, self.config.agent.look_seconds)
        self._metrics = Exposition(JournalTail(wiring.journal_path(self.config)), names_of(self.config))
        self.looks, self.scrapes = Lane("looks"), Lane("scrapes")
        self._status = ""

    # -- its life ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until it is asked to stop; raises HostagentError when it cannot begin."""
        self.log("begun", version=__version__, pid=os.getpid())
        self.works.forget_files()
        loop = asyncio.get_running_loop()
        self.events.start(lambda event: _soon(loop, self._hear, event))
        try:
            async with open_doors(self.config.agent, self.doors()), asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(work) for work in (self._reads_on(), self._live())]
                await self.stop.wait()
                self._say_stopping()
                for task in running:
                    task.cancel()
                await self.works.end()
        finally:
            self.events.end(_LEAVE_SECONDS)
            self.log("ended")

    def doors(self) -> Doors:
        """What is served."""
        path = wiring.journal_path(self.config)
        return Doors(
            exposition=self._exposition,
            lane=self.scrapes,
            health=self.health,
            api=Api(self.works, path, wiring.host_lock_path(self.config), self.settings),
        )

    def _exposition(self) -> str:
        return self._metrics.text(self.watch.observed)

    def health(self) -> tuple[bool, Mapping[str, object]]:
        """For GET /health."""
        fault = self.stuck()
        return not fault, {
            "healthy": not fault,
            "fault": fault or None,
            "version": __version__,
            "libvirt": {None: "unknown", True: "answers", False: "away"}[self.watch.is_up],
            "at_work": self.journal.at_work or None,
            "recovering": self.journal.is_recovering,
            "open_updates": len(self.journal.open),
            "journal": self.journal.fault or None,
            "looked": self.watch.observed.at if self.watch.observed else None,
        }

    def stuck(self) -> str:
        """What should have come back by now, and has not; "" when all is well."""
        for lane, limit in ((self.journal.lane, _JOURNAL_SECONDS), (self.looks, _LOOK_SECONDS)):
            if (seconds := lane.busy_seconds()) > limit:
                return f"the thread for the {lane.name}, for {seconds:.0f} s"
        return self.events.stuck()

    async def _live(self) -> None:
        """Heal first; then all that it does."""
        await self._heal_first()
        self.notify.ready()
        self.log("ready")
        async with asyncio.TaskGroup() as tasks:
            for work in (self._ticks(), self._looks(), self._pulse()):
                tasks.create_task(work)

    async def _reads_on(self) -> None:
        """Whoever asks for the metrics need not wait until what is new in the journal was read, or all of it."""
        while True:
            with contextlib.suppress(HostagentError):  # the journal's watch says so
                await self.scrapes.do(self._exposition)
            await asyncio.sleep(TICK_SECONDS)

    async def _heal_first(self) -> None:
        """What a crash left is recovered before anything else; whoever is at work on the host is not waited for."""
        await self.journal.tick()
        self._show()
        while not await self.journal.recovered(STARTING_SECONDS):
            self.notify.still_starting(STARTING_SECONDS * 6)
            self._show()

    def _say_stopping(self) -> None:
        self.notify.stopping()
        work = self.works.changing
        self.log("stopping", goes_on=f"hostagent {work.words[0]}" if work else None)

    # -- what it does all the time ------------------------------------------------------------------------------------

    async def _ticks(self) -> None:
        while True:
            await self.journal.tick()
            self._show()
            await asyncio.sleep(TICK_SECONDS)

    async def _looks(self) -> None:
        while True:
            if self.watch.due(time.monotonic(), at_work=bool(self.journal.at_work)):
                self.watch.begins(time.monotonic())
                try:
                    host, observed = await self.looks.do(self.look)
                    self.watch.looked(host, observed, time.monotonic(), at_work=bool(self.journal.at_work))
                except HostagentError as error:
                    self.watch.failed(str(error), time.monotonic())
                except Exception as error:  # of something that ended as it was looked at: the next look will tell
                    self.watch.failed(repr(error), time.monotonic())
            await asyncio.sleep(TICK_SECONDS)

    async def _pulse(self) -> None:
        wanted = self.notify.watchdog_seconds
        seconds = PULSE_SECONDS if wanted is None else min(PULSE_SECONDS, wanted / 4)
        said = ""
        while True:
            fault = self.stuck()
            if not fault:
                self.notify.alive()
            elif fault != said:
                self.log("stuck", level=Level.ERROR, what=fault)
            said = fault
            await asyncio.sleep(seconds)

    def _hear(self, event: Event) -> None:
        was_up = self.watch.is_up
        self.watch.heard(event, time.monotonic())
        if self.watch.is_up and was_up is False:
            self.journal.healing.try_soon()

    def _show(self) -> None:
        """What `systemctl status` says."""
        parts = [f"at work: {self.journal.at_work}"] if self.journal.at_work else []
        if self.journal.is_recovering:
            parts.append("recovering")
        elif self.journal.open and not self.journal.at_work:
            parts.append(f"{len(self.journal.open)} open: hostagent status")
        if self.watch.is_up is False:
            parts.append("libvirt is away")
        if self.journal.fault:
            parts.append(self.journal.fault)
        status = "; ".join(parts) or "watching"
        if status != self._status:
            self._status = status
            self.notify.status(status)


def _soon(loop: asyncio.AbstractEventLoop, hear: object, event: Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(hear, event)  # type: ignore[arg-type]


def run(config: Config, common: Sequence[str]) -> NoReturn:
    """The service until a signal ends it; `common` stands before the words of each verb that it runs.

    The process ends here, whatever its threads are at: each may wait for somebody who never answers.
    """
    writer = Writer()
    log = log_to_stdout(config.agent.log_format, writer)
    tell_warnings(log)
    code = _exit_code(config, tuple(common), log)
    writer.end(_LEAVE_SECONDS)
    sys.stderr.flush()
    os._exit(code)


def _exit_code(config: Config, common: tuple[str, ...], log: Log) -> int:
    try:
        return asyncio.new_event_loop().run_until_complete(_run(config, common, log))
    except HostagentError as error:
        log("failed", level=Level.ERROR, error=str(error), kind=error.kind)
        return error.exit_code
    except Exception as error:  # nobody foresaw it: systemd starts us anew
        log("fault", level=Level.ERROR, error=repr(error), where="".join(traceback.format_exception(error))[-_TRACE:])
        return ExitCode.UNEXPECTED


async def _run(config: Config, common: tuple[str, ...], log: Log) -> int:
    agent = Agent(
        config,
        log,
        Notify.of_this_process(),
        LibvirtEvents(config.libvirt.uri, config.libvirt.call_seconds),
        wiring.Looks(config).look,
        launcher_of(common),
        common[1] if common[:1] == ("--config",) else str(DEFAULT_PATH),
    )
    async with _heeding(agent.stop):
        await agent.run()
    return ExitCode.DONE


@asynccontextmanager
async def _heeding(stop: asyncio.Event) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    yield
