"""Where the service is reached: its Unix socket, and TCP where the settings say so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from hostagent.agent.exporter import Health, add_metrics, serve_on_tcp, tls_context
from hostagent.agent.lane import Lane
from hostagent.agent_settings import AgentSettings


@dataclass(frozen=True)
class Doors:
    """What is behind them."""

    exposition: Callable[[], str]  # the metrics; runs in the lane
    lane: Lane
    health: Health


@asynccontextmanager
async def open_doors(settings: AgentSettings, doors: Doors) -> AsyncIterator[None]:
    """Serve while the block lasts; Refused or UsageError, with one sentence, when that cannot be."""
    async with AsyncExitStack() as stack:
        if settings.address is not None:
            context = None
            if settings.tls_cert is not None and settings.tls_key is not None:
                context = tls_context(settings.tls_cert, settings.tls_key)
            await stack.enter_async_context(serve_on_tcp(_app(doors), settings.address, context))
        yield


def _app(doors: Doors) -> web.Application:
    app = web.Application(client_max_size=0)
    add_metrics(app, doors.exposition, doors.lane, doors.health)
    return app
