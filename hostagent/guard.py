"""The guard: a process that outlives the updater and recovers when it dies, so that no guest is left standing still.

It acts on the updater's death, never on its slowness; one that lets a guest stand still past its deadline is killed
first. It shares the host's lock and libvirt's driver lock with the updater, so neither is free for a moment in between.
Run as `python -m hostagent.guard`; the updater talks to it over a socket pair.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from hostagent import processes
from hostagent.config import Config
from hostagent.errors import Failed, HostagentError
from hostagent.hypervisor.driver_lock import DriverLock

READY_SECONDS = 30.0
ANSWER_SECONDS = 5.0
GRACE_SECONDS = 5.0  # past the budget: the updater turns back by itself at the budget, which takes a moment
_MESSAGE = 65536


class Guard:
    """The updater's side: a `Watcher` that tells the guard what it needs to know."""

    def __init__(self, config: Config, host_lock_fd: int, log: Path) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel = ours
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with theirs, os.fdopen(os.open(log, flags, 0o600), "ab") as output:
            self._process = processes.start(
                [sys.executable, "-m", "hostagent.guard", str(theirs.fileno()), str(host_lock_fd)],
                pass_fds=(theirs.fileno(), host_lock_fd),
                stdout=output,
                stderr=output,
            )
        # It gets ready while the update prepares; whoever relies on it first waits for its answer to this.
        self._answers_due = 0
        self._log = log
        self._turn = threading.Lock()  # guests are held side by side
        myself = os.pidfd_open(os.getpid())
        try:
            self._send({"config": config.model_dump_json(by_alias=True), "updater": os.getpid()}, myself)
        finally:
            os.close(myself)

    def ready(self) -> None:
        self._tell({})

    def pausing(self, until: float) -> None:
        """Refuses to let a guest stand still that nobody guards."""
        self._tell({"pausing_until": until + GRACE_SECONDS})

    def running(self) -> None:
        with suppress(HostagentError):  # the guest runs: a guard that died meanwhile changes nothing
            self._tell({"running": True})

    def hold(self, lock: DriverLock) -> None:
        assert lock.fd is not None  # noqa: S101 - it was just taken
        self._tell({"hold": str(lock.path)}, descriptor=lock.fd)

    def dismiss(self) -> None:
        """The update has ended: the guard leaves."""
        with suppress(HostagentError):
            self._tell({"done": True})
        self._channel.close()
        with suppress(Exception):
            self._process.wait(ANSWER_SECONDS)

    def _tell(self, message: dict[str, object], *, descriptor: int | None = None) -> None:
        with self._turn:
            self._send(message, descriptor)
            while self._answers_due:
                self._hear(ANSWER_SECONDS if self._answers_due == 1 else READY_SECONDS)

    def _send(self, message: dict[str, object], descriptor: int | None = None) -> None:
        try:
            self._channel.settimeout(ANSWER_SECONDS)
            socket.send_fds(self._channel, [json.dumps(message).encode()], [] if descriptor is None else [descriptor])
        except OSError as error:
            raise self._failed("it to listen", str(error) or type(error).__name__) from error
        self._answers_due += 1

    def _hear(self, within_seconds: float) -> None:
        try:
            self._channel.settimeout(within_seconds)
            answer = self._channel.recv(_MESSAGE)
        except OSError as error:
            raise self._failed("an answer", str(error) or type(error).__name__) from error
        if answer != b"ok":
            raise self._failed("ok", answer.decode(errors="replace") or "it has died")
        self._answers_due -= 1

    def _failed(self, expected: str, found: str) -> Failed:
        return Failed("talking to the guard", expected=expected, found=found, hint=f"{self._log} says why, if it ended")


def main() -> None:
    """Watch until the updater says that it has ended, or dies."""
    channel, host_lock_fd = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # whoever ends the updater ends it alone; then there is work to do
    data, (updater,), _, _ = socket.recv_fds(channel, _MESSAGE, 1)  # a pidfd: good also when it has died meanwhile
    message = json.loads(data)
    config = Config.model_validate_json(message["config"])
    from hostagent import takeover  # noqa: PLC0415 - everything is loaded before it is needed in a hurry

    lock = _watch(channel, updater, config)
    if lock is not None:
        takeover.say(f"the updater (pid {message['updater']}) is gone; recovering")
        takeover.take_over(config, lock, host_lock_fd)


def _watch(channel: socket.socket, updater: int, config: Config) -> DriverLock | None:
    """Until the updater is gone. None: it said goodbye; otherwise the driver lock as far as it is shared."""
    lock = DriverLock(config.paths.libvirt_run / "driver.pid")
    with suppress(OSError):
        channel.send(b"ok")
    until: float | None = None
    while True:
        left = None if until is None else max(0.0, until - time.monotonic())
        readable: list[object] = list(select.select([channel.fileno(), updater], [], [], left)[0])
        if not readable:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(updater, signal.SIGKILL)
            until = None
            continue
        if channel.fileno() in readable:
            data, descriptors = _heard(channel)
            if data:
                message = json.loads(data)
                if descriptors:
                    if lock.fd is not None:
                        os.close(lock.fd)
                    lock = DriverLock(lock.path, descriptors[0])
                if "pausing_until" in message:
                    until = float(message["pausing_until"])
                elif "running" in message:
                    until = None
                with suppress(OSError):
                    channel.send(b"ok")
                if "done" in message:
                    return None
                continue
            select.select([updater], [], [])  # it closed its end: it is ending; act on its death alone
        return lock


def _heard(channel: socket.socket) -> tuple[bytes, list[int]]:
    """A message and what came with it; nothing once the updater has closed its end, or died."""
    try:
        data, descriptors, _, _ = socket.recv_fds(channel, _MESSAGE, 1)
    except ConnectionResetError:  # it died before it had read our answers
        return b"", []
    return data, descriptors


if __name__ == "__main__":
    main()
