"""Where the service is reached: its Unix socket, and TCP where the settings say so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from hostagent.agent.api.routes import Api, add_routes
from hostagent.agent.api.serving import Tls, serve_by_tls, serve_on_socket
from hostagent.agent.exporter import Health, add_metrics, serve_on_tcp, tls_context
from hostagent.agent.lane import Lane
from hostagent.agent_settings import AgentSettings


@dataclass(frozen=True)
class Doors:
    """What is behind them."""

    exposition: Callable[[], str]  # the metrics; runs in the lane
    lane: Lane
    health: Health
    api: Api


@asynccontextmanager
async def open_doors(settings: AgentSettings, doors: Doors) -> AsyncIterator[None]:
    """Serve while the block lasts; Refused or UsageError, with one sentence, when that cannot be."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serve_on_socket(_whole(doors), settings.socket, settings.group))
        if settings.address is not None:
            cert, key, ca = settings.tls_cert, settings.tls_key, settings.tls_client_ca
            if cert is None or key is None:
                await stack.enter_async_context(serve_on_tcp(_metrics(doors), settings.address, None))
            elif ca is None:
                await stack.enter_async_context(serve_on_tcp(_metrics(doors), settings.address, tls_context(cert, key)))
            else:
                await stack.enter_async_context(serve_by_tls(_whole(doors), settings.address, Tls(cert, key, ca)))
        yield


def _whole(doors: Doors) -> web.Application:
    """For those who are known: the API too."""
    app = _metrics(doors)
    add_routes(app, doors.api)
    return app


def _metrics(doors: Doors) -> web.Application:
    app = web.Application(client_max_size=0)
    add_metrics(app, doors.exposition, doors.lane, doors.health)
    return app
