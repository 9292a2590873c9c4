"""Many guests updated at once: how long each stands still, and how long libvirt is away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise

from bench.series import Of, Sample
from bench.ways import BOOT_LIMIT, BUDGET_SECONDS, MACHINE, Stage, told
from hostagent.facts import QemuTree
from hostagent.plan import Technique
from hostagent.update.journal import UpdateRecord
from tests.bench.guest_spec import GuestSpec, Ram

FILL_MIB, MEMORY_MIB = 128, 320
PACE = 5  # of what guests do: many of them share few processors
TICKS = 60
TURNS = 2


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
        with ExitStack() as stack:
            self._boot(stack, specs)
            for technique, method in ((Technique.HANDOVER, "handover_kept"), (Technique.HOLD, "hold")):
                for turn in range(TURNS):
                    to = (self.stage.lab.newer, self.stage.lab.system)[turn % 2]
                    yield from self._updated(specs, to, method, technique)
        with ExitStack() as stack:
            ordinary = [replace(spec, ram=Ram.ANONYMOUS) for spec in specs]
            self._boot(stack, ordinary)
            yield from self._updated(ordinary, self.stage.lab.newer, "handover_copied", None)

    def _boot(self, stack: ExitStack, specs: Sequence[GuestSpec]) -> None:
        for spec in specs:
            stack.enter_context(self.stage.hosts.a.guest(spec))
        for spec in specs:
            self.stage.proof(spec).wait_booted(BOOT_LIMIT)

    def _updated(
        self, specs: Sequence[GuestSpec], to: QemuTree, method: str, technique: Technique | None
    ) -> Iterator[Sample]:
        peer, names = self.stage.peer, [spec.name for spec in specs]
        for spec in specs:
            peer.wait_for_ticks(spec.address, TICKS)
            peer.reset(spec.address)
        for spec in specs:
            peer.wait_for_ticks(spec.address, TICKS)
        update = self.stage.lab.update(to, names, budget_seconds=BUDGET_SECONDS, technique=technique)
        if method == "handover_kept":
            self.away = max(self.away, _away(update))
        for spec in specs:
            peer.wait_for_ticks(spec.address, TICKS)
        for spec in specs:
            said, felt = told(update, spec), peer.felt(spec.address).stood_still_ns / 1e9
            yield Sample(Of(method, FILL_MIB, self.count), felt, said.seconds, phases=said.phases)


def _away(update: UpdateRecord) -> float:
    """For how long libvirt's daemon was, seconds: from when it was stopped until what was done after it was back."""
    host = [(step, at) for guest, step, at in update.step_times if not guest or step == "look"]
    stopped = next(at for step, at in host if step == "detach")
    return next(later for (step, _), (_, later) in pairwise(host) if step == "attach") - stopped
