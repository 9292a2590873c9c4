"""A component of the fake's world that can only be swapped while no guest's QEMU is there."""

from __future__ import annotations

from dataclasses import dataclass

from hostagent.errors import Failed
from hostagent.facts import Component, Freshness
from hostagent.hypervisor.fake_world import FaultKind, World

SWAP_NS = 2_000_000_000  # what a swap takes


class HostEnded(BaseException):
    """The host's kernel has ended, and everything that ran on it."""


@dataclass(frozen=True)
class FakeKernel:
    """The host's kernel: another one leaps into its place, and finds memory as it was."""

    world: World
    name: str = "kernel"
    holds: bool = True
    first_seconds: float = 20.0

    def look(self) -> Component:
        there = self.is_for_good()
        return Component(self.name, "old", "new", Freshness.CURRENT if there else Freshness.OUTDATED)

    def stage(self) -> None:
        with self.world.change() as state:
            if state.take(FaultKind.STAGE_FAILS):
                raise Failed(f"staging {self.name}", found="no such file")

    def apply(self) -> None:
        with self.world.change() as state:
            state.now_ns += SWAP_NS
            if users := [one.pid for one in state.living() if not one.host]:
                state.violated(f"the kernel ended under {users}")
            if state.take(FaultKind.APPLY_FAILS):
                raise Failed(f"applying {self.name}", found="it came back")
            self.world.end_kernel(state, leaps=not state.take(FaultKind.HOST_RESET))
        raise HostEnded

    def is_applied(self) -> bool:
        return self.is_for_good()

    def is_for_good(self) -> bool:
        with self.world.look() as state:
            return state.leapt == state.boots

    def roll_back(self) -> None:
        """What was loaded is unloaded."""

    def forget(self) -> None:
        """Nothing is kept."""


@dataclass(frozen=True)
class FakeComponent:
    """Of two builds, "old" and "new"."""

    world: World
    name: str = "modules"
    holds: bool = True
    first_seconds: float = 3.0

    def look(self) -> Component:
        runs = self.build()
        return Component(self.name, runs, "new", Freshness.CURRENT if runs == "new" else Freshness.OUTDATED)

    def build(self) -> str:
        """What runs."""
        with self.world.look() as state:
            return state.modules

    def stage(self) -> None:
        with self.world.change() as state:
            if state.take(FaultKind.STAGE_FAILS):
                raise Failed(f"staging {self.name}", found="no such file")

    def apply(self) -> None:
        self._swap("new", FaultKind.APPLY_FAILS, "applying")

    def is_applied(self) -> bool:
        return self.build() == "new"

    def is_for_good(self) -> bool:
        return False

    def roll_back(self) -> None:
        if self.build() != "old":
            self._swap("old", FaultKind.ROLL_BACK_FAILS, "rolling back")

    def forget(self) -> None:
        """Nothing is kept."""

    def _swap(self, build: str, fault: FaultKind, doing: str) -> None:
        with self.world.change() as state:
            state.now_ns += SWAP_NS
            if users := [one.pid for one in state.living() if not one.host]:
                raise Failed(f"{doing} {self.name}", found=f"in use by {users}")
            state.modules = "gone"  # it is taken out first
            if state.take(fault):
                raise Failed(f"{doing} {self.name}", found="Exec format error")
            state.modules = build
