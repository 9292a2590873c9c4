"""GET /metrics for Prometheus, and GET /health. A scrape reads the journal and the last look, and asks nobody else."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

from aiohttp import web

from hostagent.agent.lane import Lane
from hostagent.errors import HostagentError, Refused, UsageError
from hostagent.metrics import CONTENT_TYPE

METRICS, HEALTH = "/metrics", "/health"
SCRAPE_SECONDS = 10.0  # Prometheus' own default for its patience

_END_SECONDS = 0.3  # for answers that are on their way as the service ends

Health = Callable[[], tuple[bool, Mapping[str, object]]]
"""Whether all is well with the service itself, and what there is to know about that."""


def add_metrics(app: web.Application, exposition: Callable[[], str], lane: Lane, health: Health) -> None:
    """Have both served. `exposition` runs in the lane."""

    async def metrics(_: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(SCRAPE_SECONDS):
                text = await lane.do(exposition)
        except (TimeoutError, HostagentError) as error:
            words = str(error) or f"making the metrics: expected them within {SCRAPE_SECONDS:g} s, found none"
            return web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE, text=f"{words}\n")
        return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})

    async def answer_health(_: web.Request) -> web.Response:
        well, document = health()
        status = HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
        return web.json_response(dict(document), status=status)

    app.router.add_get(METRICS, metrics)
    app.router.add_get(HEALTH, answer_health)


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """For whoever connects; UsageError when a file is wrong."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2

    def no_password() -> str:
        raise ValueError("the key has a password")

    try:
        context.load_cert_chain(certificate, key, password=no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise UsageError(
            "reading the agent's certificate", expected=f"{certificate} and its key {key}, as PEM", found=str(error)
        ) from error
    return context


@asynccontextmanager
async def serve_on_tcp(
    app: web.Application, address: tuple[str, int], context: ssl.SSLContext | None
) -> AsyncIterator[None]:
    """Serve `app` there while the block lasts; Refused when that cannot be."""
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=_END_SECONDS, access_log=None)
    await runner.setup()
    host, port = address
    try:
        try:
            await web.TCPSite(runner, host, port, ssl_context=context).start()
        except OSError as error:
            raise Refused(
                f"listening at {host} port {port}",
                found=error.strerror or str(error),
                hint="[agent] listen in the settings says where",
            ) from error
        yield
    finally:
        await runner.cleanup()
