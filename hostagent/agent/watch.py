"""Watches the guests: what libvirt tells of them, and what looks at the host show. Says each in a line of the log."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hostagent.agent.changes import Seen, changes, left_standing, seen_on
from hostagent.agent.log import Level, Log
from hostagent.errors import HostagentError
from hostagent.facts import Host
from hostagent.hypervisor.events import Event, GuestEvent, LineEvent, touches_held
from hostagent.observed import Observed
from hostagent.update.held import entry

SETTLE_SECONDS = 1.0  # after an event: several come together
REST = 5  # times as long as a look takes there is none after it, whatever is told: guests may come and go all the time
BUSY_SECONDS = 300.0  # a look waits for who changes the host, but no longer: a roll may last for days

Look = Callable[[], tuple[Host, Observed]]
"""Takes a while, and raises what libvirt answers with when it does not."""


@dataclass
class Watch:
    """What is known of the host now. Lives in the service's loop; times are monotonic, seconds."""

    log: Log
    held: Path  # where libvirt's hook is told of guests that are held
    update_of: Callable[[str], str]  # the open update that a guest is in, by its uuid
    look_seconds: float
    is_up: bool | None = None  # whether libvirt answers; None: it was not heard of yet
    observed: Observed | None = None
    _guests: dict[str, Seen] | None = None
    _told: set[str] = field(default_factory=set)  # guests of which libvirt has told since the last look
    _standing: frozenset[str] = frozenset()  # guests that were said to be left standing
    _wanted: float | None = None  # when the next look is wanted before its time
    _began: float | None = None  # when the last one began, or the service
    _looked: float | None = None  # when the last one ended
    _took: float = 0.0
    _fault: str = ""

    def heard(self, event: Event, now: float) -> None:
        """libvirt has told something."""
        if isinstance(event, LineEvent):
            self._line(event)
            if event.up:
                self._want(now)
            return
        self._want(now)
        self._told.add(event.uuid)
        self._guest(event)

    def due(self, now: float, *, at_work: bool) -> bool:
        """Whether to look at the host now; who is at work on it is not disturbed, for a while."""
        if self._began is None:
            self._began = now
        if at_work:
            return now >= (self._looked or self._began) + max(self.look_seconds, BUSY_SECONDS)
        if self._looked is None:
            return True
        regularly = self._looked + self.look_seconds
        return now >= min(regularly, max(self._wanted or regularly, self._looked + REST * self._took))

    def begins(self, now: float) -> None:
        """A look begins: what is told from here on is not in it."""
        self._wanted, self._began = None, now
        self._told.clear()

    def looked(self, host: Host, observed: Observed, now: float, *, at_work: bool) -> None:
        """A look has ended."""
        self._ends(now)
        self._fault, self.observed = "", observed
        seen = dict(seen_on(host))
        own = host.system_qemu
        installed = (own.package or str(own.version)) if own is not None else ""
        for change in changes(self._guests, seen, told=self._told, installed=installed):
            self.log.tell(change.event, change.guest, "", change.level, change.more)
        self._guests = seen
        left = frozenset() if at_work else frozenset(left_standing(seen, [u for u in seen if self.update_of(u)]))
        for uuid in sorted(left - self._standing):
            self.log("guest left paused", guest=seen[uuid].name, update=self.update_of(uuid), level=Level.ERROR)
        self._standing = left

    def failed(self, error: str, now: float) -> None:
        """A look has failed; said once for each reason."""
        self._ends(now)
        if error != self._fault and self.is_up is not False:  # that libvirt is away was said
            self.log("look failed", level=Level.WARNING, error=error)
        self._fault = error

    def _ends(self, now: float) -> None:
        self._took = now - (now if self._began is None else self._began)
        self._looked = now

    def _want(self, now: float) -> None:
        if self._wanted is None:
            self._wanted = now + SETTLE_SECONDS

    def _line(self, event: LineEvent) -> None:
        if event.up is self.is_up:
            return
        self.is_up = event.up
        if event.up:
            self.log("libvirt answers")
        else:
            self.log("libvirt is away", level=Level.WARNING, why=event.why)

    def _guest(self, event: GuestEvent) -> None:
        update = self.update_of(event.uuid)
        if self._is_held(event.name) and touches_held(event.what):
            self.log("held guest touched", guest=event.name, update=update, level=Level.WARNING, what=event.what)
        else:
            self.log("guest event", guest=event.name, update=update, what=event.what)

    def _is_held(self, name: str) -> bool:
        with contextlib.suppress(HostagentError, OSError, ValueError):
            return entry(name, self.held).exists()
        return False
