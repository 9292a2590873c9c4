"""The way back: for each guest of an update, the QEMU that it came from. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hostagent.facts import Host, QemuTree
from hostagent.plan import Blocker, GuestPlan, Plan, Reason, Verdict
from hostagent.planning.guest_policy import Policies
from hostagent.planning.planner import guest_plan, without_blocked_in_place
from hostagent.planning.prediction import Past


def not_kept(host: Host) -> QemuTree | None:
    """The system's own QEMU, if guests run on it and nothing is kept of that build: its next upgrade would take it.

    Not one that is of no package: nobody knows which files it needs.
    """
    own = host.system_qemu
    runs = own is not None and own.package and any(guest.qemu == own for guest in host.guests)
    return own if runs and not host.copies_of_system_qemu else None


def plan_way_back(
    host: Host,
    came_from: Mapping[str, QemuTree | None],
    went_to: QemuTree,
    *,
    policies: Policies,
    undoes: str = "",
    past: Past | None = None,
) -> tuple[Plan, ...]:
    """The plans that bring guests back, one for each QEMU that some of them came from.

    came_from: the guests that an update brought to `went_to`, by uuid, and what each ran on before. A guest that is
    gone is not in a plan; one that somebody has brought elsewhere since stays there.
    """
    known = {guest.uuid: guest for guest in host.guests}
    there_still = [known[uuid] for uuid in came_from if uuid in known]
    plans: dict[QemuTree, list[GuestPlan]] = {}
    for guest in policies.in_order(there_still):
        before = came_from[guest.uuid]
        if before is None:
            continue
        there = same_build(before, host.qemu)
        promised = sum(other.copied_bytes for planned in plans.values() for other in planned)
        planned = guest_plan(host, guest, there or before, policies, past, promised=promised)
        planned = _unless_elsewhere(planned, went_to) if there else _no_way(planned, before)
        plans.setdefault(there or before, []).append(planned)
    return tuple(Plan("qemu", to, *without_blocked_in_place(host, planned), undoes) for to, planned in plans.items())


def same_build(wanted: QemuTree, trees: Sequence[QemuTree]) -> QemuTree | None:
    """The very QEMU, or another tree of the same package: the system's own is replaced by an upgrade."""
    if wanted in trees:
        return wanted
    return next((tree for tree in trees if tree.is_build_of(wanted)), None)


def _unless_elsewhere(planned: GuestPlan, went_to: QemuTree) -> GuestPlan:
    elsewhere = planned.before is not None and not planned.before.is_build_of(went_to)
    return _staying(planned, Verdict.MOVED_ON) if elsewhere and planned.verdict is Verdict.UPDATE else planned


def _no_way(planned: GuestPlan, before: QemuTree) -> GuestPlan:
    gone = Blocker(
        Reason.BINARY,
        expected=f"QEMU {before.version} ({before.package or before.name}) on this host",
        found="none of that build",
        hint="hostagent qemu fetch, or qemu add with the packages of that version",
    )
    return planned if planned.verdict is Verdict.NOT_RUNNING else _staying(planned, Verdict.BLOCKED, gone)


def _staying(planned: GuestPlan, verdict: Verdict, *more: Blocker) -> GuestPlan:
    return GuestPlan(
        name=planned.name,
        uuid=planned.uuid,
        verdict=verdict,
        method=None,
        technique=None,
        before=planned.before,
        blockers=(*planned.blockers, *more),
        budget_seconds=planned.budget_seconds,
        clock=planned.clock,
    )
