"""One guest of an update: who it is, what is noted about it, and the doors that its steps go through.

What is noted is what a later process needs to go on after a crash; it is in the journal before it is acted upon.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from hostagent import boot
from hostagent.clock import GuestAgent, HostClock
from hostagent.components import HostComponent
from hostagent.config import Config
from hostagent.errors import HostagentError, NeedsOperator
from hostagent.facts import QemuTree
from hostagent.hypervisor import Daemon, Libvirt, ProcessId, Qemu
from hostagent.hypervisor.driver_lock import DriverLock
from hostagent.hypervisor.migration_verbs import MigratingHost
from hostagent.plan import ClockPolicy
from hostagent.update.journal import Entry, Journal, Json, Kind
from hostagent.update.pause import Deadline

KILL_SECONDS = 10.0

# Why a guest does not run that its owner has ended, or it itself.
ENDED_FOR_GOOD = frozenset(("shut down", "destroyed"))
ENDED_BY_OTHERS = "it was ended by somebody else meanwhile, and perhaps started anew; left alone"


class Watcher(Protocol):
    """The guard, as the one who works sees it."""

    def ready(self) -> None:
        """Raises Failed unless somebody watches; to be asked before anything is taken away."""
        ...

    def pausing(self, until: float) -> None:
        """A guest stands still until this moment of the monotonic clock at the latest."""
        ...

    def running(self) -> None:
        """The guest runs again."""
        ...

    def hold(self, lock: DriverLock) -> None:
        """Share the driver lock: it stays locked when the one who works dies."""
        ...


class NoWatcher:
    """Nobody watches: recovery itself runs without a guard."""

    def ready(self) -> None: ...
    def pausing(self, until: float) -> None: ...
    def running(self) -> None: ...
    def hold(self, lock: DriverLock) -> None: ...


@dataclass(frozen=True)
class Ports:
    """Every door to the world, passed in."""

    libvirt: Libvirt
    qemu: Qemu
    daemon: Daemon
    lock: DriverLock
    journal: Journal
    clock: HostClock
    config: Config
    watcher: Watcher
    token: Callable[[], str]  # a few characters, new at every call
    components: Mapping[str, HostComponent]  # that are swapped for the whole host at once
    secret: Callable[[], str]  # 128 bits that nobody can guess, in hexadecimal
    answers: Callable[[str, int, float], bool] = boot.answers  # whether a TCP port does, within so many seconds
    hosts: Mapping[str, MigratingHost] = field(default_factory=dict)  # that guests migrate between: peers, "" this one

    def monotonic(self) -> float:
        """Seconds of the monotonic clock."""
        return self.clock.monotonic_ns() / 1e9


@dataclass(frozen=True)
class Pin:
    """A hard link of ours to a RAM file, so that nobody's clean-up can discard the RAM."""

    ram: str
    link: str
    device: int
    inode: int
    size: int


class GuestNotes(Protocol):
    """What every technique notes about a guest."""

    @property
    def old(self) -> ProcessId:
        """The QEMU that ran it as the update began."""
        ...

    @property
    def was_running(self) -> bool:
        """Whether it ran then; its owner may have paused it."""
        ...


N = TypeVar("N", bound=GuestNotes)


@dataclass
class GuestOfUpdate(Generic[N]):
    """The subject of a guest's steps."""

    ports: Ports
    update: str
    uuid: str
    name: str
    tree: QemuTree  # that it is to run on
    budget_seconds: float
    clock: ClockPolicy = field(default=ClockPolicy.STEP, kw_only=True)
    rehearsal: bool = field(default=False, kw_only=True)
    saved: N | None = field(default=None, kw_only=True)
    deadline: Deadline | None = field(default=None, kw_only=True)
    _unwritten: dict[str, object] = field(default_factory=dict, kw_only=True)

    adapter: ClassVar[TypeAdapter]  # type: ignore[type-arg]  # of the notes
    technique: ClassVar[str]

    @property
    def key(self) -> str:
        """The journal's key."""
        return self.uuid

    @property
    def notes(self) -> N:
        """What was noted; there is something once the first step has begun."""
        if self.saved is None:
            wanted = f"notes of its {self.technique}"
            raise NeedsOperator(f"{self.name}: reading the journal", expected=wanted, found="none")
        return self.saved

    def begin_notes(self, notes: N) -> None:
        """Write everything down before anything is touched."""
        body = self.adapter.dump_python(notes, mode="json")
        self.ports.journal.append(self.update, Entry(Kind.NOTED, self.uuid, body=body))
        self.saved = notes

    def note(self, **changes: object) -> None:
        """Write down more, durably, before acting on it."""
        notes = dataclasses.replace(self.notes, **changes)  # type: ignore[type-var]
        everything = self.adapter.dump_python(notes, mode="json")
        body = {name: everything[name] for name in changes}
        self.ports.journal.append(self.update, Entry(Kind.NOTED, self.uuid, body=body))
        self.saved = notes

    @classmethod
    def read_notes(cls, body: Json) -> N | None:
        """The notes folded from the journal; None when nothing was noted yet."""
        if not body:
            return None
        try:
            notes: N = cls.adapter.validate_python(dict(body))
        except ValidationError as error:
            raise NeedsOperator(
                "reading the journal",
                expected=f"the notes of a {cls.technique}",
                found=str(error),
                hint="a hostagent of the version that wrote it",
            ) from error
        return notes

    def measured(self, values: Mapping[str, object]) -> None:
        """Write down what was measured, or have the next figures take it along: it decides nothing."""
        self._unwritten |= values
        with suppress(HostagentError):
            self.ports.journal.append(self.update, Entry(Kind.MEASURED, self.uuid, body=dict(self._unwritten)))
            self._unwritten.clear()

    def agent(self) -> AbstractContextManager[GuestAgent]:
        """The guest's agent, wherever it is."""
        return self.ports.libvirt.agent(self.uuid)

    def is_there(self) -> bool:
        """Whether libvirt has the guest running, or paused; needs its daemon."""
        guest = self.ports.libvirt.guest(self.uuid)
        return guest is not None and guest.state.active

    def old_is_alive(self) -> bool:
        """Whether the QEMU that ran it as the update began exists; one that was killed is seen gone first."""
        qemu, old = self.ports.qemu, self.notes.old
        if qemu.leaving(old):
            qemu.wait_gone(old, KILL_SECONDS)
        return qemu.alive(old)


AnyGuest = GuestOfUpdate[Any]
