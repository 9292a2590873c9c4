"""Several guests through one absence of libvirt's daemon; also what finishes or undoes them after a crash.

A guest that fails leaves the batch, with everything undone, and the others go on. Whatever happens, the daemon is
started again and every guest ends in exactly one reported state.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from hostagent.errors import HostagentError, NeedsOperator, OutcomeUnknown
from hostagent.hypervisor import Move
from hostagent.update import clocks
from hostagent.update.attachment import believed
from hostagent.update.beside import stop_new, unprepare
from hostagent.update.copying import look_at_copy
from hostagent.update.crossing import has_all_of_it
from hostagent.update.definitions import adopt_definitions
from hostagent.update.handover import AFTER, ATTACH, BESIDE, COPY, DETACH, SWAP
from hostagent.update.journal import Outcome, Progress
from hostagent.update.member import CUT_OFF, MemberOf, says_yes, write_ends
from hostagent.update.saga import Engine, Step, StepFailed, committed
from hostagent.update.swap import GuestSwap, HostSwap
from hostagent.update.taking_over import bury_old, put_settings_right, record_is_ours, went_back

# The pins are undone apart: libvirt's clean-up unlinks RAM files when it fails to come back to a guest.
PINS, UNDONE_AT_ONCE = BESIDE[:1], (*BESIDE[1:], *COPY, *SWAP)


@dataclass
class Member(MemberOf[GuestSwap]):
    """A guest in the batch."""

    told: int = 0  # tenths of its RAM that somebody heard of
    tried_alone: bool = False  # it was taken forward once with only the new QEMU left

    @property
    def committed(self) -> bool:
        """Whether there is no way back for it."""
        return committed(SWAP, self.progress)


@dataclass
class Batch:
    """One run over the stages of the handover."""

    engine: Engine
    host: HostSwap
    members: Sequence[Member]
    host_progress: Progress = field(default_factory=Progress)

    # -- the ordinary way ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Carry every member as far as it goes."""
        clocks.measure_before([member.swap for member in self.members if not member.swap.rehearsal])
        for member in self._active():
            self._advance(member, BESIDE)
        self._copy_ram()
        if self._active() and self._host_forward(DETACH):
            for member in self._active():
                self._advance(member, SWAP)
        self._settle()

    def _copy_ram(self) -> None:
        """All that has to be copied goes at the same time, while the guests run; libvirt's daemon is there."""
        for member in self._copying():
            self._advance(member, COPY)
        while (waiting := self._copying()) and not self.engine.cancelled():
            for member in waiting:
                try:
                    self._tell_of(member, look_at_copy(member.swap))
                except HostagentError as error:
                    self._fell(member, error)

    def _copying(self) -> list[Member]:
        return [member for member in self._active() if member.swap.copies and not member.swap.copied]

    def _tell_of(self, member: Member, move: Move) -> None:
        if not move.ram_left or not move.ram_total:
            return
        done = move.ram_total - move.ram_left
        if done * 10 // move.ram_total > member.told:  # each tenth once
            member.told = done * 10 // move.ram_total
            words = f"{done / 2**30:.1f} of {move.ram_total / 2**30:.1f} GiB while the guest runs"
            self.engine.tell(member.swap.key, "copy", words)

    # -- after a crash ---------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Finish or undo what a crash left, guests that stand still first."""
        if any(_needs_monitors(member) or _needs_a_door(member) for member in self.members):
            # The journal says detached, but the lock may have gone with its holders and the daemon come back.
            self.host.urgent = True
            self.host_progress = replace(self.host_progress, done=self.host_progress.done - {"detach", "attach"})
            if not self._host_forward(DETACH):
                self._write_outcomes()  # nothing can be asked of the QEMUs; the members need a person
                return
        for member in sorted(self._active(), key=_stands_still, reverse=True):
            if not member.committed:
                self._fell(member, CUT_OFF)
            elif says_yes(lambda swap=member.swap: went_back(swap)):  # type: ignore[misc]
                self._back(member, CUT_OFF)
            else:
                self._advance(member, SWAP)
            member.blame_what_failed_first()
        self._settle()

    # -- one guest -------------------------------------------------------------------------------------------

    def _active(self) -> list[Member]:
        return [member for member in self.members if member.active]

    def _advance(self, member: Member, table: Sequence[Step[GuestSwap]]) -> None:
        try:
            member.progress = self.engine.forward(table, member.swap, member.progress, stoppable=table is not AFTER)
        except StepFailed as failed:
            member.progress = failed.progress
            self._fell(member, failed.error)

    def _fell(self, member: Member, error: HostagentError) -> None:
        """A guest did not get through: back, forward, or to a person, as the world allows."""
        swap = member.swap
        if member.committed:
            self._fell_late(member, error)
        elif swap.saved is None and member.progress.open and says_yes(lambda: not swap.is_there()):
            member.end(Outcome.GONE, "it was ended by somebody else meanwhile; left alone")
        elif not member.progress.open or swap.saved is None or swap.old_is_alive():
            self._back(member, error)
        elif "switch" in member.progress.open:
            self._only_new_left(member, error)
        else:
            self._gone(member, error)

    def _only_new_left(self, member: Member, error: HostagentError) -> None:
        """The old one died as the state crossed, or after: forward, once, if the new one has the guest."""
        swap = member.swap
        try:
            has_it = record_is_ours(swap) and has_all_of_it(swap)
        except OutcomeUnknown as unknown:  # it may be all there is of the guest: nobody may end it
            self._holds_the_guest(member, unknown)
            return
        except HostagentError:
            has_it = False
        if not has_it:
            self._gone(member, error)
        elif member.tried_alone:
            self._holds_the_guest(member, error)
        else:
            member.tried_alone = True
            self._advance(member, SWAP)

    def _holds_the_guest(self, member: Member, error: HostagentError) -> None:
        """The new one is all there is of the guest, and cannot take over now; libvirt would end it."""
        swap = member.swap
        swap.unproven = NeedsOperator(
            f"{swap.name}: going on with the new QEMU, as the old one is gone",
            expected="it to take over",
            found=str(error),
            hint="hostagent recover; until then nobody may start libvirt's daemon",
        )
        swap.ports.watcher.running()
        member.end(Outcome.NEEDS_OPERATOR, swap.unproven)

    def _back(self, member: Member, error: HostagentError) -> None:
        try:
            if _needs_a_door(member):
                self._make_a_door()
            self.engine.back(UNDONE_AT_ONCE, member.swap, member.progress)
            member.end(Outcome.ROLLED_BACK, error)
        except NeedsOperator as stuck:
            member.end(Outcome.NEEDS_OPERATOR, stuck)
        finally:
            member.swap.close_monitors()

    def _make_a_door(self) -> None:
        """libvirt's daemon ended under a copy: its guest may stand still because of us, and must not wait for it."""
        self.host.urgent = True
        try:
            self.host_progress = self.engine.forward(DETACH, self.host, self.host_progress)
        except StepFailed as failed:
            self.host_progress = failed.progress
            raise NeedsOperator(
                "reaching a guest's QEMU without libvirt's daemon", found=str(failed.error), hint="hostagent recover"
            ) from failed

    def _gone(self, member: Member, error: HostagentError) -> None:
        """The old QEMU is gone and nothing has its state: clear up what is ours, touch nothing else."""
        member.swap.ports.watcher.running()
        try:
            stop_new(member.swap)
            unprepare(member.swap)
        except HostagentError as stuck:
            member.end(Outcome.NEEDS_OPERATOR, stuck)
            return
        if "switch" in member.progress.open:
            member.end(Outcome.LOST, f"both QEMUs ended while its state crossed ({error})")
        else:
            member.end(Outcome.GONE, "its QEMU was ended by somebody else meanwhile; left alone")

    def _fell_late(self, member: Member, error: HostagentError) -> None:
        """After the commit the old QEMU must never run again, whatever became of the new one."""
        swap = member.swap
        with suppress(HostagentError):
            put_settings_right(swap)
        try:
            # libvirt must find the new one's monitor, else `virsh resume` makes a second copy.
            bury_old(swap)
            if swap.new_is_alive():
                member.end(Outcome.NEEDS_OPERATOR, error)
                return
            unprepare(swap)
            if "attach" in self.host_progress.done:
                member.end(Outcome.GONE, "updated; its QEMU ended once libvirt had it back: virsh domstate --reason")
            else:
                member.end(Outcome.LOST, f"the new QEMU ended after it had taken the guest over ({error})")
        except HostagentError as stuck:
            member.end(Outcome.NEEDS_OPERATOR, stuck)
        finally:
            swap.ports.watcher.running()

    # -- the host --------------------------------------------------------------------------------------------

    def _host_forward(self, table: Sequence[Step[HostSwap]]) -> bool:
        try:
            stoppable = table is DETACH
            self.host_progress = self.engine.forward(table, self.host, self.host_progress, stoppable=stoppable)
            return True
        except StepFailed as failed:
            self.host_progress = failed.progress
            for member in self._active():
                if _needs_monitors(member) or member.committed:
                    member.end(Outcome.NEEDS_OPERATOR, failed.error)
                else:
                    self._fell(member, failed.error)
            return False

    def _settle(self) -> None:
        """libvirt back, every guest looked at, every outcome written down."""
        if "detach" in self.host_progress.open:
            self._host_forward(ATTACH)
        for member in self.members:
            if member.outcome is Outcome.ROLLED_BACK and not member.closed:
                self._look_back(member)
        for member in self._active():
            self._advance(member, AFTER)
        updated = self._active()
        for member in updated:
            member.end(Outcome.UPDATED)
        adopt_definitions([member.swap for member in updated if not member.swap.rehearsal])
        stood_still = [member for member in self.members if member.outcome is Outcome.ROLLED_BACK and _stood(member)]
        clocks.bring_right([member.swap for member in (*updated, *stood_still) if not member.swap.rehearsal])
        self._write_outcomes()

    def _write_outcomes(self) -> None:
        write_ends(self.engine.journal, self.host.update, self.members)

    def _look_back(self, member: Member) -> None:
        """A guest that runs as before: libvirt must see it so before its pins go."""
        if "prepare" not in member.progress.open or member.swap.saved is None:
            return
        try:
            if "detach" in self.host_progress.begun:
                believed(member.swap, member.swap.notes.old)
            self.engine.back(PINS, member.swap, member.progress)
        except HostagentError as error:
            if member.swap.old_is_alive():
                member.end(Outcome.NEEDS_OPERATOR, error)
            else:
                self._gone(member, error)


def _needs_monitors(member: Member) -> bool:
    """Whether finishing or undoing it needs what libvirt's daemon would hold."""
    return member.active and "reconcile" in member.progress.open and "prove" not in member.progress.done


def _needs_a_door(member: Member) -> bool:
    """Whether its copy is to be ended, which is done by way of libvirt's daemon, and that is not there."""
    copies = member.active and "copy" in member.progress.open and member.swap.saved is not None
    ports = member.swap.ports
    return copies and member.swap.old_is_alive() and not ports.lock.held() and not ports.daemon.is_up()


def _stands_still(member: Member) -> bool:
    if member.swap.saved is not None and member.swap.saved.halted:
        return True
    return "switch" in member.progress.open and "retire" not in member.progress.done


def _stood(member: Member) -> bool:
    """Whether it stood still in this update, so that its clock is behind."""
    halted = "copy" in member.progress.begun and member.swap.saved is not None and member.swap.saved.loses_writes
    return ("switch" in member.progress.begun or halted) and not member.closed
