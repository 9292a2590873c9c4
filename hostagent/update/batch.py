"""Several guests through one absence of libvirt's daemon; also what finishes or undoes them after a crash.

A guest that fails leaves the batch, with everything undone, and the others go on. Whatever happens, the daemon is
started again and every guest ends in exactly one reported state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from hostagent.errors import HostagentError, NeedsOperator
from hostagent.update import clocks
from hostagent.update.handover import AFTER, ATTACH, BESIDE, DETACH, GUEST_STEPS, SWAP, loaded_and_paused, stop_new, unpin
from hostagent.update.journal import Entry, GuestRecord, Kind, Outcome, Progress, UpdateRecord
from hostagent.update.saga import Engine, Step, StepFailed, committed
from hostagent.update.swap import GuestSwap, HostSwap, read_notes


@dataclass
class Member:
    """A guest in the batch, how far it got, and how it ended."""

    swap: GuestSwap
    progress: Progress = Progress()
    outcome: Outcome | None = None
    reason: str = ""
    reason_kind: str = ""

    @property
    def active(self) -> bool:
        """Whether it still takes part."""
        return self.outcome is None

    @property
    def committed(self) -> bool:
        """Whether there is no way back for it."""
        return committed(SWAP, self.progress)

    def end(self, outcome: Outcome, error: HostagentError | str = "") -> None:
        """Leave the batch."""
        self.outcome = outcome
        self.reason = str(error)
        self.reason_kind = error.kind if isinstance(error, HostagentError) else ""


@dataclass
class Batch:
    """One run over the stages of the handover."""

    engine: Engine
    host: HostSwap
    members: Sequence[Member]
    host_progress: Progress = field(default_factory=Progress)

    # -- the ordinary way -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Carry every member as far as it goes."""
        clocks.measure_before([member.swap for member in self.members if not member.swap.rehearsal])
        for member in self._active():
            self._advance(member, BESIDE)
        if any(member.active for member in self.members) and self._host_forward(DETACH):
            for member in self._active():
                self._advance(member, SWAP)
        self._settle()

    # -- after a crash --------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Finish or undo what a crash left, guests that stand still first."""
        if "detach" in self.host_progress.open and "attach" not in self.host_progress.done:
            self._host_forward(DETACH)  # sees whether the lock is ours; otherwise stops a daemon that came too early
        for member in sorted(self._active(), key=_stands_still, reverse=True):
            if member.committed:
                self._advance(member, SWAP)
            else:
                self._fell(member, NeedsOperator("the update", found="it was cut off; undone by recovery"))
        self._settle()

    # -- one guest ------------------------------------------------------------------------------------------------

    def _active(self) -> Iterable[Member]:
        return [member for member in self.members if member.active]

    def _advance(self, member: Member, table: Sequence[Step[GuestSwap]]) -> None:
        try:
            member.progress = self.engine.forward(table, member.swap, member.progress)
        except StepFailed as failed:
            member.progress = failed.progress
            self._fell(member, failed.error)

    def _fell(self, member: Member, error: HostagentError) -> None:
        """A guest did not get through: back, forward, or to a person, as the world allows."""
        swap = member.swap
        if member.committed:
            self._fell_late(member, error)
        elif not member.progress.open or swap.saved is None or swap.old_is_alive():
            self._back(member, error)
        elif "switch" in member.progress.begun and _try(lambda: loaded_and_paused(swap)):
            self._advance(member, SWAP)  # the old one died; the new one has the state, so there is only forward
        else:
            self._gone(member, error)

    def _back(self, member: Member, error: HostagentError) -> None:
        try:
            self.engine.back(GUEST_STEPS, member.swap, member.progress)
            member.end(Outcome.ROLLED_BACK, error)
        except NeedsOperator as stuck:
            member.end(Outcome.NEEDS_OPERATOR, stuck)
        member.swap.close_monitors()

    def _gone(self, member: Member, error: HostagentError) -> None:
        """The old QEMU is gone and nothing has its state: clear up what is ours, touch nothing else."""
        was_moved = "switch" in member.progress.begun
        try:
            stop_new(member.swap)
            unpin(member.swap)
        except HostagentError as stuck:
            member.end(Outcome.NEEDS_OPERATOR, stuck)
            return
        if was_moved:
            member.end(Outcome.LOST, f"both QEMUs ended while its state crossed ({error})")
        else:
            member.end(Outcome.GONE, "its QEMU was ended by somebody else meanwhile; left alone")

    def _fell_late(self, member: Member, error: HostagentError) -> None:
        """After the commit the old QEMU must never run again, whatever became of the new one."""
        swap = member.swap
        if swap.new_is_alive():
            member.end(Outcome.NEEDS_OPERATOR, error)
        else:
            try:
                swap.close_monitors()
                swap.ports.qemu.kill(swap.notes.old, 10.0)
                unpin(swap)
            except HostagentError as stuck:
                member.end(Outcome.NEEDS_OPERATOR, stuck)
                return
            member.end(Outcome.LOST, f"the new QEMU ended after it had taken the guest over ({error})")
        swap.close_monitors()

    # -- the host -------------------------------------------------------------------------------------------------

    def _host_forward(self, table: Sequence[Step[HostSwap]]) -> bool:
        try:
            self.host_progress = self.engine.forward(table, self.host, self.host_progress)
            return True
        except StepFailed as failed:
            self.host_progress = failed.progress
            for member in self._active():
                if member.committed:
                    member.end(Outcome.NEEDS_OPERATOR, failed.error)
                else:
                    self._fell(member, failed.error)
            return False

    def _settle(self) -> None:
        """libvirt back, every guest looked at, every outcome written down."""
        if "detach" in self.host_progress.open:
            self._host_forward(ATTACH)
        updated = [member for member in self._active() if member.committed]
        for member in updated:
            self._advance(member, AFTER)
        done = [member for member in updated if member.active]
        for member in done:
            member.end(Outcome.UPDATED)
        clocks.bring_right([member.swap for member in done if not member.swap.rehearsal])
        for member in self.members:
            if member.outcome is None:
                member.end(Outcome.NEEDS_OPERATOR, "it was neither finished nor undone")
            body = {"outcome": member.outcome, "reason": member.reason, "kind": member.reason_kind}
            self.engine.journal.append(self.host.update, Entry(Kind.GUEST_ENDED, member.swap.uuid, body=body))


def member_of(record: GuestRecord, swap: GuestSwap) -> Member:
    """A member as the journal left it."""
    swap.saved = read_notes(record.notes)
    return Member(swap, record.progress, record.outcome, record.reason, record.reason_kind)


def host_progress_of(update: UpdateRecord) -> Progress:
    """The host's progress as the journal left it."""
    return update.host


def _stands_still(member: Member) -> bool:
    return "switch" in member.progress.open and "retire" not in member.progress.done


def _try(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except HostagentError:
        return False
