"""One guest that migrates to a peer while it runs, and perhaps comes back.

Where it is, is asked of both hosts. It is defined only where it is: libvirt takes its definition along, and only when
it has arrived. So of the host that it leaves: one that has it running or paused has it still, one that does not know it
any more has let it go, and one that knows it shut off saw it end.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import TypeAdapter

from hostagent.clock import GuestAgent
from hostagent.errors import Failed, HostagentError, NeedsOperator, OutcomeUnknown
from hostagent.facts import GuestState
from hostagent.hypervisor import ProcessId
from hostagent.hypervisor.migration_verbs import MigratingHost, There
from hostagent.hypervisor.peers import HOME
from hostagent.peer_settings import PeerSettings
from hostagent.update.copied_disks import CopiedDisk, LeftFile, remove_made
from hostagent.update.guest_alone import Ended, GuestAlone
from hostagent.update.journal import Outcome
from hostagent.update.subject import ENDED_BY_OTHERS, ENDED_FOR_GOOD

LEFT = "migrated"  # why it does not run where libvirt could not forget it


class Stand(StrEnum):
    """How far a guest is between two hosts."""

    NOT_LEFT = "where it was"
    UNDER_WAY = "on its way"
    ARRIVED = "arrived, standing still"
    GOES_ON = "arrived, and it goes on"
    ENDED = "ended where it was"
    NOWHERE = "on neither host"


@dataclass(frozen=True)
class MigrationNotes:
    """What is known about a guest's migration."""

    old: ProcessId
    peer: str
    emulator: str  # that its next boot here gets
    peer_emulator: str
    peer_qemu: str  # its version
    autostart: bool
    trusts_storage: bool
    comes_back: bool
    memory: int  # bytes
    pauses: tuple[float, ...] = ()  # as they were measured, seconds
    was_running: bool = True  # one that its owner has paused does not migrate
    copies: tuple[CopiedDisk, ...] = ()  # disks that are copied
    made: tuple[str, ...] = ()  # of these the images on the peer that are there by us
    left: tuple[LeftFile, ...] = ()  # the files here as it has left them
    overwriting: bool = False  # these are being written over as it comes back
    undone: str = ""  # what its owner has to know of how it was brought back


@dataclass(frozen=True)
class Leg:
    """From one host to another."""

    source: str
    target: str


@dataclass
class GuestMigration(GuestAlone[MigrationNotes]):
    """The subject of a migration's steps."""

    adapter = TypeAdapter(MigrationNotes)
    technique = "live migration"

    peer: str = field(kw_only=True)
    comes_back: bool = field(kw_only=True)
    looked: set[str] = field(default_factory=set, kw_only=True)  # hosts on which it was looked at, by this process
    running_seen: float | None = field(default=None, kw_only=True)  # where it was; seconds of the monotonic clock
    silent: set[str] = field(default_factory=set, kw_only=True)  # hosts that were waited for in vain
    stale: bool = field(default=False, kw_only=True)  # what arrived on the peer is past
    copies_storage: bool = field(default=False, kw_only=True)
    unused: bool = field(default=False, kw_only=True)  # it ended before any copy of its disks was needed
    cleared: bool = field(default=False, kw_only=True)  # the copies on the peer are removed, by this process

    @property
    def leaves_for_good(self) -> bool:
        return not self.comes_back

    @property
    def going(self) -> Leg:
        return Leg(HOME, self.peer)

    @property
    def returning(self) -> Leg:
        return Leg(self.peer, HOME)

    def host(self, name: str) -> MigratingHost:
        """One of the two; raises NeedsOperator when the settings do not know it any more."""
        found = self.ports.hosts.get(name)
        if found is None:
            raise NeedsOperator(
                f"{self.name}: reaching {name or 'this host'}",
                expected=f"a [[peer]] {name} in the settings",
                found="none",
                hint="put it back, then: hostagent recover",
            )
        return found

    @property
    def settings(self) -> PeerSettings:
        """The peer's; raises NeedsOperator as `host` does."""
        self.host(self.peer)
        return next(one for one in self.ports.config.peer if one.name == self.peer)

    def called(self, name: str) -> str:
        """A host, as people call it."""
        return name or "this host"

    def there(self, name: str) -> There | None:
        """What a host says of it; one that does not answer at once is given a while, but only once."""
        host = self.host(name)
        try:
            return host.there(self.uuid)
        except HostagentError:
            if name in self.silent or not host.usable(self.ports.config.migrate.end_seconds):
                self.silent.add(name)
                raise
            return host.there(self.uuid)

    def stand(self, leg: Leg) -> Stand:
        """How far it is; raises NeedsOperator when that cannot be told, as one of the hosts does not answer."""
        try:
            here = self.there(leg.source)
            if here is not None and here.state.active:
                return Stand.UNDER_WAY if here.job else Stand.NOT_LEFT
            if here is not None and here.reason != LEFT:
                return Stand.ENDED
            there = self.there(leg.target)
        except NeedsOperator:
            raise
        except HostagentError as error:
            raise self.out_of_sight(error) from error
        if there is None or not there.state.active:
            return Stand.NOWHERE
        if there.comes_in:
            return Stand.UNDER_WAY
        return Stand.ARRIVED if there.has_arrived else Stand.GOES_ON

    def out_of_sight(self, error: HostagentError) -> NeedsOperator:
        """One of the two does not answer, so that nobody knows where it runs."""
        uri = shlex.quote(self.settings.uri)
        return NeedsOperator(
            f"{self.name}: looking for it on {self.peer} and on this host",
            expected="both to answer",
            found=str(error),
            hint=f"virsh -c {uri} domstate --reason {self.uuid}; once {self.peer} answers: hostagent recover",
        )

    # -- what the batch asks ---------------------------------------------------------------------------------------

    def agent(self) -> AbstractContextManager[GuestAgent]:
        """By the libvirt of the host that it is on."""
        here = self.there(HOME)
        return self.host(HOME if here is not None and here.state.active else self.peer).agent(self.uuid)

    def settle(self) -> None:
        with suppress(HostagentError):
            self.break_off(HOME)

    def break_off(self, name: str) -> None:
        """Have what goes on with it on that host end; Failed when it does not."""
        host, seconds = self.host(name), self.ports.config.migrate.end_seconds
        try:
            host.abort_job(self.uuid, seconds)
        except (Failed, OutcomeUnknown):
            if self.saved is None or not self.notes.copies:
                raise
            host.cut_copies(self.uuid)
            host.abort_job(self.uuid, seconds)

    def ended_by_others(self, opened: Sequence[str]) -> Ended | None:
        if "migrate" not in opened:
            here = self.there(HOME)
            self.unused = here is None or not here.state.active
            return Ended(Outcome.GONE, ENDED_BY_OTHERS) if self.unused else None
        match self.stand(self.going):
            case Stand.NOT_LEFT if not self.old_is_alive():
                self.stale = True
                return Ended(Outcome.LOST, "its QEMU ended as it migrated, and it was started anew here")
            case Stand.ENDED:
                return self._ended_here()
            case Stand.NOWHERE:
                return Ended(Outcome.LOST, f"neither this host nor {self.peer} has it any more")
        return None

    def _ended_here(self) -> Ended:
        """What has arrived on the peer is past if the guest went on here before it ended, as libvirt lets it."""
        here, there = self.there(HOME), self.there(self.peer)
        by_owner = here is not None and here.reason in ENDED_FOR_GOOD
        if there is not None and there.state.active and not there.comes_in and not there.has_arrived:
            return Ended(Outcome.GONE, _CHOSEN.format(self.peer, self.uuid))
        if there is None or there.comes_in or by_owner:
            self.stale = True
            lost = Ended(Outcome.LOST, f"its QEMU ended here as it migrated; virsh start {self.uuid}")
            return Ended(Outcome.GONE, ENDED_BY_OTHERS) if by_owner else lost
        on_peer = f"virsh -c {shlex.quote(self.settings.uri)}"
        return Ended(
            Outcome.NEEDS_OPERATOR,
            NeedsOperator(
                f"{self.name}: finding out whether it went on here before its QEMU ended",
                expected="it to run here, or to have left",
                found=f"that it ended here, and all of it stands still on {self.peer}",
                hint=f"only if it did not go on here: virsh undefine {self.uuid}; {on_peer} resume {self.uuid}; "
                f"else {on_peer} destroy {self.uuid}; virsh start {self.uuid}; then: hostagent recover",
            ),
        )

    def went_forward(self) -> bool:
        """It has left this host, so that it can only go on where it is."""
        return self.stand(self.going) in (Stand.ARRIVED, Stand.GOES_ON)

    def fell_late(self, error: HostagentError) -> Ended:
        """It has left: what failed since keeps it from coming back, or from going on."""
        here = self.there(HOME)
        if here is not None and here.state is GuestState.RUNNING:
            return self._runs_here(error)
        try:
            there = self.there(self.peer)
        except HostagentError as silent:
            return Ended(Outcome.NEEDS_OPERATOR, self._silent_peer(here, silent))
        if there is not None and there.state.active and not there.has_arrived:
            self.clear_return()
            if there.comes_in:  # it was on its way back, and libvirt left it standing there
                self.host(self.peer).resume(self.uuid)
            self.tell_where(self.peer)
            with suppress(HostagentError):
                self.host(self.peer).put_autostart(self.uuid, on=self.notes.autostart)
            return Ended(Outcome.UPDATED, f"it runs on {self.peer}, and stays there: {error}")
        stands = next((name for name, one in ((self.peer, there), (HOME, here)) if one and one.state.active), None)
        if stands is not None:
            return Ended(Outcome.NEEDS_OPERATOR, self._stands_still(stands, error))
        if any(one is not None and one.reason in ENDED_FOR_GOOD for one in (here, there)):
            return Ended(Outcome.GONE, "updated, and ended since by its owner, or by itself")
        if self.notes.copies:
            self.tell_left_disks(HOME if there is not None else self.peer, [disk.path for disk in self.notes.copies])
        ended = f"its QEMU ended after it had left this host ({error})"
        return Ended(Outcome.LOST, f"{ended}{self._defined(here, there)}")

    def _defined(self, here: There | None, there: There | None) -> str:
        """Where it can be started, for it went with its definition."""
        if there is not None:
            return f"; it is defined on {self.peer}: virsh -c {shlex.quote(self.settings.uri)} start {self.uuid}"
        return f"; it is defined here: virsh start {self.uuid}" if here is not None else ""

    def _runs_here(self, error: HostagentError) -> Ended:
        """A peer that does not answer has let it go before it went on here."""
        there = None
        with suppress(HostagentError):
            there = self.there(self.peer)
        if there is not None and there.state.active:
            return Ended(Outcome.NEEDS_OPERATOR, self._on_both(error))
        self.tell_where(HOME)
        return Ended(Outcome.UPDATED, f"it has come back, but: {error}")

    def _on_both(self, error: HostagentError) -> NeedsOperator:
        on_peer = f"virsh -c {shlex.quote(self.settings.uri)}"
        return NeedsOperator(
            f"{self.name}: having it on one host alone",
            expected=f"it here, or on {self.peer}",
            found=f"it on both, as somebody had it go on or started it ({error})",
            hint=f"end the one whose writes are not to be kept: virsh destroy {self.uuid}, or {on_peer} destroy "
            f"{self.uuid}; then: hostagent recover",
        )

    def tell_where(self, name: str) -> None:
        """For the report."""
        self.measured({"runs_on": name, "qemu_after": self.notes.peer_qemu if name else str(self.tree.version)})
        if self.notes.copies:
            self.tell_left_disks(HOME if name else self.peer, [disk.path for disk in self.notes.copies])

    def tell_left_disks(self, name: str, paths: Sequence[str]) -> None:
        """For the report: files of its disks that are past, and the host that they are on."""
        self.measured({"left_disks": list(paths), "left_disks_on": name})

    def tell_copies(self) -> None:
        """For the report: what had been written here may not have been flushed, so that the copies are left."""
        if self.saved is not None and self.notes.made:
            self.tell_left_disks(self.peer, self.notes.made)

    def say_undone(self, words: str) -> None:
        """One thing more that its owner has to know of how it was brought back."""
        said = self.told_of_undoing()
        if words not in said:
            self.undone = f"{said}; {words}" if said else words
            self.note_if_possible(undone=self.undone)

    def told_of_undoing(self) -> str:
        return self.undone or (self.saved.undone if self.saved is not None else "")

    def remove_copies(self) -> None:
        """The images on the peer that are there by us; Failed when the guest is there."""
        if self.saved is not None:
            remove_made(self.host(self.peer), self.uuid, self.notes.made)

    def clear_return(self) -> None:
        """What had begun to come back goes, once the guest is known to be on the peer."""
        self.break_off(self.peer)
        if self.stand(self.returning) is Stand.NOT_LEFT:
            self.host(HOME).remove(self.uuid)

    def _silent_peer(self, here: There | None, error: HostagentError) -> NeedsOperator:
        uri = shlex.quote(self.settings.uri)
        hint = f"once {self.peer} answers: hostagent recover"
        if here is not None and here.has_arrived:
            hint += f"; if it is known to be off, the guest is whole here: virsh resume {self.uuid}"
        return NeedsOperator(
            f"{self.name}: looking for it on {self.peer}, where it went",
            expected="it to answer",
            found=str(error),
            hint=f"virsh -c {uri} domstate --reason {self.uuid}; {hint}",
        )

    def _stands_still(self, name: str, error: HostagentError) -> NeedsOperator:
        connect = f"-c {shlex.quote(self.settings.uri)} " if name else ""
        return NeedsOperator(
            f"{self.name}: having it go on, on {self.called(name)}",
            expected="it to run",
            found=str(error),
            hint=f"virsh {connect}resume {self.uuid}; hostagent recover",
        )

    def comes_first(self) -> bool:
        return self.saved is not None and self.stand(self.going) is Stand.ARRIVED

    def let_go(self) -> None:
        """Of a guest that ended here as it migrated: what arrived on the peer must never go on."""
        if not self.stale and not self.unused:
            return
        try:
            if self.stale:
                self.host(self.peer).remove(self.uuid)
            self.remove_copies()
        except HostagentError as error:
            hint = f"virsh -c {shlex.quote(self.settings.uri)} destroy {self.uuid}; hostagent recover"
            raise Failed(f"{self.name}: ending what is left on {self.peer}", found=str(error), hint=hint) from error


_CHOSEN = (
    "it ended here, and somebody has it go on on {}; left alone. It must not be started here as well: virsh undefine {}"
)
