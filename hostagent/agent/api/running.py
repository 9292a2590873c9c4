"""Operations that are verbs: the verb runs, and what it says is the answer.

For a program that is its `--json` document. The command line asks for a stream instead: what the verb says as it says
it, for the terminal that it speaks to.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from hostagent.agent.api.answers import document_response, error_document
from hostagent.agent.api.peers import who
from hostagent.agent.api.requests import RequestLimits, read_parameters, require_settings
from hostagent.agent.api.sending import SendingLimits, Streaming
from hostagent.agent.work import Chunk, Stream, Work, Works
from hostagent.errors import Failed, HostagentError, Refused
from hostagent.front import ATTACHED, Front
from hostagent.operations import FRONT_HEADER, LINES, Operation, Parameters, Verb
from hostagent.update.host_lock import HostLock
from hostagent.update.stopping import ask_to_stop

_log = logging.getLogger(__name__)
_LAST_WORDS = 1000


class Stop(Parameters):
    """What is to stop: the first line of a stream names it."""

    work: str


@dataclass
class Running:
    """Runs verbs for requests."""

    works: Works
    lock: Path  # the host's
    settings: str  # the path of what the agent runs with
    limits: RequestLimits = RequestLimits()  # noqa: RUF009 - frozen
    sending: SendingLimits = SendingLimits()  # noqa: RUF009 - frozen
    listened_to: dict[str, Work] = field(default_factory=dict)

    async def run(self, request: web.Request, operation: Operation) -> web.StreamResponse:
        """The answer of an operation, once its verb has ended, or as it goes."""
        require_settings(request, self.settings)
        asked = await read_parameters(request, operation.verb, operation.parameters, self.limits)
        streamed = LINES in request.headers.get("Accept", "")
        front = Front.read(request.headers.get(FRONT_HEADER, "{}")) if streamed else Front(as_json=True)
        _log.info("%s asks for %s", who(request), operation.name)
        work = await self.works.start(
            (*operation.words, *front.common_words(), *asked.words()),
            changes=operation.changes,
            environment=front.environment(),
            files=asked.files(),
        )
        async with work:  # who does not listen any more leaves it: what changes something goes on
            return await (self._stream(request, work) if streamed else _whole(work, operation))

    async def stop(self, request: web.Request) -> web.StreamResponse:
        """Have an update that somebody listens to stop, as Ctrl-C does."""
        asked = await read_parameters(request, Verb.POST, Stop, self.limits)
        work = self.listened_to.get(asked.work)
        if work is None or not work.changes:
            raise Refused("stopping", expected="an update that somebody listens to", found=repr(asked.work[:80]))
        holder = HostLock.at(self.lock).holder()
        # One who has held the host since before is another one. Ours may not have it yet: who asks, asks again.
        ours = holder is not None and not holder.is_guard and holder.since >= work.began
        reached = holder is not None and ours and ask_to_stop(holder.process)
        _log.info("%s asks hostagent %s to stop", who(request), work.words[0])
        return web.json_response({"asked": reached})

    async def _stream(self, request: web.Request, work: Work) -> web.StreamResponse:
        name, stream = secrets.token_hex(8), Streaming(request, LINES, self.sending)
        self.listened_to[name] = work
        try:
            await stream.begin()
            await stream.line({"work": name})
            try:
                async for chunk in _with_pauses(aiter(work), self.sending.alive_seconds):
                    await stream.line({_KEYS[chunk.stream]: chunk.text} if chunk else {})
                await stream.line({"exit": await work.exit_code()})
            except HostagentError as error:
                await stream.line({**error_document(error), "exit": int(error.exit_code)})
            return await stream.end()
        except ConnectionError:
            return stream.cut_off()
        finally:
            del self.listened_to[name]


_KEYS = {Stream.OUT: "out", Stream.ERR: "err"}


async def _with_pauses(chunks: AsyncIterator[Chunk], seconds: float) -> AsyncIterator[Chunk | None]:
    """What is said, and None whenever nothing was for so long: so both ends see that the other one is there."""
    waiting: asyncio.Future[Chunk | None] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(anext(chunks, None))
            done, _ = await asyncio.wait([waiting], timeout=seconds)
            if not done:
                yield None
                continue
            chunk, waiting = waiting.result(), None
            if chunk is None:
                return
            yield chunk
    finally:
        if waiting is not None:
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                await waiting


async def _whole(work: Work, operation: Operation) -> web.Response:
    """All that it says, once it has ended."""
    said: dict[Stream, list[str]] = {Stream.OUT: [], Stream.ERR: []}
    async for chunk in work:
        said[chunk.stream].append(chunk.text)
    code = await work.exit_code()
    text, _, attached = "".join(said[Stream.OUT]).partition(ATTACHED)
    document = _object(text)
    if document is None:
        _log.error("%s ended with %d: %s", operation.name, code, "".join(said[Stream.ERR])[-_LAST_WORDS:])
        raise Failed(
            f"running hostagent {operation.name}",
            expected="a document",
            found=f"none, and exit code {code}",
            hint="hostagent status; the agent's log has more",
        )
    if operation.name == "plan" and "error" not in document:
        document = {"plan": document, "saved": _object(attached)}
    return document_response(document, code)


def _object(text: str) -> dict[str, object] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
