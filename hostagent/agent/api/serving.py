"""Where the API is served: on a Unix socket, and by TLS for whoever has a certificate of the right authority."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from hostagent.agent.api.gate import ConnectionLimits, Gate
from hostagent.agent.api.peers import Admission
from hostagent.agent.api.socket_file import listen
from hostagent.errors import Failed, UsageError

HANDSHAKE_SECONDS = 10.0
END_SECONDS = 0.5  # for answers that are on their way as the agent ends


@dataclass(frozen=True)
class Tls:
    """Files, as PEM: the agent's certificate and key, and the authority that its clients' certificates are of."""

    certificate: Path
    key: Path
    client_ca: Path

    def context(self) -> ssl.SSLContext:
        """Whoever has no such certificate does not get to say a word; UsageError when a file is wrong."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
            context.load_verify_locations(cafile=self.client_ca)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise UsageError(
                "reading the agent's certificates",
                expected=f"certificate {self.certificate}, its key {self.key}, and {self.client_ca}, as PEM",
                found=str(error),
            ) from error
        return context


@asynccontextmanager
async def serve_on_socket(
    app: web.Application,
    path: Path,
    group: str,
    limits: ConnectionLimits = ConnectionLimits(),  # noqa: B008 - frozen
) -> AsyncIterator[None]:
    """Serve `app` to root and the members of `group`, while the block lasts; Refused when that cannot be."""
    admission = Admission.of_group(group)
    runner = await _runner(app)
    file = listen(path, admission.gid)
    try:
        assert runner.server is not None  # noqa: S101 - it was set up
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(Gate(runner.server, admission, limits), sock=file.socket)
        yield
        server.close()
    finally:
        file.close()
        await runner.cleanup()


@asynccontextmanager
async def serve_by_tls(
    app: web.Application,
    address: tuple[str, int],
    tls: Tls,
    limits: ConnectionLimits = ConnectionLimits(),  # noqa: B008 - frozen
) -> AsyncIterator[int]:
    """The same to whoever has a certificate of the authority; the port."""
    context = tls.context()
    runner = await _runner(app)
    host, port = address
    try:
        assert runner.server is not None  # noqa: S101 - it was set up
        server = await asyncio.get_running_loop().create_server(
            Gate(runner.server, None, limits), host, port, ssl=context, ssl_handshake_timeout=HANDSHAKE_SECONDS
        )
    except OSError as error:
        await runner.cleanup()
        raise Failed(f"listening at {host}:{port}", found=error.strerror or str(error)) from error
    try:
        yield server.sockets[0].getsockname()[1]
        server.close()
    finally:
        await runner.cleanup()


async def _runner(app: web.Application) -> web.AppRunner:
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=END_SECONDS, access_log=None)
    await runner.setup()
    return runner


def _no_password() -> str:
    raise ValueError("its key has a password")
