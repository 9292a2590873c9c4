"""Events of this host's libvirt. Two threads: one runs libvirt's event loop, one keeps a connection.

libvirt's own event loop is the process's (virEventRegisterDefaultImpl): a timer of ours goes round in it, so that it
is seen to be alive. Each call has a deadline; one that is late leaves its thread behind, and another is begun.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import libvirt

from hostagent.errors import OutcomeUnknown
from hostagent.hypervisor.deadline import Worker
from hostagent.hypervisor.events import Event, GuestEvent, Happened, LineEvent

AGAIN_SECONDS = 1.0  # after a connection broke; then twice that, and so on
AGAIN_LIMIT = 30.0
LATE_LIMIT = 300.0  # where libvirt takes connections and does not answer: each leaves a thread behind
_LOOK_SECONDS = 10.0  # between two questions whether it is still there
_BEAT_MS = 500
_GRACE_SECONDS = 10.0  # after which what should have come back is taken for stuck
_KEEPALIVE = (5, 3)  # seconds between, and how many without an answer

_LIFECYCLE = {
    libvirt.VIR_DOMAIN_EVENT_DEFINED: Happened.DEFINED,
    libvirt.VIR_DOMAIN_EVENT_UNDEFINED: Happened.UNDEFINED,
    libvirt.VIR_DOMAIN_EVENT_STARTED: Happened.STARTED,
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED: Happened.PAUSED,
    libvirt.VIR_DOMAIN_EVENT_RESUMED: Happened.RESUMED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED: Happened.SHUT_OFF,
    libvirt.VIR_DOMAIN_EVENT_SHUTDOWN: Happened.SHUTTING_DOWN,
    libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED: Happened.SUSPENDED,
    libvirt.VIR_DOMAIN_EVENT_CRASHED: Happened.CRASHED,
}
_DETAILS = {
    (libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STARTED_MIGRATED): Happened.CAME_IN,
    (libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STARTED_RESTORED): Happened.RESTORED,
    (libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STARTED_FROM_SNAPSHOT): Happened.RESTORED,
    (libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STARTED_WAKEUP): Happened.WOKEN,
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED): Happened.DESTROYED,
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED): Happened.CRASHED,
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED): Happened.LEFT,
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED): Happened.SAVED,
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED): Happened.FAILED,
}


def happened(event: int, detail: int) -> Happened:
    """libvirt's numbers in our words."""
    return _DETAILS.get((event, detail)) or _LIFECYCLE.get(event, Happened.OTHER)


class _Loop:
    """libvirt's event loop, for the whole process and as long as that lives."""

    def __init__(self) -> None:
        libvirt.registerErrorHandler(lambda *_: None, None)
        libvirt.virEventRegisterDefaultImpl()
        libvirt.virEventAddTimeout(_BEAT_MS, lambda *_: None, None)  # so that each turn ends
        self.beat = time.monotonic()
        threading.Thread(target=self._run, name="libvirt events", daemon=True).start()

    def _run(self) -> None:
        while True:
            with contextlib.suppress(libvirt.libvirtError):
                libvirt.virEventRunDefaultImpl()
            self.beat = time.monotonic()


@cache
def _loop() -> _Loop:
    return _Loop()


class LibvirtEvents:
    """The real `Events` port."""

    def __init__(self, uri: str, call_seconds: float) -> None:
        self._uri = uri
        self._call_seconds = call_seconds
        self._tell: Callable[[Event], None] = _nobody
        self._broken = threading.Event()
        self._again = threading.Event()  # there is reason to try before the time
        self._ended = False
        self._due = 0.0  # when the line's thread is heard of again, at the latest; monotonic
        self._thread = threading.Thread(target=self._run, name="libvirt line", daemon=True)

    def start(self, tell: Callable[[Event], None]) -> None:
        """Before any other connection of the process is made: libvirt's event loop must be there by then."""
        self._tell = tell
        self._loop = _loop()
        self._due = time.monotonic() + self._call_seconds
        self._thread.start()

    def stuck(self) -> str:
        now = time.monotonic()
        if now - self._loop.beat > _GRACE_SECONDS:
            return f"libvirt's event loop, for {now - self._loop.beat:.0f} s"
        if now - self._due > _GRACE_SECONDS:
            return f"the thread that keeps a connection to libvirt, for {now - self._due:.0f} s"
        return ""

    def end(self, within_seconds: float) -> None:
        self._tell = _nobody
        self._ended = True
        self._again.set()
        self._broken.set()
        self._thread.join(within_seconds)

    def _run(self) -> None:
        seconds = AGAIN_SECONDS
        while not self._ended:
            self._broken.clear()
            self._again.clear()
            attempt = _Attempt(self._uri, self._again.set)
            try:
                for _ in self._up(attempt):
                    self._tell(LineEvent(up=True))
                    seconds = AGAIN_SECONDS
                why = "it closed the connection"
            except OutcomeUnknown as error:
                attempt.give_up()
                why = str(error)
            except libvirt.libvirtError as error:
                why = error.get_error_message() or str(error)
            attempt.worker.end()
            self._tell(LineEvent(up=False, why=why))
            if not self._ended:
                self._wait(seconds, self._again)
            seconds = min(seconds * 2, LATE_LIMIT if attempt.late else AGAIN_LIMIT)

    def _up(self, attempt: _Attempt) -> Iterator[None]:
        """Connect, and listen until the connection breaks; yields once, when it is there."""
        self._call(attempt, "connecting to libvirt", attempt.connect)
        try:
            self._call(attempt, "registering for libvirt's events", lambda: self._register(attempt))
            yield
            while not self._wait(_LOOK_SECONDS, self._broken):
                if not self._call(attempt, "asking whether libvirt is there", attempt.is_alive):
                    return
        finally:
            if not attempt.late:
                with contextlib.suppress(OutcomeUnknown, libvirt.libvirtError):
                    self._call(attempt, "closing the connection to libvirt", attempt.close)

    def _register(self, attempt: _Attempt) -> None:
        connection = attempt.connection
        connection.registerCloseCallback(lambda *_: self._broken.set(), None)
        attempt.undo.append(connection.unregisterCloseCallback)
        kind = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
        number = connection.domainEventRegisterAny(None, kind, self._lifecycle, None)
        attempt.undo.append(lambda: connection.domainEventDeregisterAny(number))
        connection.setKeepAlive(*_KEEPALIVE)

    def _lifecycle(self, _connection: Any, domain: Any, event: int, detail: int, _opaque: object) -> None:
        self._tell(GuestEvent(domain.name(), domain.UUIDString(), happened(event, detail)))

    def _call(self, attempt: _Attempt, doing: str, work: Callable[[], Any]) -> Any:
        self._due = time.monotonic() + self._call_seconds
        try:
            return attempt.worker.call(doing, work, self._call_seconds)
        except OutcomeUnknown:
            attempt.late = True
            raise

    def _wait(self, seconds: float, what: threading.Event) -> bool:
        self._due = time.monotonic() + seconds
        return what.wait(seconds)


class _Attempt:
    """One connection, from its opening to its close; one that is late may still come, and is closed then."""

    def __init__(self, uri: str, came_late: Callable[[], None]) -> None:
        self.worker = Worker()
        self.connection: Any = None
        self.undo: list[Callable[[], Any]] = []  # without which libvirt keeps a connection that is closed
        self.late = False
        self._uri = uri
        self._came_late = came_late
        self._given_up = False
        self._turn = threading.Lock()

    def connect(self) -> None:
        try:
            connection = libvirt.open(self._uri)
            with self._turn:
                self.connection = connection
                if self._given_up:
                    self.close()
        finally:
            if self._given_up:  # whatever hung does so no more
                self._came_late()

    def give_up(self) -> None:
        """Nobody waits for it any more."""
        with self._turn:
            self._given_up = True

    def is_alive(self) -> bool:
        return bool(self.connection.isAlive())

    def close(self) -> None:
        for undo in reversed(self.undo):
            with contextlib.suppress(libvirt.libvirtError):
                undo()
        self.undo.clear()
        self.connection.close()


def _nobody(_event: Event) -> None:
    """Before it begins, and after it has ended."""
