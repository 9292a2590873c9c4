"""Many guests at once: how long each stands still, and how long libvirt is away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from bench.raw import BOOT_LIMIT, WAITING, RawGuest
from bench.series import Of, Sample
from bench.ways import BUDGET_SECONDS, MACHINE, Stage, told
from hostagent.config import ComponentSettings
from hostagent.facts import QemuTree
from hostagent.plan import Technique
from hostagent.update.journal import UpdateRecord
from tests.bench.guest_spec import GuestSpec, Ram
from tests.bench.lab import Lab

FILL_MIB, MEMORY_MIB = 128, 320
PACE = 5  # of what guests do: many of them share few processors
TICKS = 60
TURNS = 2
SWAPPED = Path("/run/swapped")
NOTHING = ComponentSettings(
    name="nothing",
    apply=("/usr/bin/touch", str(SWAPPED)),
    verify=("/usr/bin/test", "-e", str(SWAPPED)),
    roll_back=("/usr/bin/rm", "-f", str(SWAPPED)),
)
"""Something of the host that takes no time to swap: a guest that is held for it stands still for the holding alone."""

Change = Callable[[], UpdateRecord]


@dataclass
class Crowd:
    """So many guests that are alike; `away` once all samples are had, seconds."""

    stage: Stage
    count: int
    away: float = 0.0

    def samples(self) -> Iterator[Sample]:
        """By each technique, up and back; of those whose RAM is copied, up."""
        specs = [
            GuestSpec(f"one{n}", n, MEMORY_MIB, MACHINE, fill_mib=FILL_MIB, pace=PACE) for n in range(1, self.count + 1)
        ]
        ordinary = [replace(spec, ram=Ram.ANONYMOUS) for spec in specs]
        lab = self.stage.lab
        trees = [(lab.newer, lab.system)[turn % 2] for turn in range(TURNS)]
        with ExitStack() as stack:
            self._boot(stack, specs)
            for to in trees:
                yield from self._updated(specs, "handover_kept", self._handover(specs, to))
            for to in trees:
                yield from self._updated(specs, "hold", self._update(specs, to, Technique.HOLD))
            for _ in range(TURNS):
                yield from self._updated(specs, "held_together", _held_together(lab))
        with ExitStack() as stack:
            self._boot(stack, ordinary)
            yield from self._updated(ordinary, "handover_copied", self._update(ordinary, lab.newer, None))
        with ExitStack() as stack:
            bare = [stack.enter_context(RawGuest(one, lab.system.emulator, self.stage.native(one))) for one in specs]
            self.stage.peer.wait_for_ticks(*(guest.spec.address for guest in bare))
            for guest in bare:
                guest.wait_filled()
            for to in trees:
                yield from self._felt(specs, "limit", _switched(bare, to))

    def _boot(self, stack: ExitStack, specs: Sequence[GuestSpec]) -> None:
        for spec in specs:
            stack.enter_context(self.stage.hosts.a.guest(spec))
        for spec in specs:
            self.stage.proof(spec).wait_booted(BOOT_LIMIT)

    def _update(self, specs: Sequence[GuestSpec], to: QemuTree, technique: Technique | None) -> Change:
        names = [spec.name for spec in specs]
        return lambda: self.stage.lab.update(to, names, budget_seconds=BUDGET_SECONDS, technique=technique)

    def _handover(self, specs: Sequence[GuestSpec], to: QemuTree) -> Change:
        def noted() -> UpdateRecord:
            update = self._update(specs, to, Technique.HANDOVER)()
            self.away = max(self.away, _away(update))
            return update

        return noted

    def _updated(self, specs: Sequence[GuestSpec], method: str, change: Change) -> Iterator[Sample]:
        """By hostagent; with what it says of it."""
        updates: list[UpdateRecord] = []
        found = list(self._felt(specs, method, lambda: updates.append(change())))
        for spec, sample in zip(specs, found, strict=True):
            said = told(updates[0], spec)
            yield replace(sample, reported=said.seconds, phases=said.phases)

    def _felt(self, specs: Sequence[GuestSpec], method: str, change: Callable[[], None]) -> Iterator[Sample]:
        """What each felt of a change to all of them."""
        peer, addresses = self.stage.peer, [spec.address for spec in specs]
        peer.wait_for_ticks(*addresses, count=TICKS)
        for address in addresses:
            peer.reset(address)
        peer.wait_for_ticks(*addresses, count=TICKS)
        change()
        peer.wait_for_ticks(*addresses, count=TICKS)
        for spec in specs:
            yield Sample(Of(method, FILL_MIB, self.count), peer.felt(spec.address).stood_still_ns / 1e9, None)


def _switched(guests: Sequence[RawGuest], to: QemuTree) -> Callable[[], None]:
    """Without libvirt and hostagent: all new QEMUs wait, then one guest after the other goes over."""

    def change() -> None:
        with ExitStack() as stack:
            waiting = [stack.enter_context(guest.beside(to.emulator)) for guest in guests]
            time.sleep(WAITING)
            for guest, new in zip(guests, waiting, strict=True):
                guest.switch(new)

    return change


def _held_together(lab: Lab) -> Change:
    """All guests of the host, for the time of a swap that takes none."""

    def change() -> UpdateRecord:
        SWAPPED.unlink(missing_ok=True)
        swapping = Lab(lab.config.model_copy(update={"component": (NOTHING,)}))
        return swapping.swap(NOTHING.name, budget_seconds=BUDGET_SECONDS)

    return change


def _away(update: UpdateRecord) -> float:
    """For how long libvirt's daemon was, seconds: from when it was stopped until what was done after it was back."""
    host = [(step, at) for guest, step, at in update.step_times if not guest or step == "look"]
    stopped = next(at for step, at in host if step == "detach")
    return next(later for (step, _), (_, later) in pairwise(host) if step == "attach") - stopped
