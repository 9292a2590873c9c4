"""The agent's API, served on a socket of its own, with verbs that are made up."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from hostagent.agent.api.events import Pace
from hostagent.agent.api.gate import ConnectionLimits
from hostagent.agent.api.requests import RequestLimits
from hostagent.agent.api.routes import Api, add_routes
from hostagent.agent.api.sending import SendingLimits
from hostagent.agent.api.serving import serve_on_socket
from hostagent.agent.launching import Launcher
from hostagent.agent.work import Works
from hostagent.processes import WITH_US

NOBODY_S_GROUP = ""


@dataclass
class MadeUp:
    """Has a program of Python's run in the place of a verb; it is given the verb's words. Keeps those."""

    program: str = "print('{}')"
    plain: bool = True  # without site-packages, which take their time
    words: list[list[str]] = field(default_factory=list)

    def reading(self, words: Sequence[str]) -> Sequence[str]:
        self.words.append(list(words))
        return (*WITH_US, sys.executable, "-ISc" if self.plain else "-c", self.program, *words)

    def changing(self, words: Sequence[str], _environment: Mapping[str, str]) -> Sequence[str]:
        return self.reading(words)


@dataclass
class Calling:
    """`hostagent` itself runs, with settings of a test's own."""

    settings: Path

    def reading(self, words: Sequence[str]) -> Sequence[str]:
        return (*WITH_US, sys.executable, "-m", "hostagent.cli", "--config", str(self.settings), *words)

    def changing(self, words: Sequence[str], _environment: Mapping[str, str]) -> Sequence[str]:
        return self.reading(words)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Mapping[str, Any]:
        """The sentence that every refusal has, in all its parts."""
        error = self.json["error"]
        assert set(error) == {"kind", "doing", "expected", "found", "hint"}
        assert error["doing"]
        assert b"Traceback" not in self.body
        return error  # type: ignore[no-any-return]


@dataclass
class Served:
    """Where it is served, and how."""

    folder: Path
    launcher: Launcher = field(default_factory=MadeUp)
    works: Works | None = None  # in the place of those that use the launcher
    settings: str = "/etc/hostagent/hostagent.toml"
    group: str = NOBODY_S_GROUP
    connections: ConnectionLimits = ConnectionLimits()  # noqa: RUF009 - frozen
    limits: RequestLimits = RequestLimits()  # noqa: RUF009 - frozen
    sending: SendingLimits = SendingLimits()  # noqa: RUF009 - frozen
    pace: Pace = Pace(look=0.01, still_there=0.02)  # noqa: RUF009 - frozen
    journal: Path | None = None
    lock: Path | None = None

    @property
    def socket(self) -> Path:
        return self.folder / "run" / "agent.sock"

    def app(self) -> web.Application:
        works = self.works or Works(self.launcher, self.folder / "given")
        journal, lock = self.journal or self.folder / "journal.sqlite", self.lock or self.folder / "lock"
        app = web.Application()
        add_routes(app, Api(works, journal, lock, self.settings, self.limits, self.sending, self.pace))
        return app

    def serve(self, ask: Callable[[], Awaitable[None]]) -> None:
        """Serve it while something is asked in the same loop."""

        async def run() -> None:
            async with serve_on_socket(self.app(), self.socket, self.group, self.connections):
                await ask()

        asyncio.run(run())

    @contextmanager
    def in_a_thread(self) -> Iterator[None]:
        """Serve it while the block lasts, for those who wait for its answers."""
        began, loop, ends = threading.Event(), asyncio.new_event_loop(), asyncio.Event()
        failed: list[BaseException] = []

        async def run() -> None:
            try:
                async with serve_on_socket(self.app(), self.socket, self.group, self.connections):
                    began.set()
                    await ends.wait()
            except BaseException as error:
                failed.append(error)
                began.set()

        thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
        thread.start()
        began.wait()
        try:
            if failed:
                raise failed[0]
            yield
        finally:
            loop.call_soon_threadsafe(ends.set)
            thread.join()
            loop.close()

    async def ask(self, method: str, path: str, body: bytes | object = None, **heads: str) -> Answer:
        """One request on a connection of its own, read to its end."""
        content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        if body is not None:
            heads = {"Content-Type": "application/json", "Content-Length": str(len(content)), **heads}
        lines = [f"{method} {path} HTTP/1.1", "Host: h", "Connection: close", *(f"{k}: {v}" for k, v in heads.items())]
        return await self.say("\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + content)

    async def say(self, words: bytes, *, ends: bool = False) -> Answer:
        """The same with what may be no request; when it `ends`, nothing more will be said."""
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        try:
            writer.write(words)
            if ends:
                writer.write_eof()
            said = await reader.read()
        except ConnectionResetError:
            said = b""
        finally:
            writer.close()
        return answer_of(said)


def answer_of(said: bytes) -> Answer:
    head, _, body = said.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("Transfer-Encoding") == "chunked":
        body = _joined(body)
    return Answer(int(first.split()[1]) if first else 0, headers, body)


def _joined(chunks: bytes) -> bytes:
    whole = b""
    while chunks:
        size, _, rest = chunks.partition(b"\r\n")
        whole += rest[: int(size, 16)]
        chunks = rest[int(size, 16) + 2 :]
    return whole


def connected(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(20)
    made.connect(str(path))
    return made
