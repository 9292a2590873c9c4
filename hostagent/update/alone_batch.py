"""Guests by a method that takes each for itself; also what finishes or undoes that after a crash.

They go side by side, and none waits for another. One that fails before its commit is brought back, and the others go
on; from the commit on it goes forward, or waits for a person. libvirt's daemon stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hostagent.errors import Failed, HostagentError
from hostagent.update import clocks
from hostagent.update.guest_alone import Ended, GuestAlone, Tables
from hostagent.update.journal import Outcome
from hostagent.update.member import MemberOf, have_libvirt, says_yes, write_ends
from hostagent.update.saga import Engine, StepFailed, committed
from hostagent.update.side_by_side import side_by_side
from hostagent.update.subject import Ports

_CUT_OFF = Failed("the update", found="it was cut off, and undone by recovery")


@dataclass
class AloneMember(MemberOf[GuestAlone[Any]]):
    """A guest in the batch."""

    tables: Tables[Any] = field(kw_only=True)
    tried_again: bool = False  # it was taken forward once more, as the world had gone on

    @property
    def committed(self) -> bool:
        """Whether there is no way back for it."""
        return committed(self.tables.carry, self.progress)


@dataclass
class AloneBatch:
    """One run over the tables of each."""

    engine: Engine
    ports: Ports
    update: str
    members: Sequence[AloneMember]

    def run(self) -> None:
        """Carry every guest as far as it goes."""
        if not self.ports.daemon.is_up():
            for member in self._active():
                member.end(Outcome.ROLLED_BACK, Failed("updating it", expected="libvirt's daemon", found="it is away"))
        keeping = [member.swap for member in self._active() if member.swap.keeps_memory]
        clocks.measure_before([swap for swap in keeping if not swap.rehearsal])
        self._all(self._carry, self._active())
        self._settle()

    def recover(self) -> None:
        """Finish or undo what a crash left, guests that may not run because of us first."""
        for member in self._active():
            if not member.progress.open:
                member.end(Outcome.ROLLED_BACK, _CUT_OFF)
                member.blame_what_failed_first()
        try:
            if self._active():
                have_libvirt(self.ports, "guests in an update")
        except HostagentError as error:
            for member in self._active():
                member.end(Outcome.NEEDS_OPERATOR, error)
            write_ends(self.engine.journal, self.update, self.members)
            return
        first = sorted(self._active(), key=lambda member: says_yes(member.swap.comes_first), reverse=True)
        self._all(self._recover, first)
        self._settle()

    # -- one guest -------------------------------------------------------------------------------------------

    def _all(self, work: Callable[[AloneMember], None], members: Sequence[AloneMember]) -> None:
        for _ in side_by_side(self.ports, members, work, "alone"):
            pass

    def _active(self) -> list[AloneMember]:
        return [member for member in self.members if member.active]

    def _carry(self, member: AloneMember) -> None:
        """Forward, as far as it goes; one that was ended already is left so."""
        tables = member.tables
        member.swap.cancelled = self.engine.cancelled
        try:
            for table in (tables.prepare, tables.carry, tables.after):
                stoppable = table is tables.prepare
                member.progress = self.engine.forward(table, member.swap, member.progress, stoppable=stoppable)
        except StepFailed as failed:
            member.progress = failed.progress
            self._fell(member, failed.error)

    def _recover(self, member: AloneMember) -> None:
        if member.committed:
            self._carry(member)
        else:
            self._fell(member, _CUT_OFF)

    def _fell(self, member: AloneMember, error: HostagentError) -> None:
        """A guest did not get through: forward, back, or to a person, as the world allows."""
        swap = member.swap
        try:
            have_libvirt(self.ports, "guests in an update")
            if swap.saved is not None:
                swap.settle()
            if member.committed:
                self._end(member, swap.fell_late(error))
            elif (gone := swap.ended_by_others(member.progress.open)) is not None:
                self._end(member, gone)
            elif swap.saved is not None and swap.went_forward():
                self._forward_again(member, error)
            else:
                self._back(member, error)
        except HostagentError as stuck:
            member.end(Outcome.NEEDS_OPERATOR, stuck)

    def _forward_again(self, member: AloneMember, error: HostagentError) -> None:
        """It is where it is to be, whatever failed: that is no reason to bring it back."""
        if member.tried_again:
            member.end(Outcome.NEEDS_OPERATOR, error)
            return
        member.tried_again = True
        self._carry(member)

    def _back(self, member: AloneMember, error: HostagentError) -> None:
        swap = member.swap
        self.engine.back(member.tables.undone, swap, member.progress)
        if (gone := swap.ended_by_others(member.progress.open)) is not None:  # in this very moment
            self._end(member, gone)
            return
        member.end(Outcome.ROLLED_BACK, error)
        member.blame_what_failed_first()
        if swap.undone:
            member.reason = f"{member.reason}; {swap.undone}"

    def _end(self, member: AloneMember, ended: Ended) -> None:
        if ended.outcome is not Outcome.NEEDS_OPERATOR:
            member.swap.let_go()
        member.end(ended.outcome, ended.why)

    def _settle(self) -> None:
        """Every outcome written down."""
        for member in self._active():
            member.end(Outcome.UPDATED)
        updated = [member for member in self.members if member.outcome is Outcome.UPDATED and not member.closed]
        clocks.bring_right([member.swap for member in updated if not member.swap.rehearsal])
        write_ends(self.engine.journal, self.update, self.members)
