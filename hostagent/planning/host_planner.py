"""Facts in, plan out, for what is swapped for the whole host: who is held meanwhile, and for how long. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hostagent.facts import Component, Guest, Host, QemuTree
from hostagent.plan import Blocker, GuestPlan, HostPlan, Method, Plan, Prediction, Reason, Technique, Verdict
from hostagent.planning.checks import host_blockers, reconnect_hook
from hostagent.planning.guest_policy import GuestPolicy, Policies, policy_blockers
from hostagent.planning.hold_checks import hold_blockers
from hostagent.planning.kernel_checks import KernelSwap, kernel_blockers, ram_outlives
from hostagent.planning.ladder import in_place_blockers
from hostagent.planning.planner import plan_qemu
from hostagent.planning.prediction import Past, over_budget, predict


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

    The guests go on in the order of their priority.
    """
    seconds = sum(past.swap_seconds(swap.change.name, swap.first_seconds) for swap in swaps)
    running = [guest for guest in host.guests if guest.state.active]
    kernel = next((swap.kernel for swap in swaps if swap.kernel), None)
    guests: tuple[GuestPlan, ...] = ()
    if any(swap.holds for swap in swaps):
        alone = {guest.uuid: predict(guest.uuid, past, technique=Technique.HOLD) for guest in running}
        # Each stands still until all are saved, the swap is done and all are restored.
        together = seconds + sum(prediction.pause_seconds for prediction in alone.values())
        guests = tuple(
            _planned(host, guest, alone.get(guest.uuid), together, own=policies.of(guest), kernel=kernel)
            for guest in policies.in_order(host.guests)
        )
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


def _planned(
    host: Host,
    guest: Guest,
    alone: Prediction | None,
    together: float,
    *,
    own: GuestPolicy,
    kernel: KernelSwap | None,
) -> GuestPlan:
    predicted = None
    blockers: tuple[Blocker, ...] = ()
    verdict = Verdict.NOT_RUNNING
    if alone is not None:
        predicted = Prediction(together, alone.measured, alone.of_itself)
        blockers = hold_blockers(host, guest, in_place_blockers(host, guest))
        if kernel is not None and (gone := ram_outlives(guest, kernel.ram_outlives_in)):
            blockers += (gone,)
        blockers += policy_blockers(guest, own, Method.IN_PLACE)
        if not blockers and (too_long := over_budget(predicted, own.policy.budget_seconds)):
            blockers = (too_long,)
        verdict = Verdict.BLOCKED if blockers else Verdict.UPDATE
    updates = verdict is Verdict.UPDATE
    return GuestPlan(
        name=guest.name,
        uuid=guest.uuid,
        verdict=verdict,
        method=Method.IN_PLACE if updates else None,
        technique=Technique.HOLD if updates else None,
        before=guest.qemu,
        blockers=blockers,
        budget_seconds=own.policy.budget_seconds,
        predicted=predicted if updates else None,
        clock=own.policy.clock,
    )
