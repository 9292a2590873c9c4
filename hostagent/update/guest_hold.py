"""One guest that is held: saved without its RAM, which stays, and restored later."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import TypeAdapter

from hostagent.facts import GuestState
from hostagent.hypervisor import ProcessId, Standing
from hostagent.update.held import Held
from hostagent.update.subject import GuestOfUpdate, Pin, Watcher


class Side(StrEnum):
    """What a saved guest can be restored on."""

    BEFORE = "before"  # the QEMU that it was saved on
    AFTER = "after"  # the one that it is brought to


@dataclass(frozen=True)
class SavedImage:
    """A file with a guest's state, and what is in it."""

    path: str
    digest: str = ""  # SHA-256, hexadecimal; "" until it is written


@dataclass(frozen=True)
class HoldNotes:
    """What is known about a guest's hold."""

    old: ProcessId
    live_xml: str
    emulator: str  # that it ran on
    pins: tuple[Pin, ...]
    held: Held  # what the hook is told
    plain: SavedImage  # as libvirt wrote it
    before: SavedImage  # ready to be restored
    after: SavedImage
    restored: bool = False  # it was there, standing still, on what it is brought to; whoever sees it may resume it
    began: float = 0.0  # when it was told to stand still, seconds of the monotonic clock
    began_at: float = 0.0  # and Unix time
    landed: bool = False  # it is held over the end of the kernel that it ran on: the monotonic clock began anew
    was_running: bool = True  # one that its owner has paused is not held: libvirt would forget who paused it

    def image(self, side: Side) -> SavedImage:
        """The one to restore there."""
        return self.before if side is Side.BEFORE else self.after

    @property
    def files(self) -> tuple[str, ...]:
        """Every file with its state."""
        return self.plain.path, self.before.path, self.after.path


@dataclass
class Barrier:
    """Shared by guests that are held together: the guard watches over all of them, until the last one goes on."""

    ends: float | None = None  # when the first one's budget is used up, seconds of the monotonic clock
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def stands_still(self, ends: float, watcher: Watcher) -> None:
        """The guard hears of the earliest of all the ends, and of no later one after it."""
        with self._turn:
            self.ends = ends if self.ends is None else min(self.ends, ends)
            watcher.pausing(self.ends)


@dataclass
class GuestHold(GuestOfUpdate[HoldNotes]):
    """The subject of a hold's guest steps."""

    adapter = TypeAdapter(HoldNotes)
    technique = "hold"

    barrier: Barrier | None = None  # None: it is held for itself
    pause: Mapping[str, object] | None = None  # once it went on in this process, until that is noted

    def emulator(self, side: Side) -> str:
        """What runs it there."""
        return self.notes.emulator if side is Side.BEFORE else self.tree.emulator

    def now(self) -> Standing | None:
        """Where it stands, if libvirt has it running or paused; needs its daemon."""
        standing = self.ports.libvirt.standing(self.uuid)
        return standing if standing is not None and standing.state.active else None

    def was_restored(self, now: Standing | None) -> bool:
        """Whether that is a QEMU that was started from its state."""
        return now is not None and now.process not in (None, self.notes.old) and not self.is_another_life(now)

    def is_another_life(self, now: Standing) -> bool:
        """Whether somebody gave the RAM that was held up, and booted the guest from its disks."""
        if now.process in (None, self.notes.old) or now.marked:
            return False
        return not self.maps_its_ram(now)

    def maps_its_ram(self, now: Standing) -> bool:
        """Whether that QEMU has the RAM that stayed."""
        mapped = self.ports.qemu.ram_inodes(now.process) if now.process is not None else frozenset()
        return all((pin.device, pin.inode) in mapped for pin in self.notes.pins)

    def went_forward(self) -> bool:
        """Whether it runs on what it is brought to: somebody else resumed it."""
        now = self.now()
        runs = now is not None and now.state is GuestState.RUNNING and now.emulator == self.tree.emulator
        return runs and self.was_restored(now)
