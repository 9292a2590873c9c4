"""Guests by a method that takes each for itself; also what finishes or undoes that after a crash.

They go side by side, and none waits for another. One that fails before its commit is brought back, and the others go
on; from the commit on it goes forward, or waits for a person. libvirt's daemon stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hostagent.errors import Failed, HostagentError, NeedsOperator
from hostagent.update import clocks
from hostagent.update.guest_alone import Ended, GuestAlone, Tables
from hostagent.update.journal import Entry, Kind, Outcome, progressed
from hostagent.update.member import CUT_OFF, MemberOf, have_libvirt, says_yes, write_ends
from hostagent.update.saga import Engine, Step, StepFailed, committed
from hostagent.update.side_by_side import side_by_side
from hostagent.update.subject import Ports
from hostagent.update.watched_together import WatchedTogether

_NOT_HERE = (Outcome.GONE, Outcome.UPDATED)  # one that was updated before the swap stays on another host


@dataclass
class AloneMember(MemberOf[GuestAlone[Any]]):
    """A guest in the batch."""

    tables: Tables[Any] = field(kw_only=True)
    tried_again: bool = False  # it was taken forward once more, as the world had gone on

    @property
    def committed(self) -> bool:
        """Whether there is no way back for it."""
        return committed(self.tables.carry, self.progress)

    @property
    def has_left(self) -> bool:
        """Whether nothing of it runs on this host."""
        return self.active and self.tables.left_by in self.progress.done


@dataclass
class AloneBatch:
    """One run over the tables of each."""

    engine: Engine
    ports: Ports
    update: str
    members: Sequence[AloneMember]

    def __post_init__(self) -> None:
        together = WatchedTogether(self.ports.watcher)
        for member in self.members:
            member.swap.ports = replace(member.swap.ports, watcher=together.one())

    def run(self) -> None:
        """Carry every guest as far as it goes."""
        self._get_ready()
        self._all(self._carry, self._active())
        self._settle()

    def _get_ready(self) -> None:
        if not self.ports.daemon.is_up():
            for member in self._active():
                member.end(Outcome.ROLLED_BACK, Failed("updating it", expected="libvirt's daemon", found="it is away"))
        keeping = [member.swap for member in self._active() if member.swap.keeps_memory]
        clocks.measure_before([swap for swap in keeping if not swap.rehearsal])

    # -- out of the way of a swap for the whole host -----------------------------------------------------------

    def leave(self) -> HostagentError | None:
        """Carry every guest until nothing of it runs on this host; why that is not so, if it is not.

        Those that migrate go first, one by one: their pauses are short, and of one availability set they may not be
        disturbed together. Those that are shut down go side by side.
        """
        self._get_ready()
        for member in self._active():
            if member.swap.keeps_memory and self._may_go_on():
                self._leave(member)
        if self._may_go_on():
            self._all(self._leave, [member for member in self._active() if not member.swap.keeps_memory])
        stays = [member for member in self.members if not member.has_left and member.outcome not in _NOT_HERE]
        if not stays:
            return None
        failed = next((member for member in stays if not member.active), stays[0])
        return Failed(f"{failed.swap.name}: having it leave", found=failed.reason or "that it is still there")

    def come_back(self) -> None:
        """Carry every guest on to where it is to be: the shut down ones first, for they are away for longest."""
        down = [member for member in self._active() if not member.swap.keeps_memory]
        self._all(self._carry, down)
        for member in self._active():
            if member not in down:
                self._carry(member)
        self._settle()

    def turn_back(self, error: HostagentError) -> None:
        """Nothing was swapped: all of them are brought back, the shut down ones first."""
        for member in sorted(self._active(), key=lambda member: member.swap.keeps_memory):
            if member.committed:
                self._carry(member)
            else:
                self._fell(member, error)
        self._settle(error)

    def stay_away(self, stuck: HostagentError) -> None:
        """What was to be swapped is neither swapped nor as before, and cannot be while guests run."""
        for member in self._active():
            if not member.has_left:
                self._fell(member, stuck)
                continue
            waits = NeedsOperator(
                f"{member.swap.name}: bringing it back",
                expected="the host to be as it was before, or swapped",
                found=str(stuck),
                hint="see to that; then: hostagent recover",
            )
            member.end(Outcome.NEEDS_OPERATOR, waits)
        self._settle()

    def _leave(self, member: AloneMember) -> None:
        self._advance(member, member.tables.leave)

    def _may_go_on(self) -> bool:
        return all(member.active or member.outcome in _NOT_HERE for member in self.members)

    # -- after a crash -----------------------------------------------------------------------------------------

    def recover(self, *, swapped: bool = False, undone: HostagentError | None = None) -> None:
        """Finish or undo what a crash left, guests that may not run because of us first.

        swapped: what they had left for is swapped, so that those that have left go on. undone: why it is not.
        """
        for member in self._active():
            if not member.progress.open:
                self._rolled_back(member, CUT_OFF)
        try:
            if self._active():
                have_libvirt(self.ports, "guests in an update")
        except HostagentError as error:
            for member in self._active():
                member.end(Outcome.NEEDS_OPERATOR, error)
            write_ends(self.engine.journal, self.update, self.members)
            return
        first = sorted(self._active(), key=lambda member: says_yes(member.swap.comes_first), reverse=True)
        forward = [member for member in first if member.committed or (swapped and member.has_left)]
        self._all(self._carry, forward)
        self._all(self._undo, [member for member in first if member not in forward])
        self._settle(undone)

    # -- one guest -------------------------------------------------------------------------------------------

    def _all(self, work: Callable[[AloneMember], None], members: Sequence[AloneMember]) -> None:
        for _ in side_by_side(self.ports, members, work, "alone"):
            pass

    def _active(self) -> list[AloneMember]:
        return [member for member in self.members if member.active]

    def _carry(self, member: AloneMember) -> None:
        """Forward, as far as it goes; one that was ended already is left so."""
        tables = member.tables
        self._advance(member, (*tables.prepare, *tables.carry, *tables.after))

    def _advance(self, member: AloneMember, steps: Sequence[Step[Any]]) -> None:
        """A cancelled update stops where the guest runs as before."""
        member.swap.cancelled = self.engine.cancelled
        member.swap.tell = lambda doing: self.engine.tell(member.swap.key, member.swap.technique, doing)
        prepare = member.tables.prepare
        rest = [step for step in steps if step not in prepare]
        try:
            member.progress = self.engine.forward(prepare, member.swap, member.progress, stoppable=True)
            member.progress = self.engine.forward(rest, member.swap, member.progress)
        except StepFailed as failed:
            member.progress = failed.progress
            self._fell(member, failed.error)

    def _undo(self, member: AloneMember) -> None:
        self._fell(member, CUT_OFF)

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
            member.end(Outcome.NEEDS_OPERATOR, _for_a_person(stuck))
        if not member.active:
            member.swap.ports.watcher.running()  # nobody works at it any more, and the updater goes on

    def _forward_again(self, member: AloneMember, error: HostagentError) -> None:
        """It is where it is to be, whatever failed: that is no reason to bring it back."""
        if member.tried_again:
            member.end(Outcome.NEEDS_OPERATOR, error)
            return
        member.tried_again = True
        # There is no way back, so that its commit decides nothing: it goes on even where that cannot be written down.
        commit = next(step.name for step in member.tables.carry if step.commits)
        member.progress = progressed(member.progress, Entry(Kind.STEP_BEGUN, member.swap.key, commit))
        self._carry(member)

    def _back(self, member: AloneMember, error: HostagentError) -> None:
        swap = member.swap
        self.engine.back(member.tables.undone, swap, member.progress)
        if (gone := swap.ended_by_others(member.progress.open)) is not None:  # in this very moment
            self._end(member, gone)
            return
        self._rolled_back(member, error)

    @staticmethod
    def _rolled_back(member: AloneMember, error: HostagentError) -> None:
        member.end(Outcome.ROLLED_BACK, error)
        member.blame_what_failed_first()
        if said := member.swap.told_of_undoing():
            member.reason = f"{member.reason}; {said}"

    def _end(self, member: AloneMember, ended: Ended) -> None:
        if ended.outcome is not Outcome.NEEDS_OPERATOR:
            member.swap.let_go()
        member.end(ended.outcome, ended.why)

    def _settle(self, undone: HostagentError | None = None) -> None:
        """Every outcome written down; undone: why that is as before for which they had left."""
        for member in self._active():
            member.end(Outcome.UPDATED)
        updated = [member for member in self.members if member.outcome is Outcome.UPDATED and not member.closed]
        clocks.bring_right([member.swap for member in updated if not member.swap.rehearsal])
        for member in updated:
            if undone is not None and not member.reason and not member.swap.leaves_for_good:
                member.end(Outcome.ROLLED_BACK, undone)
        write_ends(self.engine.journal, self.update, self.members)


def _for_a_person(stuck: HostagentError) -> HostagentError:
    """With what to do next, whatever it was."""
    if isinstance(stuck, NeedsOperator) or "hostagent recover" in (stuck.hint or ""):
        return stuck
    hint = f"{stuck.hint}; then: hostagent recover" if stuck.hint else "hostagent recover"
    return NeedsOperator(stuck.doing, expected=stuck.expected, found=stuck.found, hint=hint)
