"""Connections: who may have one is asked as it is accepted, before anything of it is read; and how many there are.

An HTTP parser sees nothing of a connection that is refused: it gets one sentence and is closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from hostagent.agent.api.answers import BadRequest, error_response, error_text, http_error
from hostagent.agent.api.peers import Admission, Peer
from hostagent.errors import HostagentError, Refused

_log = logging.getLogger(__name__)

_LINGER_SECONDS = 1.0


@dataclass(frozen=True)
class ConnectionLimits:
    """What somebody who connects may take of the agent."""

    connections: int = 64
    head_seconds: float = 15.0  # until a request's head is there, and between two requests
    line_bytes: int = 8190
    headers: int = 64


@dataclass
class Gate:
    """Lets connections in, as asyncio's protocol factory; `admission` None: whoever has come so far, by TLS."""

    server: web.Server
    admission: Admission | None
    limits: ConnectionLimits = ConnectionLimits()
    inside: set[asyncio.BaseTransport] = field(default_factory=set)

    def __call__(self) -> asyncio.Protocol:
        return _Arrival(self)

    def arrived(self, transport: asyncio.Transport) -> None:
        """Let it in, or send it away with a sentence."""
        try:
            if self.admission is not None:
                # asyncio lends the socket out with getsockopt alone, which is all that is needed
                self.admission.check(Peer.of(transport.get_extra_info("socket")))
        except HostagentError as error:
            _turn_away(transport, HTTPStatus.FORBIDDEN, error)
            return
        if len(self.inside) >= self.limits.connections:
            _turn_away(transport, HTTPStatus.SERVICE_UNAVAILABLE, self._full())
            return
        self.inside.add(transport)
        connection = _Connection(
            self.server,
            lambda: self.inside.discard(transport),
            loop=asyncio.get_running_loop(),
            keepalive_timeout=self.limits.head_seconds,
            tcp_keepalive=self.admission is None,
            max_line_size=self.limits.line_bytes,
            max_field_size=self.limits.line_bytes,
            max_headers=self.limits.headers,
            lingering_time=0,
            access_log=None,
            auto_decompress=False,  # a small body would become a large one
        )
        transport.set_protocol(connection)
        connection.connection_made(transport)

    def _full(self) -> Refused:
        return Refused(
            "connecting to hostagent's agent",
            expected=f"at most {self.limits.connections} connections",
            found="as many already",
            hint="try again later",
        )


class _Arrival(asyncio.Protocol):
    """A connection that was not looked at yet."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - of a stream
        self._gate.arrived(transport)


class _Connection(RequestHandler):
    """One that was let in. Its own errors, about what is no HTTP, are JSON too."""

    __slots__ = ("_over",)

    def __init__(self, server: web.Server, over: Callable[[], None], **settings: Any) -> None:
        super().__init__(server, **settings)
        self._over = over

    def connection_lost(self, exc: BaseException | None) -> None:
        self._over()
        super().connection_lost(exc)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPException):  # refused before it got to us, like an Expect that nobody meets
            resp = error_response(http_error(HTTPStatus(resp.status), request.method))
            resp.force_close()
        return await super().finish_response(request, resp, start_time)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        found = "no HTTP that can be read"
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.error("a fault of hostagent itself while it answered", exc_info=exc)
            found = "a fault of hostagent itself; its log has more"
        error = BadRequest(HTTPStatus(status), "reading the request", expected="HTTP/1.1", found=found)
        answer = error_response(error)
        answer.force_close()
        return answer


def _turn_away(transport: asyncio.Transport, status: HTTPStatus, error: HostagentError) -> None:
    _log.warning("%s", error)
    body = error_text(error).encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    transport.write(head.encode() + body)
    if transport.can_write_eof():
        transport.write_eof()  # whoever is still talking hears it once he listens
        asyncio.get_running_loop().call_later(_LINGER_SECONDS, transport.abort)
    else:
        transport.close()
