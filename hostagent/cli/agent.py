"""hostagent agent: the service."""

from __future__ import annotations

import os

from hostagent.cli.settings import settings_of
from hostagent.cli.verbs import Asked, verb


@verb("agent", example="hostagent agent")
def agent(asked: Asked) -> int:
    """Serve this host until it is told to stop: recover what a crash left, watch the guests, serve metrics and the API.

    systemd runs it: `systemctl enable --now hostagent`. SIGTERM ends it at once; an update that it has started goes on,
    watched by its guard, and is found again when it is started anew.
    """
    from hostagent.agent.service import run  # noqa: PLC0415 - aiohttp is needed by nobody else

    settings = settings_of(asked)
    config = () if asked.config is None else ("--config", os.path.abspath(asked.config))  # noqa: PTH100 - as clients name it, links and all
    connect = () if asked.connect is None else ("--connect", asked.connect)
    run(settings, (*config, *connect))
