"""The service as systemd would start it: a process with a notify socket, whose log is read line by line."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.agent import updating_agent

LIMIT = 180.0
"""Seconds after which something that must happen is taken for something that never does."""

Line = dict[str, object]

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.agent.updating_agent"])


class AgentProcess:
    """`with AgentProcess(folder) as agent:` has one that is ready; it is killed at the end, if it still runs."""

    def __init__(self, folder: Path, *, update: Sequence[str] = (), halts_at: str = "", ready: bool = True) -> None:
        """update: the words of an update that it starts when it gets SIGUSR1, and that halts once a step has begun."""
        self.lines: list[Line] = []
        self.told: list[str] = []
        self._changed = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = folder / "notify"
        address.unlink(missing_ok=True)
        self._socket.bind(str(address))
        self._log = folder / "log"
        self._log.unlink(missing_ok=True)
        os.mkfifo(self._log)
        words = (str(address), str(self._log), tuple(update), halts_at)
        self._process = _FORKS.Process(target=updating_agent.main, args=words)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        for work in (self._read_log, self._read_notify):
            threading.Thread(target=work, daemon=True).start()
        if ready:
            self.wait_told("READY=1")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._socket.close()

    def start_update(self) -> None:
        os.kill(self.pid, signal.SIGUSR1)

    def kill(self) -> None:
        """kill -9, and nothing else of what it has begun."""
        self._process.kill()
        self._process.join(LIMIT)

    def stop(self) -> float:
        """SIGTERM; how long it took to end, seconds."""
        begun = time.monotonic()
        self._process.terminate()
        self._process.join(LIMIT)
        seconds = time.monotonic() - begun
        assert self._process.exitcode == 0, self._process.exitcode
        return seconds

    def process(self) -> psutil.Process:
        return psutil.Process(self.pid)

    def wait_line(self, event: str, limit: float = LIMIT, **more: object) -> Line:
        """The first such line of its log; AssertionError when none comes."""
        found: list[Line] = []

        def there() -> bool:
            found[:] = [line for line in self.lines if line["event"] == event and more.items() <= line.items()]
            return bool(found)

        self._wait(there, f"a line {event!r} with {more}", limit)
        return found[0]

    def wait_told(self, words: str, limit: float = LIMIT) -> None:
        """systemd was told that."""
        self._wait(lambda: words in self.told, f"{words} to be told", limit)

    def has(self, event: str, **more: object) -> bool:
        return any(line["event"] == event and more.items() <= line.items() for line in self.lines)

    def _wait(self, condition: object, what: str, limit: float) -> None:
        assert callable(condition)
        with self._changed:
            came = self._changed.wait_for(condition, limit)
        assert came, f"expected {what}, found {self.told} and {self.lines}"

    def _read_log(self) -> None:
        with self._log.open() as log:
            for line in log:
                print(f"agent: {line.rstrip()}", flush=True)
                with self._changed:
                    self.lines.append(json.loads(line))
                    self._changed.notify_all()

    def _read_notify(self) -> None:
        with suppress(OSError):
            while True:
                words = self._socket.recv(4096).decode()
                with self._changed:
                    self.told.append(words)
                    self._changed.notify_all()
