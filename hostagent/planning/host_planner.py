"""Facts in, plan out, for what is swapped for the whole host: who is held meanwhile, and for how long. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hostagent.facts import Component, Guest, Host, QemuTree
from hostagent.plan import Blocker, GuestPlan, HostPlan, Method, Plan, Prediction, Reason, Technique, Verdict, Way
from hostagent.planning.checks import binary, host_blockers, reconnect_hook
from hostagent.planning.guest_policy import Policies, policy_blockers
from hostagent.planning.held_together import who_leaves
from hostagent.planning.hold_checks import hold_blockers
from hostagent.planning.kernel_checks import KernelSwap, kernel_blockers, ram_outlives
from hostagent.planning.ladder import in_place_blockers, plan_by_ladder
from hostagent.planning.migrate_way import Leaving, leaving_of, migrate_way
from hostagent.planning.planner import plan_qemu
from hostagent.planning.prediction import Past, over_budget, predict
from hostagent.planning.reboot_way import reboot_way
from hostagent.planning.rolling import place_of


@dataclass(frozen=True)
class Swap:
    """A component that is to be swapped."""

    change: Component
    holds: bool  # whether no guest may run meanwhile
    first_seconds: float  # how long it takes, where that was never measured
    reconnects: bool = False  # whether libvirt's daemon comes back to guests that run
    kernel: KernelSwap | None = None  # of the host's kernel alone


def plan_host(
    host: Host,
    asked: str,
    swaps: Sequence[Swap],
    *,
    policies: Policies,
    past: Past,
    to: QemuTree | None = None,
) -> HostPlan:
    """The plan to swap these. Every guest that runs is held if one of them asks for that; to: brought there as well.

    One that cannot be held leaves for the time of the swap, by the least disruptive method that its policy allows. The
    guests go on in the order of their priority.
    """
    seconds = sum(past.swap_seconds(swap.change.name, swap.first_seconds) for swap in swaps)
    kernel = next((swap.kernel for swap in swaps if swap.kernel), None)
    guests: tuple[GuestPlan, ...] = ()
    if any(swap.holds for swap in swaps):
        guests = _Held(host, policies, past, seconds, kernel, to).guests()
    blockers = host_blockers(host)
    if kernel is not None:
        blockers += kernel_blockers(kernel)
    if any(swap.reconnects for swap in swaps) and (hook := reconnect_hook(host)):
        blockers += (hook,)
    blocked = [guest.name for guest in guests if guest.verdict is Verdict.BLOCKED]
    if blocked:
        hint = "see why below; or shut those down for the update"
        blockers += (Blocker(Reason.HOST, "every guest that runs to be held", ", ".join(blocked), hint),)
    return HostPlan(
        asked,
        tuple(swap.change for swap in swaps),
        to,
        guests,
        blockers,
        tuple(swap.change.name for swap in swaps),
        seconds,
    )


def plan_everything(
    host: Host, swaps: Sequence[Swap], *, policies: Policies, past: Past
) -> tuple[Plan | HostPlan, ...]:
    """The plans that bring everything up to date, in order: with the fewest pauses, and the shortest.

    What pauses nobody comes first. If guests have to be held for something they are held once for all of it, and come
    back on the system's own QEMU; else they are handed over to that.
    """
    quiet = tuple(
        plan_host(host, swap.change.name, [swap], policies=policies, past=past) for swap in swaps if not swap.holds
    )
    holding = sorted((swap for swap in swaps if swap.holds), key=lambda swap: swap.kernel is not None)
    if holding and holding[-1].kernel:  # last: nothing comes after it; and it brings its own modules
        holding = [swap for swap in holding if swap.change.name != "kvm"]
    qemu = host.system_qemu
    outdated = [
        guest.name
        for guest in host.guests
        if qemu and guest.state.active and not (guest.qemu and guest.qemu.is_build_of(qemu))
    ]
    if holding:
        to = qemu if outdated else None
        held = plan_host(host, "all", holding, policies=policies, past=past, to=to)
        return (*quiet, held)
    if outdated and qemu:
        return (*quiet, plan_qemu(host, qemu, None, policies=policies, past=past))
    return quiet


@dataclass(frozen=True)
class _Held:
    """Guests that are held together, and those that leave meanwhile."""

    host: Host
    policies: Policies
    past: Past
    swap_seconds: float
    kernel: KernelSwap | None
    to: QemuTree | None

    def guests(self) -> tuple[GuestPlan, ...]:
        running = [guest for guest in self.host.guests if guest.state.active]
        apart = who_leaves([place_of(guest, self.policies) for guest in running])
        against = {guest.uuid: self._against(guest, apart.get(guest.name)) for guest in running}
        alone = {
            guest.uuid: predict(guest.uuid, self.past, technique=Technique.HOLD)
            for guest in running
            if not against[guest.uuid]
        }
        # Each stands still until all are saved, the swap is done and all are restored.
        together = self.swap_seconds + sum(prediction.pause_seconds for prediction in alone.values())
        planned: list[GuestPlan] = []
        for guest in self.policies.in_order(self.host.guests):
            ways: tuple[Way, ...] = ()
            if guest.state.active:
                predicted = replace(alone[guest.uuid], pause_seconds=together) if guest.uuid in alone else None
                leaving = leaving_of(planned, running, self.host.destinations)
                ways = self._ways(guest, predicted, against[guest.uuid], apart.get(guest.name), leaving)
            planned.append(self._planned(guest, ways))
        return tuple(planned)

    def _against(self, guest: Guest, apart: str | None) -> tuple[Blocker, ...]:
        """Why it cannot be held; its budget aside."""
        blockers = hold_blockers(self.host, guest, in_place_blockers(self.host, guest))
        if self.kernel is not None and (gone := ram_outlives(guest, self.kernel.ram_outlives_in)):
            blockers += (gone,)
        blockers += policy_blockers(guest, self.policies.of(guest), Method.IN_PLACE)
        return blockers if apart is None else (*blockers, _not_together(guest, apart))

    def _ways(
        self,
        guest: Guest,
        predicted: Prediction | None,
        against: tuple[Blocker, ...],
        apart: str | None,
        leaving: Sequence[Leaving],
    ) -> tuple[Way, ...]:
        own = self.policies.of(guest)
        if predicted and (too_long := over_budget(predicted, own.policy.budget_seconds)):
            against = (too_long,)
        reboot = reboot_way(guest, own)
        migrate = migrate_way(guest, own, self.host.destinations, self.past, to=self.to or guest.qemu, leaving=leaving)
        if self.to is None and (unknown := binary(guest)):  # nobody knows what it would be on again
            reboot = replace(reboot, blockers=(*reboot.blockers, unknown))
            migrate = replace(migrate, blockers=(*migrate.blockers, unknown))
        if apart is not None:  # it would be shut down just while those stand still
            reboot = replace(reboot, blockers=(*reboot.blockers, _not_together(guest, apart)))
        return Way(Method.IN_PLACE, Technique.HOLD, predicted, against), migrate, reboot

    def _planned(self, guest: Guest, ways: tuple[Way, ...]) -> GuestPlan:
        verdict = Verdict.NOT_RUNNING
        if ways:
            verdict = Verdict.BLOCKED if all(way.blockers for way in ways) else Verdict.UPDATE
        return plan_by_ladder(guest, self.policies.of(guest), verdict, ways)


def _not_together(guest: Guest, apart: str) -> Blocker:
    return Blocker(
        Reason.UPDATE_DOMAIN,
        expected="only guests that may be disturbed together, for a swap that holds all of them",
        found=apart,
        hint=f"move {guest.name} to another host first, or allow that: "
        f"hostagent guest set {shlex.quote(guest.name)} --allow in-place,in-place-copy,live-migrate",
    )
