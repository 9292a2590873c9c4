"""What an update is doing, shown while it does it, by a thread of its own.

The engine only leaves word: it never waits for a terminal, which may be slow, stopped with Ctrl-S or gone. Around a
pause nothing is painted, since painting takes the interpreter from the engine for milliseconds; a pause that has
become long is shown.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live

from hostagent.cli.output import Cell, Column, Output, table

REFRESH_SECONDS = 0.2
QUIET_SECONDS = 1.0
_QUIET_STEPS = {
    "reconcile",
    "switch",
    "record",
    "resume",
    "pause",
    "save",
    "restore",
}  # the pause, and what comes right before it
_LEAVE_SECONDS = 2.0  # a terminal that takes nothing is not waited for

_WORDS = {
    "rehearse": "starting a throw-away guest",
    "prepare": "noting its state",
    "start": "starting the new QEMU",
    "copy": "copying its RAM into a file; it runs on",
    "detach": "taking libvirt's daemon away; guests run on",
    "reconcile": "comparing the old QEMU and the new one",
    "switch": "paused: device state crosses",
    "record": "paused: rewriting libvirt's record",
    "resume": "resuming",
    "retire": "runs under the new QEMU; the old one leaves",
    "prove": "asking the new QEMU what libvirt will ask",
    "attach": "bringing libvirt's daemon back",
    "pause": "about to stand still",
    "save": "held: saved without its RAM",
    "restore": "held: its state is restored, its RAM is where it was",
    "look": "checking what libvirt sees, then its clock",
    "migrate": "going to the peer; it runs on",
    "return": "coming back; it runs on",
    "resume-at-home": "resuming at home",
    "look-at-home": "checking what libvirt sees at home, then its clock",
    "shut-down": "shutting itself down",
    "boot": "booting",
}
_HOST = "libvirt"
_COMPONENTS = {"stage": "getting it ready", "swap": "swapping it"}  # steps that are a component's: "swap kernel"
_REHEARSAL = "rehearsal"
_ROLL = "roll"  # who goes on from group to group, and its only step


@dataclass(frozen=True)
class Event:
    """A step began, or is being undone, or something was said about it."""

    at: float  # monotonic
    who: str
    step: str
    words: str


class Painter(Protocol):
    """Shows events."""

    def paint(self, events: list[Event]) -> None: ...
    def end(self) -> None: ...


class Progress:
    """A `Teller` for the engine. `names` are those of guests by uuid."""

    def __init__(
        self, out: Output, names: Mapping[str, str], *, stopping: Callable[[], bool], live: bool = False
    ) -> None:
        self._names = names
        self._strangers: dict[str, str] = {}  # throw-away guests
        self._left: deque[Event] = deque()
        self._quiet_until = 0.0
        self._wake = threading.Event()
        self._ended = False
        self._painter: Painter = _Lines(out)
        if live and out.live is not None:
            self._painter = _LiveTable(out.live, list(names.values()), stopping)
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __call__(self, key: str, step: str, doing: str) -> None:
        now = time.monotonic()
        self._left.append(Event(now, self._who(key, step), step, _in_words(step, doing)))
        if step in _QUIET_STEPS and doing == "begun":
            self._quiet_until = now + QUIET_SECONDS
        else:
            self._quiet_until = 0.0
            self._wake.set()

    def _who(self, key: str, step: str) -> str:
        if not key:
            if step == _ROLL:
                return _ROLL
            kind, _, component = step.partition(" ")
            return component if kind in _COMPONENTS else _HOST
        if key in self._names:
            return self._names[key]
        return self._strangers.setdefault(key, f"{_REHEARSAL} {len(self._strangers) + 1}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        self._wake.set()
        self._thread.join(_LEAVE_SECONDS)

    def _run(self) -> None:
        with suppress(Exception):  # a terminal that is gone: the update goes on unseen
            while not self._ended:
                self._wake.wait(REFRESH_SECONDS)
                self._wake.clear()
                if time.monotonic() >= self._quiet_until:
                    self._paint()
            self._paint()
            self._painter.end()

    def _paint(self) -> None:
        self._painter.paint([self._left.popleft() for _ in range(len(self._left))])


def _in_words(step: str, doing: str) -> str:
    if step == _ROLL:
        return doing
    words = _WORDS.get(step) or _COMPONENTS.get(step.partition(" ")[0], step)
    match doing:
        case "begun":
            return words
        case "undone":
            return f"undoing: {words}"
        case said:
            return f"{step}: {said}"


class _Lines:
    """A line for each event, to stderr."""

    def __init__(self, out: Output) -> None:
        self._out = out

    def paint(self, events: list[Event]) -> None:
        for event in events:
            self._out.note(f"{event.who}: {event.words}")

    def end(self) -> None: ...


class _LiveTable:
    """A row for each guest, with what it is at and for how long; it goes away in the end."""

    def __init__(self, console: Console, guests: Sequence[str], stopping: Callable[[], bool]) -> None:
        self._live = Live(
            console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._stopping = stopping
        self._guests = frozenset(guests)
        now = time.monotonic()
        self._rows = {name: Event(now, name, "", "waits for its turn") for name in guests}

    def paint(self, events: list[Event]) -> None:
        for event in events:
            self._rows[event.who] = event
            if event.step == "look":
                self._rows.pop(_HOST, None)
            if event.who in self._guests:  # the rehearsal is over
                self._rows = {who: row for who, row in self._rows.items() if who in self._guests or who == _ROLL}
        now = time.monotonic()
        rows = [(who, event.words, f"{now - event.at:.1f} s") for who, event in self._rows.items()]
        columns = (Column("guest"), Column("what happens now"), Column("for", figures=True))
        asked = [(Cell("stopping", "wait"), Cell("asked to stop; what has begun is finished or undone", "wait"), "")]
        self._live.start()
        self._live.update(table(columns, [*rows, *(asked if self._stopping() else [])]), refresh=True)

    def end(self) -> None:
        self._live.stop()
