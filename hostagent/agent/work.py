"""Verbs that the service runs: `hostagent VERB ...` in a process of its own, listened to while it runs.

One verb at a time changes something, as one host lock would have it anyhow; it goes on when nobody listens any more and
when the service ends. A few that only look go on side by side; they end with whoever asked, and with the service.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from hostagent import processes
from hostagent.agent.backlog import Backlog, Chunk, Stream
from hostagent.agent.launching import Launcher
from hostagent.errors import ExitCode, Failed, Refused
from hostagent.front import AGENT_VARIABLE, OFF
from hostagent.update.files import discard, write_private

__all__ = ["Chunk", "Limits", "Stream", "Work", "Works"]

_READ = 64 * 1024
_REST_SECONDS = 5.0
_OURS_ALONE = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM", "INVOCATION_ID"})


@dataclass(frozen=True)
class Limits:
    """What a verb may take of the service."""

    side_by_side: int = 4  # verbs that only look
    turn_seconds: float = 30.0  # that one waits for its turn
    reading_seconds: float = 600.0  # and may last, its reader's slowness with it
    backlog: int = 4 << 20  # characters that were said and not read yet


@dataclass(eq=False)
class Work:
    """A verb that runs. One reader: `async for chunk in work`, then `await work.exit_code()`."""

    words: tuple[str, ...]
    changes: bool
    began: float  # Unix time
    _process: processes.Process
    _limits: Limits
    _backlog: Backlog = field(init=False)
    _done: asyncio.Task[int] = field(init=False)
    _late: bool = False

    def __post_init__(self) -> None:
        self._backlog = Backlog(self._limits.backlog)
        self._done = asyncio.create_task(self._listen(), name=f"hostagent {' '.join(self.words)}"[:80])

    @property
    def pid(self) -> int:
        """Of the process that was started: the verb itself, or who waits for its unit."""
        return self._process.pid

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._done.done()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        while (chunk := await self._backlog.get()) is not None:
            yield chunk

    async def exit_code(self) -> int:
        """Wait until it has ended; what it ended with, 128+n for signal n. Raises Failed when it was ended as late."""
        code = await asyncio.shield(self._done)
        if self._late:
            raise Failed(
                f"running hostagent {self.words[0]}",
                expected=f"it to end within {self._limits.reading_seconds:g} s",
                found="it still at work, so it was ended",
            )
        return code

    async def leave(self) -> None:
        """Nobody listens any more: what only looks is ended, what changes something goes on unheard."""
        if self.changes:
            self._backlog.forget()  # from now on nothing is kept
            return
        self._kill()
        with contextlib.suppress(Exception):
            await self._done

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.leave()

    async def _listen(self) -> int:
        """Read both outputs to their end, and see the process gone."""
        assert self._process.stdout is not None and self._process.stderr is not None  # noqa: S101 - both are pipes
        pipes = ((Stream.OUT, self._process.stdout), (Stream.ERR, self._process.stderr))
        reading = asyncio.gather(*(self._read(stream, pipe) for stream, pipe in pipes))
        try:
            async with asyncio.timeout(None if self.changes else self._limits.reading_seconds):
                await processes.exited(self._process)
        except TimeoutError:
            self._late = True
            self._kill()
        self._backlog.take_all()  # what is left is in its pipes
        try:
            # What it left in the background may hold its output for ever.
            await asyncio.wait_for(reading, _REST_SECONDS)
        except TimeoutError:
            pass
        finally:
            self._backlog.end()
        code = await processes.exited(self._process)
        return code if code >= 0 else ExitCode.SIGNAL - code

    async def _read(self, stream: Stream, pipe: IO[bytes]) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        async with processes.listening_to(pipe) as reader:
            while data := await reader.read(_READ):
                await self._put(Chunk(stream, decoder.decode(data)))
            await self._put(Chunk(stream, decoder.decode(b"", final=True)))

    async def _put(self, chunk: Chunk) -> None:
        if not chunk.text:
            return
        if not self.changes:  # it is held back by its slow reader; what changes something by nobody
            await self._backlog.wait_for_room()
        self._backlog.put(chunk)

    def _kill(self) -> None:
        self._process.kill()  # nothing where it has ended: it is reaped by us alone


class Works:
    """All verbs that run."""

    def __init__(
        self,
        launcher: Launcher,
        folder: Path,
        *,
        limits: Limits | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`folder`: for files that verbs are given; nothing in it outlives them."""
        self._launcher = launcher
        self._folder = folder
        self._limits = limits or Limits()
        self._wall = wall
        self._turns = asyncio.Semaphore(self._limits.side_by_side)
        self._changing: Work | None = None
        self._starting = False
        self._looking: set[Work] = set()
        self._tidying: set[asyncio.Task[None]] = set()

    @property
    def changing(self) -> Work | None:
        """What changes something now; None when nothing does."""
        return self._changing if self._changing is not None and not self._changing.is_over else None

    async def start(
        self,
        words: Sequence[str],
        *,
        changes: bool,
        environment: Mapping[str, str] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> Work:
        """Start `hostagent WORDS`; `environment` comes on top of ours in the C locale.

        `files`: a word that is a name here becomes the path of a private file with that content. Raises Refused when
        another verb changes something or too many look, Failed when it cannot be started.
        """
        turn = self._turn_to_change if changes else self._turn_to_look
        release = await turn(words)
        paths: list[Path] = []
        try:
            more, told = {AGENT_VARIABLE: OFF, **(environment or {})}, list(words)
            for name, content in (files or {}).items():
                paths.append(self._folder / secrets.token_hex(8))
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_private(paths[-1], content)
                told = [str(paths[-1]) if word == name else word for word in told]
            argv = self._launcher.changing(told, more) if changes else self._launcher.reading(told)
            pipe = processes.PIPE
            process = processes.start(argv, stdout=pipe, stderr=pipe, env=_environment(more))
        except BaseException:
            _tidy(paths)
            release()
            raise
        work = Work(tuple(words), changes, self._wall(), process, self._limits)
        if changes:
            self._changing = work
        else:
            self._looking.add(work)
        tidying = asyncio.create_task(self._see_ended(work, paths, release))
        self._tidying.add(tidying)
        tidying.add_done_callback(self._tidying.discard)
        return work

    async def end(self) -> None:
        """The service ends: so does what only looks; what changes something goes on."""
        for work in tuple(self._looking):
            await work.leave()

    def forget_files(self) -> None:
        """As the service begins: verbs read their files at once, so what lies there is nobody's."""
        with contextlib.suppress(FileNotFoundError):
            _tidy(list(self._folder.iterdir()))

    async def _turn_to_change(self, words: Sequence[str]) -> Callable[[], None]:
        if self._starting or self.changing is not None:
            other = f"hostagent {self._changing.words[0]}" if self._changing is not None else "another one"
            raise Refused(
                f"running hostagent {words[0]}",
                expected="no other verb that changes something",
                found=f"{other} at work",
                hint="wait for it; see: hostagent status",
            )
        self._starting = True
        return self._started

    def _started(self) -> None:
        self._starting = False

    async def _turn_to_look(self, words: Sequence[str]) -> Callable[[], None]:
        try:
            async with asyncio.timeout(self._limits.turn_seconds):
                await self._turns.acquire()
        except TimeoutError as error:
            raise Refused(
                f"running hostagent {words[0]}",
                expected=f"a turn within {self._limits.turn_seconds:g} s",
                found=f"{self._limits.side_by_side} others at work all the time",
                hint="try again later",
            ) from error
        return self._turns.release

    async def _see_ended(self, work: Work, paths: Sequence[Path], release: Callable[[], None]) -> None:
        if work.changes:
            release()  # from here on `changing` says so itself
        try:
            await asyncio.wait([work._done])
        finally:
            _tidy(paths)
            self._looking.discard(work)
            if not work.changes:
                release()


def _environment(more: Mapping[str, str]) -> Mapping[str, str]:
    """Ours in the C locale without what systemd has said to us alone, and `more`."""
    return {name: value for name, value in processes.c_locale(more).items() if name not in _OURS_ALONE}


def _tidy(paths: Sequence[Path]) -> None:
    for path in paths:
        discard(str(path))
