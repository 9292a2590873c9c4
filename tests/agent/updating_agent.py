"""The service, which begins an update when it gets SIGUSR1, as it does when its API is asked to."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from hostagent.agent import service
from hostagent.config import Config
from tests.agent.halting_update import Halting
from tests.bench.lab import CONFIG

COMMON = ("--config", str(CONFIG))


def main(notify: str, log: str, update: tuple[str, ...], halts_at: str) -> None:
    """In a process that was forked with everything loaded; `update` are the words of that, which halts at a step."""
    os.environ.update({"NOTIFY_SOCKET": notify, "WATCHDOG_USEC": "4000000"})
    os.environ.pop("WATCHDOG_PID", None)
    os.dup2(os.open(log, os.O_WRONLY), 1)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)

    class UpdatingAgent(service.Agent):
        def __post_init__(self) -> None:
            if halts_at:
                self.launcher = Halting(COMMON, halts_at)
            super().__post_init__()

        async def run(self) -> None:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGUSR1, lambda: loop.create_task(self._update()))
            await super().run()

        async def _update(self) -> None:
            async with await self.works.start(update, changes=True) as work:
                said = "".join([chunk.text async for chunk in work])
                self.log("update said", exit_code=await work.exit_code(), said=said)

    service.Agent = UpdatingAgent  # type: ignore[misc]
    service.run(Config.load(CONFIG), COMMON)
