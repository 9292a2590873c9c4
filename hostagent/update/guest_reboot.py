"""One guest that is updated by a reboot: shut down in order, and started anew on the QEMU that it is to run on.

The request to shut down cannot be taken back. What it asked for is told from what its owner did by what is noted
before it is sent, and by the reason that libvirt gives for a guest that does not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import TypeAdapter

from hostagent.errors import HostagentError, NeedsOperator
from hostagent.facts import QemuTree
from hostagent.hypervisor import ProcessId, Standing
from hostagent.update.guest_alone import Ended, GuestAlone
from hostagent.update.journal import Outcome
from hostagent.update.subject import ENDED_BY_OTHERS, ENDED_FOR_GOOD

# Why a guest does not run that its owner has ended, or it itself.
_ENDED_FOR_GOOD = ENDED_FOR_GOOD | {"saved"}


@dataclass(frozen=True)
class RebootNotes:
    """What is known about a guest's reboot; times are of the monotonic clock, seconds, and 0 until then."""

    old: ProcessId
    emulator: str  # that it ran on
    boot_tcp: str  # "HOST:PORT" that shows that it has booted; "": its agent does
    agent: bool  # whether that answered
    boot_id: str  # of the boot that is to end, as its agent said; "" when it did not
    asked: float = 0.0  # to shut itself down
    forced: bool = False  # its QEMU is ended by us, as it did not
    ended: float = 0.0  # seen to have
    was_running: bool = True  # one that its owner has paused cannot shut itself down


@dataclass
class GuestReboot(GuestAlone[RebootNotes]):
    """The subject of a reboot's steps."""

    adapter = TypeAdapter(RebootNotes)
    technique = "reboot"
    keeps_memory = False

    boot_tcp: str = field(default="", kw_only=True)  # as its policy says
    started: float | None = field(default=None, kw_only=True)  # by this process, seconds of the monotonic clock
    proven: bool = field(default=False, kw_only=True)  # seen to have booted, by this process

    def shutdown_left(self) -> float:
        """How long a guest that was asked to shut down may still take, seconds."""
        ends = self.notes.asked + self.ports.config.reboot.shutdown_seconds
        return max(0.0, ends - self.ports.monotonic())

    def now(self) -> Standing | None:
        """Where it stands; None when libvirt does not know it any more."""
        return self.ports.libvirt.standing(self.uuid)

    def runs_on(self) -> QemuTree | None:
        """What it runs on since it was shut down; None when it does not run, or nobody knows that QEMU."""
        guest = self.ports.libvirt.guest(self.uuid)
        if guest is None or not guest.state.active or guest.process is None:
            return None
        is_old = ProcessId(guest.process.pid, guest.process.start_ticks) == self.notes.old
        return None if is_old else guest.qemu

    # -- what the batch asks ---------------------------------------------------------------------------------------

    def settle(self) -> None:
        libvirt = self.ports.libvirt
        libvirt.wait_started(self.uuid, self.ports.config.update.start_seconds)
        if self.notes.asked and self.old_is_alive():
            libvirt.wait_ended(self.uuid, self.shutdown_left())

    def ended_by_others(self, opened: Sequence[str]) -> Ended | None:
        now, notes = self.now(), self.saved
        if now is None:
            return Ended(Outcome.GONE, "its owner has given it up meanwhile: libvirt does not know it any more")
        asked = notes is not None and bool(notes.asked)
        if now.state.active:
            another = notes is not None and now.process not in (None, notes.old)
            return Ended(Outcome.GONE, ENDED_BY_OTHERS) if another and not asked else None
        forced = notes is not None and notes.forced
        by_owner = now.reason == "saved" or (now.reason == "destroyed" and not forced)
        return Ended(Outcome.GONE, ENDED_BY_OTHERS) if by_owner or not asked else None

    def went_forward(self) -> bool:
        tree = self.runs_on() if self.notes.asked else None
        return tree is not None and tree.is_build_of(self.tree)

    def fell_late(self, error: HostagentError) -> Ended:
        now = self.now()
        if now is not None and now.state.active:
            if self.went_forward():
                return Ended(Outcome.NEEDS_OPERATOR, error)
            return Ended(Outcome.GONE, f"it was started on {self.tree.version}, and anew by somebody else since")
        if now is None or now.reason in _ENDED_FOR_GOOD:
            return Ended(Outcome.GONE, "updated, and ended since by its owner, or by itself")
        return Ended(
            Outcome.NEEDS_OPERATOR,
            NeedsOperator(
                f"{self.name}: waiting until it has booted",
                expected=f"it to run on {self.tree.version}",
                found=f"that its QEMU has ended: {now.reason or now.state}",
                hint=f"see why (its log below /var/log/libvirt/qemu), virsh start {self.uuid}, then: hostagent recover",
            ),
        )

    def comes_first(self) -> bool:
        return self.saved is not None and bool(self.saved.asked) and not self.old_is_alive()
