"""An update in a process of its own, as the command line runs it, that dies or stops at a row of its journal."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from time import time

import psutil
from pydantic import BaseModel

from hostagent import wiring
from hostagent.config import Config
from hostagent.errors import Failed
from hostagent.hypervisor import Move
from hostagent.hypervisor.libvirt import boot_id
from hostagent.hypervisor.qmp import QmpMonitor
from hostagent.plan import Method, Technique
from hostagent.update import batch
from hostagent.update.journal import Entry, Kind, SqliteJournal
from hostagent.update.swap import GuestSwap
from tests.bench.lab import BUDGET_SECONDS, CONFIG, Lab

GUARD = "hostagent.guard"


class When(StrEnum):
    BEFORE = "before"
    AFTER = "after"


class How(StrEnum):
    KILL = "kill"
    KILL_GUARD_TOO = "kill-guard-too"
    STOP = "stop"
    """Goes on when somebody sends SIGCONT."""
    RAISE = "raise"
    """An error that nobody expected."""
    INTERRUPT = "interrupt"
    """Ctrl-C where nobody handles it."""
    DISK_FULL = "disk-full"
    """The journal cannot be written from here on."""


class End(BaseModel):
    """At which row of the journal the updater ends, and how."""

    step: str
    when: When = When.AFTER
    how: How = How.KILL

    def __str__(self) -> str:
        return f"{self.how} {self.when} {self.step}"


class Order(BaseModel):
    """What to update, and where to end."""

    to: str
    guests: tuple[str, ...] | None = None
    budget_seconds: float = BUDGET_SECONDS
    rehearse: bool = False
    start_seconds: float = 60.0
    ready_seconds: float = 60.0
    technique: Technique = Technique.HANDOVER
    methods: tuple[Method, ...] | None = None
    emulator: str = ""  # a wrapper of the tree's, to be run in its stead
    end: End | None = None
    dies_copying: bool = False  # while RAM is copied
    at_send: int = 0  # a signal for the new QEMU as the state begins to cross


class MortalJournal(SqliteJournal):
    """A journal whose writer ends before or after the row "STEP begun"."""

    def __init__(self, path: Path, end: End) -> None:
        super().__init__(path, boot_id(), time)
        self._end: End | None = end
        self._full = False

    def append(self, update: str, *entries: Entry) -> None:
        end = self._end
        here = end is not None and any(e.kind is Kind.STEP_BEGUN and e.step == end.step for e in entries)
        if end is not None and here:
            self._end = None
            self._full = end.how is How.DISK_FULL
            if end.when is When.BEFORE:
                _meet(end)
        if self._full:
            raise Failed("writing the journal", found="no space left on device")
        super().append(update, *entries)
        if end is not None and here and end.when is When.AFTER:
            _meet(end)


def _meet(end: End) -> None:
    if end.how is How.KILL_GUARD_TOO:
        guards = [child for child in psutil.Process().children() if GUARD in child.cmdline()]
        for guard in guards:
            guard.kill()
        psutil.wait_procs(guards)
    match end.how:
        case How.KILL | How.KILL_GUARD_TOO:
            os.kill(os.getpid(), signal.SIGKILL)
        case How.STOP:
            os.kill(os.getpid(), signal.SIGSTOP)
        case How.RAISE:
            raise RuntimeError("a fault of hostagent itself")
        case How.INTERRUPT:
            raise KeyboardInterrupt


def signal_new_at_send(config: Config, number: int) -> None:
    """The new QEMU is hit when it has been told to receive, and nothing has been sent yet."""
    send = QmpMonitor.send_state

    def hit_and_send(monitor: QmpMonitor, channel: int) -> None:
        update = Lab(config).updates()[-1]
        new = [guest.notes["new"] for guest in update.guests.values() if guest.progress.open[-1] == "switch"]
        os.kill(int(new[0]["pid"]), number)  # type: ignore[index]
        send(monitor, channel)

    QmpMonitor.send_state = hit_and_send  # type: ignore[method-assign]


def die_copying() -> None:
    """At the first look at a copy that is under way."""
    look = batch.look_at_copy

    def look_and_die(swap: GuestSwap) -> Move:
        look(swap)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("it lives")

    batch.look_at_copy = look_and_die  # type: ignore[attr-defined]


def main(words: str) -> None:
    order = Order.model_validate_json(words)
    config = Config.load(CONFIG)
    limits = {"rehearse": order.rehearse, "start_seconds": order.start_seconds}
    daemon = config.libvirt.daemon.model_copy(update={"ready_seconds": order.ready_seconds})
    libvirt = config.libvirt.model_copy(update={"daemon": daemon})
    config = config.model_copy(update={"update": config.update.model_copy(update=limits), "libvirt": libvirt})
    end = order.end
    if end is not None:
        wiring.journal_of = lambda settings: MortalJournal(wiring.journal_path(settings), end)
    if order.at_send:
        signal_new_at_send(config, order.at_send)
    if order.dies_copying:
        die_copying()
    lab = Lab(config)
    to = next(tree for tree in wiring.trees_of(config) if tree.name == order.to)
    if order.emulator:
        to = replace(to, emulator=order.emulator)
    update = lab.update(
        *(to, order.guests),
        budget_seconds=order.budget_seconds,
        technique=order.technique,
        methods=order.methods,
    )
    for guest in update.guests.values():
        print(f"{guest.name}: {guest.outcome} {guest.reason}")
