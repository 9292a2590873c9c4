"""Guests that are held; also what finishes or undoes that after a crash. libvirt's daemon stays.

One guest after the other, each for as long as it takes; or all together, while something is swapped for which no guest
may run. A guest that is held alone and fails is brought back on what it ran on, and the others go on. Held together all
go forward, or all go back: what was swapped is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from hostagent.errors import Failed, HostagentError, NeedsOperator
from hostagent.update import clocks
from hostagent.update.guest_hold import GuestHold
from hostagent.update.hold import AFTER, HOLD, HOLD_STEPS, PREPARE, RESTORE, RESUME
from hostagent.update.holding import is_told, told_of, unprepare
from hostagent.update.host_hold import HostHold
from hostagent.update.journal import Entry, Kind, Outcome, Progress, progressed
from hostagent.update.member import CUT_OFF, MemberOf, have_libvirt, says_yes, write_ends
from hostagent.update.restoring import go_on, is_resumed, note_pause
from hostagent.update.saga import Engine, Step, StepFailed, committed
from hostagent.update.saved_images import has_state
from hostagent.update.side_by_side import side_by_side
from hostagent.update.subject import ENDED_BY_OTHERS, ENDED_FOR_GOOD


@dataclass
class HeldMember(MemberOf[GuestHold]):
    """A guest in the batch."""

    @property
    def committed(self) -> bool:
        """Whether there is no way back for it."""
        return committed(RESUME, self.progress)


@dataclass
class HoldBatch:
    """One run over the stages of the hold."""

    engine: Engine
    host: HostHold
    members: Sequence[HeldMember]
    host_progress: Progress = field(default_factory=Progress)
    failure: HostagentError | None = None  # why nothing was swapped for the host
    recovers: bool = False  # others may have acted while nobody was at work

    @property
    def swapped(self) -> bool:
        """Whether everything of the host that was to be swapped is."""
        return all(step.name in self.host_progress.done for step in self.host.steps)

    def give_up(self, error: HostagentError) -> None:
        """Nothing is begun."""
        self.failure = error
        for member in self._active():
            member.end(Outcome.ROLLED_BACK, error)
        self._settle()

    # -- the ordinary way ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Hold the guests, and have them back."""
        if not self.host.ports.daemon.is_up():
            for member in self._active():
                member.end(Outcome.ROLLED_BACK, Failed("holding it", expected="libvirt's daemon", found="it is away"))
        clocks.measure_before([member.swap for member in self._active() if not member.swap.rehearsal])
        if self.host.components:
            self._together()
        else:
            self._one_by_one()
        self._settle()

    def _one_by_one(self) -> None:
        """Each is back before the next one stands still."""
        for member in self._active():
            try:
                for table in (PREPARE, HOLD, RESTORE, RESUME, AFTER):
                    self._advance(member, table)
            except StepFailed as failed:
                self._fell(member, failed.error)

    @property
    def host_is_open(self) -> bool:
        """Whether something of the host was begun to be swapped, and is neither swapped nor as before."""
        return any(step not in self.host_progress.done for step in self.host_progress.open)

    def _together(self) -> None:
        """One barrier: all are saved, the swap, all are restored; only then does the first one go on."""
        failed = self._all(PREPARE) or self._all(HOLD) or self._swap() or self._all(RESTORE) or self._all_intended()
        if failed is not None and not self._went_forward():
            self._all_back(failed)
        else:
            self._all_on()

    def _went_forward(self) -> bool:
        """Whether somebody had a guest go on with what was swapped: that stays then."""
        return self._is_swapped() and any(_goes_forward(member) for member in self._active())

    def _all(self, table: Sequence[Step[GuestHold]]) -> HostagentError | None:
        """Each of them; whoever was ended by somebody else meanwhile is no reason to go back."""
        for member, failed in self._side_by_side(lambda member: self._try(member, table)):
            if failed is not None and not self._left(member, failed):
                return failed
        return None

    def _side_by_side(
        self, work: Callable[[HeldMember], HostagentError | None]
    ) -> Iterator[tuple[HeldMember, HostagentError | None]]:
        """Each, and what it failed by. Many at once: guests that run take the processor from those that are held."""
        yield from side_by_side(self.host.ports, self._active(), work, "hold", a_core=8)

    def _left(self, member: HeldMember, error: HostagentError) -> bool:
        """Whether it is gone; then it is let go of."""
        try:
            self._have_libvirt()
            gone = self._ended_by_others(member)
            if gone is not None:
                self._let_go(member, gone, error)
        except HostagentError:
            return False
        return gone is not None

    def _all_intended(self) -> HostagentError | None:
        """One commit in the journal for all of them: from there on what was swapped stays."""
        intents = [Entry(Kind.STEP_BEGUN, member.swap.uuid, RESUME[0].name) for member in self._active()]
        try:
            self.engine.journal.append(self.host.update, *intents)
        except HostagentError as error:
            return error
        for member, intent in zip(self._active(), intents, strict=True):
            member.progress = progressed(member.progress, intent)
        return None

    def _swap(self) -> HostagentError | None:
        try:
            self.host_progress = self.engine.forward(self.host.steps, self.host, self.host_progress)
        except StepFailed as failed:
            self.host_progress = failed.progress
            return failed.error
        return None

    def _all_on(self) -> None:
        """What was swapped stays: a guest that does not get through waits for a person."""
        for _ in self._side_by_side(self._go_on):
            pass
        failures = self._failures(self._on)
        if failures and not self.host.ports.daemon.is_up():
            with suppress(HostagentError):  # whoever fails again says why
                self._have_libvirt()
            failures = self._failures(self._on)
        for member, failed in failures:
            self._fell_late(member, failed)
        if self.members:
            self.host.ports.watcher.running()

    def _failures(self, work: Callable[[HeldMember], HostagentError | None]) -> list[tuple[HeldMember, HostagentError]]:
        return [(member, failed) for member, failed in self._side_by_side(work) if failed is not None]

    def _go_on(self, member: HeldMember) -> HostagentError | None:
        """Before anything more is written down; what keeps it from that, its step will say.

        One that went on before, in this process or an earlier one, may be paused by its owner since.
        """
        if member.committed and RESUME[0].name not in member.progress.done:
            with suppress(HostagentError, OSError):
                if not is_resumed(member.swap):
                    go_on(member.swap)
        return None

    def _on(self, member: HeldMember) -> HostagentError | None:
        note_pause(member.swap)  # of one that went on already its step has nothing to do
        return self._try(member, RESUME if member.committed else (*RESTORE, *RESUME))

    def _all_back(self, why: HostagentError) -> None:
        """First nothing of them runs, then what was swapped is as before, then they come back."""
        self.failure = why
        guests = self._active()
        try:
            if guests:
                self._have_libvirt()
            for member in guests:
                self.engine.back(RESTORE, member.swap, member.progress)
            self.engine.back(self.host.steps, self.host, self.host_progress)
        except HostagentError as stuck:
            self.failure = stuck
            for member in guests:
                member.end(Outcome.NEEDS_OPERATOR, stuck)
            return
        for member in guests:
            self._fell(member, why)
        if guests:
            self.host.ports.watcher.running()

    # -- after a crash ---------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Finish or undo what a crash left, guests that stand still first."""
        self.recovers = True
        for member in self._active():
            if not member.progress.open:
                member.end(Outcome.ROLLED_BACK, CUT_OFF)
        if not self._active() and not self.host_is_open:
            if self.host_progress.begun and not self.host_progress.open:
                self.failure = CUT_OFF  # everything was undone
            self._settle()
            return
        try:
            if self._active():
                self._have_libvirt()
        except HostagentError as error:
            self.failure = error
            for member in self._active():
                member.end(Outcome.NEEDS_OPERATOR, error)
            write_ends(self.engine.journal, self.host.update, self.members)
            return
        if self.host.components:
            self._recover_together()
        else:
            for member in sorted(self._active(), key=lambda member: "pause" in member.progress.open, reverse=True):
                self._recover_alone(member)
        for member in self.members:
            member.blame_what_failed_first()
        self._settle()

    def _recover_alone(self, member: HeldMember) -> None:
        if not _goes_forward(member):
            self._fell(member, CUT_OFF)
        elif (failed := self._try(member, RESUME)) is not None:
            self._fell_late(member, failed)

    def _recover_together(self) -> None:
        """Forward once the first one was told to go on, or went on: then what was swapped is there for good."""
        committed = any(member.committed or member.outcome is Outcome.UPDATED for member in self.members)
        if committed or self._went_forward():
            self._leave_out()
            self._all_on()
        elif self._is_for_good():
            self._leave_out()
            self._all(RESTORE)
            self._all_on()
        else:
            self._all_back(CUT_OFF)

    def _leave_out(self) -> None:
        """Who ended while nobody was at work is not restored from what was saved before: it may have gone on."""
        for member in self._active():
            try:
                if not member.committed and (gone := self._ended_by_others(member)) is not None:
                    self._let_go(member, gone, CUT_OFF)
            except HostagentError as stuck:
                member.end(Outcome.NEEDS_OPERATOR, stuck)

    def _is_swapped(self) -> bool:
        """Asked of the world: on a full disk everything may have been undone, and the journal not say so."""
        return says_yes(lambda: all(component.is_applied() for component in self.host.components))

    def _is_for_good(self) -> bool:
        """Whether something of it cannot be taken back; with it all that was swapped before it stays."""
        found = any(component.is_for_good() for component in self.host.components)
        if found and self._is_swapped():
            self._swap()  # written down as done
        return found

    def _have_libvirt(self) -> None:
        """Nothing can be done for a held guest without its daemon."""
        have_libvirt(self.host.ports, "guests that are held")

    # -- one guest -------------------------------------------------------------------------------------------

    def _active(self) -> list[HeldMember]:
        return [member for member in self.members if member.active]

    def _advance(self, member: HeldMember, table: Sequence[Step[GuestHold]]) -> None:
        try:
            member.progress = self.engine.forward(table, member.swap, member.progress, stoppable=table is PREPARE)
        except StepFailed as failed:
            member.progress = failed.progress
            raise

    def _try(self, member: HeldMember, table: Sequence[Step[GuestHold]]) -> HostagentError | None:
        try:
            self._advance(member, table)
        except StepFailed as failed:
            return failed.error
        return None

    def _fell(self, member: HeldMember, error: HostagentError) -> None:
        """A guest did not get through: back, or to a person, as the world allows."""
        if member.committed:
            self._fell_late(member, error)
            return
        try:
            self._have_libvirt()
            if (gone := self._ended_by_others(member)) is not None:
                self._let_go(member, gone, error)
            else:
                self.engine.back(HOLD_STEPS, member.swap, member.progress)
                member.end(Outcome.ROLLED_BACK, error)
        except HostagentError as stuck:
            member.end(Outcome.NEEDS_OPERATOR, stuck)
            if member.swap.barrier is None:
                self.host.ports.watcher.running()  # it waits for a person, and the updater goes on

    def _let_go(self, member: HeldMember, gone: Outcome, error: HostagentError) -> None:
        """Nothing of it can be brought back: clear up what is ours."""
        unprepare(member.swap)
        member.end(gone, _WORDS[gone] if gone is Outcome.GONE else f"{_WORDS[gone]} ({error})")
        if member.swap.barrier is None:
            self.host.ports.watcher.running()

    def _ended_by_others(self, member: HeldMember) -> Outcome | None:
        """How a guest ended that does not run and cannot be brought back; None for all others."""
        swap, opened = member.swap, member.progress.open
        now = self.host.ports.libvirt.standing(swap.uuid)
        if now is not None and now.state.active:
            return Outcome.GONE if swap.saved is not None and swap.is_another_life(now) else None
        if "save" not in opened:
            return Outcome.GONE
        if swap.old_is_alive():
            return None  # libvirt's daemon has forgotten it, or sees to its end: undoing says which
        if (now is not None and now.reason in ENDED_FOR_GOOD) or not is_told(swap):
            return Outcome.GONE  # its owner ended it, or gave its RAM up, or it had been let go of
        if self.recovers and swap.notes.restored:
            raise NeedsOperator(
                f"{swap.name}: bringing it back",
                expected="to know that it has not gone on since it was restored",
                found="that its QEMU ended while nobody was at work",
                hint=f"what was saved is not loaded over its disks; to boot it from them: "
                f"rm {told_of(swap)}; virsh start {swap.uuid}; hostagent recover",
            )
        return None if has_state(swap) else Outcome.LOST

    def _fell_late(self, member: HeldMember, error: HostagentError) -> None:
        """After the commit what was saved is never loaded again."""
        try:
            self._have_libvirt()
            now = self.host.ports.libvirt.standing(member.swap.uuid)
            if not member.committed or (now is not None and now.state.active):
                member.end(Outcome.NEEDS_OPERATOR, error)
                return
            unprepare(member.swap)
        except HostagentError as stuck:
            member.end(Outcome.NEEDS_OPERATOR, stuck)
            return
        if member.swap.barrier is None:
            self.host.ports.watcher.running()
        if now is not None and now.reason in ENDED_FOR_GOOD:
            member.end(Outcome.GONE, "updated, and ended since by its owner, or by itself")
        else:
            member.end(Outcome.LOST, f"its QEMU ended after it had been told to go on ({error})")

    def _settle(self) -> None:
        """Every guest looked at, every outcome written down."""
        for member in self._active():
            if (failed := self._try(member, AFTER)) is not None:
                self._fell_late(member, failed)
        updated = self._active()
        for member in updated:
            member.end(Outcome.UPDATED)
        stood_still = [
            member
            for member in self.members
            if member.outcome is Outcome.ROLLED_BACK and "pause" in member.progress.begun and not member.closed
        ]
        clocks.bring_right(
            [member.swap for member in (*updated, *stood_still) if not member.swap.rehearsal],
            just_booted=any(member.swap.saved is not None and member.swap.notes.landed for member in updated),
        )
        write_ends(self.engine.journal, self.host.update, self.members)
        waits = any(member.outcome is Outcome.NEEDS_OPERATOR for member in self.members)
        if not waits and not isinstance(self.failure, NeedsOperator):
            for component in self.host.components:
                component.forget()  # nobody asks them any more what there was before


def _goes_forward(member: HeldMember) -> bool:
    """Whether it was told to go on, or went on where it was restored."""
    return member.committed or ("restore" in member.progress.open and says_yes(member.swap.went_forward))


_WORDS = {
    Outcome.GONE: ENDED_BY_OTHERS,
    Outcome.LOST: "its QEMU ended before its state was saved",
}
