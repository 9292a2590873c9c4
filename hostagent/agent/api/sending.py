"""Answers on their way: each piece within a time, so that nobody who reads slowly, or not at all, keeps the agent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import hdrs, web

_SERVER = "hostagent"


@dataclass(frozen=True)
class SendingLimits:
    """How long a reader may take, and a stream be silent; seconds."""

    answer_seconds: float = 30.0
    line_seconds: float = 300.0  # a person stops a terminal to read
    alive_seconds: float = 15.0


async def send(request: web.Request, answer: web.StreamResponse, limits: SendingLimits) -> None:
    """A whole answer."""
    if request.can_read_body and not request.content.is_eof():
        answer.force_close()  # what is left of it is not read
    try:
        answer.headers[hdrs.SERVER] = _SERVER
        async with asyncio.timeout(limits.answer_seconds):
            await answer.prepare(request)
            await answer.write_eof()
    except TimeoutError:
        cut_off(request)


class Streaming:
    """An answer that comes in pieces. Whoever does not take one in time, or is gone, is a ConnectionError."""

    def __init__(self, request: web.Request, kind: str, limits: SendingLimits) -> None:
        self.limits = limits
        self._request = request
        self._answer = web.StreamResponse(
            headers={hdrs.CONTENT_TYPE: kind, hdrs.CACHE_CONTROL: "no-store", hdrs.SERVER: _SERVER}
        )
        self._answer.force_close()

    async def begin(self) -> None:
        await self._answer.prepare(self._request)

    async def write(self, text: str) -> None:
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError
        try:
            async with asyncio.timeout(self.limits.line_seconds):
                await self._answer.write(text.encode("utf-8", "replace"))
        except TimeoutError as error:
            raise ConnectionAbortedError from error

    async def line(self, words: Mapping[str, object]) -> None:
        """A JSON object on a line of its own."""
        await self.write(json.dumps(words) + "\n")

    async def end(self) -> web.StreamResponse:
        """All was said."""
        await self._answer.write_eof()
        return self._answer

    def cut_off(self) -> web.StreamResponse:
        """Nobody takes it."""
        cut_off(self._request)
        return self._answer


def cut_off(request: web.Request) -> None:
    """Close a connection without waiting for what it should still carry."""
    if request.transport is not None:
        request.transport.abort()
