"""Guests that are held, each for as long as it takes; also what finishes or undoes them after a crash.

libvirt's daemon stays. A guest that fails is brought back on what it ran on, and the others go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hostagent.errors import Failed, HostagentError, NeedsOperator
from hostagent.hypervisor import Standing
from hostagent.update import clocks
from hostagent.update.guest_hold import GuestHold
from hostagent.update.hold import AFTER, HOLD, HOLD_STEPS, PREPARE, RESTORE, RESUME
from hostagent.update.holding import MAY_COME_BACK, PASSED_ON, has_state, unprepare
from hostagent.update.journal import Outcome
from hostagent.update.member import MemberOf, says_yes, write_ends
from hostagent.update.saga import Engine, Step, StepFailed, committed
from hostagent.update.subject import Ports


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
    ports: Ports
    update: str
    members: Sequence[HeldMember]

    # -- the ordinary way ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Hold one guest after the other, and have each back before the next one stands still."""
        if not self.ports.daemon.is_up():
            for member in self._active():
                member.end(Outcome.ROLLED_BACK, Failed("holding it", expected="libvirt's daemon", found="it is away"))
        clocks.measure_before([member.swap for member in self._active() if not member.swap.rehearsal])
        for member in self._active():
            for table in (PREPARE, HOLD, RESTORE, RESUME):
                if member.active:
                    self._advance(member, table)
        self._settle()

    # -- after a crash ---------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Finish or undo what a crash left, guests that stand still first."""
        if not self._active():
            return
        try:
            self._have_libvirt()
        except HostagentError as error:
            for member in self._active():
                member.end(Outcome.NEEDS_OPERATOR, error)
            write_ends(self.engine.journal, self.update, self.members)
            return
        cut_off = Failed("the update", found="it was cut off, and undone by recovery")
        for member in sorted(self._active(), key=lambda member: "pause" in member.progress.open, reverse=True):
            if member.committed or ("restore" in member.progress.open and says_yes(member.swap.went_forward)):
                self._advance(member, RESUME)
            else:
                self._fell(member, cut_off)
            member.blame_what_failed_first()
        self._settle()

    def _have_libvirt(self) -> None:
        """Nothing can be done for a held guest without its daemon."""
        daemon, seconds = self.ports.daemon, self.ports.config.libvirt.daemon.ready_seconds
        if daemon.is_up():
            return
        try:
            daemon.start(seconds)
        except HostagentError as error:
            raise NeedsOperator(
                "starting libvirt's daemon, for guests that are held",
                expected="it to answer",
                found=str(error),
                hint=f"{daemon.restart_hint()}; then: hostagent recover",
            ) from error

    # -- one guest -------------------------------------------------------------------------------------------

    def _active(self) -> list[HeldMember]:
        return [member for member in self.members if member.active]

    def _advance(self, member: HeldMember, table: Sequence[Step[GuestHold]]) -> None:
        try:
            member.progress = self.engine.forward(table, member.swap, member.progress, stoppable=table is PREPARE)
        except StepFailed as failed:
            member.progress = failed.progress
            self._fell(member, failed.error)

    def _fell(self, member: HeldMember, error: HostagentError) -> None:
        """A guest did not get through: back, or to a person, as the world allows."""
        try:
            self._have_libvirt()
            gone = self._ended_by_others(member)
            if member.committed:
                self._fell_late(member, error)
            elif gone:
                unprepare(member.swap)
                member.end(gone, _WORDS[gone] if gone is Outcome.GONE else f"{_WORDS[gone]} ({error})")
                self.ports.watcher.running()
            else:
                self.engine.back(HOLD_STEPS, member.swap, member.progress)
                member.end(Outcome.ROLLED_BACK, error)
        except HostagentError as stuck:
            member.end(Outcome.NEEDS_OPERATOR, stuck)

    def _ended_by_others(self, member: HeldMember) -> Outcome | None:
        """How a guest ended that does not run and cannot be brought back; None for all others."""
        swap, opened = member.swap, member.progress.open
        now = self.ports.libvirt.standing(swap.uuid)
        if swap.saved is None:
            return None
        if now is not None and now.state.active:
            return Outcome.GONE if self._is_another_life(swap, now) else None
        if "save" not in opened:
            return Outcome.GONE
        if swap.old_is_alive():
            return None  # libvirt's daemon has forgotten it, or sees to its end: undoing says which
        if now is not None and now.reason not in MAY_COME_BACK:
            return Outcome.GONE
        return None if says_yes(lambda: has_state(swap)) else Outcome.LOST

    @staticmethod
    def _is_another_life(swap: GuestHold, now: Standing) -> bool:
        """Whether somebody gave the RAM that was held up, and booted the guest from its disks."""
        if now.process is None or not swap.was_restored(now) or now.state not in PASSED_ON:
            return False
        mapped = swap.ports.qemu.ram_inodes(now.process)
        return not any((pin.device, pin.inode) in mapped for pin in swap.notes.pins)

    def _fell_late(self, member: HeldMember, error: HostagentError) -> None:
        """After the commit what was saved is never loaded again."""
        if member.swap.now() is not None:
            member.end(Outcome.NEEDS_OPERATOR, error)
            return
        unprepare(member.swap)
        self.ports.watcher.running()
        member.end(Outcome.LOST, f"its QEMU ended after it had been told to go on ({error})")

    def _settle(self) -> None:
        """Every guest looked at, every outcome written down."""
        for member in self._active():
            self._advance(member, AFTER)
        updated = self._active()
        for member in updated:
            member.end(Outcome.UPDATED)
        stood_still = [
            member
            for member in self.members
            if member.outcome is Outcome.ROLLED_BACK and "pause" in member.progress.begun and not member.closed
        ]
        clocks.bring_right([member.swap for member in (*updated, *stood_still) if not member.swap.rehearsal])
        write_ends(self.engine.journal, self.update, self.members)


_WORDS = {
    Outcome.GONE: "it was ended by somebody else meanwhile, and perhaps started anew; left alone",
    Outcome.LOST: "its QEMU ended before its state was saved",
}
