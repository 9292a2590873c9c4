"""Facts in, plan out: what an update would do to each guest, and every reason why not more. Pure."""

from collections.abc import Iterable, Sequence

from hostagent.errors import UsageError
from hostagent.facts import Guest, Host, QemuTree
from hostagent.plan import Blocker, GuestPlan, Method, Plan, Technique, Verdict
from hostagent.planning.checks import guest_blockers, handover_blockers, host_blockers
from hostagent.planning.copy_checks import copy_blockers, ram_to_copy
from hostagent.planning.guest_policy import Policies, policy_blockers
from hostagent.planning.hold_checks import TAKEN, hold_blockers
from hostagent.planning.prediction import Past, over_budget, predict


def plan_qemu(
    host: Host,
    to: QemuTree,
    guests: Sequence[str] | None,
    *,
    policies: Policies,
    past: Past | None = None,
    technique: Technique | None = None,
) -> Plan:
    """The plan to bring the named guests, or all, onto a QEMU, in the order of their priority.

    UsageError for a name nobody has.

    past: what was measured on this host; given, each guest's next pause is predicted, and none begun with that would
    be over budget. technique: the only one to be used; None: a handover, or else a hold.
    """
    wanted = [(guest, to) for guest in policies.in_order(chosen_guests(host, guests))]
    planned = plan_guests(host, wanted, policies, past, technique=technique)
    return Plan(component="qemu", to=to, guests=planned, blockers=plan_blockers(host, planned))


def plan_blockers(host: Host, planned: Sequence[GuestPlan]) -> tuple[Blocker, ...]:
    """What stops every guest; what stops only handovers is none of that where some guest is held."""
    held = any(guest.technique is Technique.HOLD for guest in planned)
    return host_blockers(host) + (() if held else handover_blockers(host))


def plan_adoption(
    host: Host, guests: Sequence[str], *, policies: Policies, past: Past | None = None
) -> tuple[Plan, ...]:
    """The plans that put the RAM of guests into shared files, one for each QEMU that they run on, and stay on."""
    chosen = policies.in_order(chosen_guests(host, guests))
    same = [(guest, guest.qemu or host.qemu[0]) for guest in chosen]
    planned = plan_guests(host, same, policies, past, adopt=True, technique=Technique.HANDOVER)
    trees = dict.fromkeys(tree for _, tree in same)
    return tuple(
        Plan(
            component="qemu",
            to=tree,
            guests=tuple(guest for guest, (_, its) in zip(planned, same, strict=True) if its == tree),
            blockers=plan_blockers(host, planned),
            adopts=True,
        )
        for tree in trees
    )


def plan_guests(
    host: Host,
    wanted: Iterable[tuple[Guest, QemuTree]],
    policies: Policies,
    past: Past | None,
    *,
    adopt: bool = False,
    technique: Technique | None = None,
) -> tuple[GuestPlan, ...]:
    """What bringing each onto that QEMU would mean; what one needs room for is no room for the next."""
    planned: list[GuestPlan] = []
    for guest, to in wanted:
        promised = sum(other.copied_bytes for other in planned)
        made = guest_plan(host, guest, to, policies, past, promised=promised, adopt=adopt, technique=technique)
        planned.append(made)
    return tuple(planned)


def chosen_guests(host: Host, names: Sequence[str] | None) -> tuple[Guest, ...]:
    """The guests of these names in the order given, each once; all of the host's for None."""
    if names is None:
        return host.guests
    known = {guest.name: guest for guest in host.guests}
    unknown = [name for name in dict.fromkeys(names) if name not in known]
    if unknown:
        raise UsageError(
            "choosing guests",
            expected=f"one of {_listed(known)}",
            found=_listed(unknown),
            hint="virsh list --all",
        )
    return tuple(known[name] for name in dict.fromkeys(names))


def in_place_blockers(host: Host, guest: Guest, *, promised: int = 0) -> tuple[Blocker, ...]:
    """Every reason why the guest cannot be updated in place; `promised`: see guest_plan."""
    ram = ram_to_copy(guest)
    return guest_blockers(guest) + (copy_blockers(guest, ram, host, promised) if ram else ())


def guest_plan(
    host: Host,
    guest: Guest,
    to: QemuTree,
    policies: Policies,
    past: Past | None = None,
    *,
    promised: int = 0,
    adopt: bool = False,
    technique: Technique | None = None,
) -> GuestPlan:
    """What bringing a guest onto a QEMU would mean for it.

    promised: bytes that others of the update need for copies of their RAM. adopt: RAM that is in no file goes there,
    also on the QEMU that the guest is on. technique: the only one to be used; None: a handover, or else a hold.
    """
    ram, verdict, own = ram_to_copy(guest), Verdict.UPDATE, policies.of(guest)
    method = Method.IN_PLACE_COPY if ram else Method.IN_PLACE
    chosen, blockers = _technique(host, guest, promised, technique)
    blockers += policy_blockers(guest, own, method)
    predicted = predict(guest.uuid, past, ram, chosen) if past is not None else None
    if not guest.state.active:
        verdict, blockers = Verdict.NOT_RUNNING, ()
    elif guest.qemu is not None and guest.qemu.is_build_of(to) and not (adopt and ram):
        verdict, blockers = Verdict.UP_TO_DATE, ()
    elif not blockers and predicted and (too_long := over_budget(predicted, own.policy.budget_seconds)):
        blockers = (too_long,)
    if blockers:
        verdict = Verdict.BLOCKED
    updates = verdict is Verdict.UPDATE
    return GuestPlan(
        name=guest.name,
        uuid=guest.uuid,
        verdict=verdict,
        method=method if updates else None,
        technique=chosen if updates else None,
        before=guest.qemu,
        blockers=blockers,
        budget_seconds=own.policy.budget_seconds,
        predicted=predicted if updates else None,
        copied_bytes=ram if updates else 0,
        clock=own.policy.clock,
    )


def way_of(host: Host, guest: Guest, policies: Policies) -> tuple[Technique, tuple[Blocker, ...]]:
    """How the guest would be updated in place, and every reason why it cannot."""
    method = Method.IN_PLACE_COPY if ram_to_copy(guest) else Method.IN_PLACE
    technique, blockers = _technique(host, guest, 0, None)
    return technique, blockers + policy_blockers(guest, policies.of(guest), method)


def _technique(
    host: Host, guest: Guest, promised: int, wanted: Technique | None
) -> tuple[Technique, tuple[Blocker, ...]]:
    """How the guest would go, and every reason why it cannot."""
    of_guest = in_place_blockers(host, guest, promised=promised)
    against_handover = (*of_guest, *handover_blockers(host))
    against_hold = hold_blockers(host, guest, of_guest)
    if wanted is Technique.HANDOVER or (wanted is None and not against_handover):
        return Technique.HANDOVER, of_guest
    if wanted is Technique.HOLD or not against_hold:
        return Technique.HOLD, against_hold
    helps = of_guest and all(blocker.reason in TAKEN for blocker in of_guest)
    return Technique.HANDOVER, tuple(dict.fromkeys((*of_guest, *against_hold))) if helps else of_guest


def choose_tree(trees: Sequence[QemuTree], wanted: str) -> QemuTree:
    """The QEMU that a person means: a tree's name, a version, or the beginning of one ("10.0").

    UsageError that names what there is when none or several fit.
    """
    for fits in (_has_name, _has_version, _has_version_prefix):
        found = _each_build_once([tree for tree in trees if fits(tree, wanted)])
        if len(found) == 1:
            return found[0]
        if found:
            raise _unclear(wanted, found, f"{wanted!r}, which is {len(found)} of them")
    raise _unclear(wanted, trees, repr(wanted))


def _each_build_once(trees: Sequence[QemuTree]) -> list[QemuTree]:
    """The system's own comes first, before a tree that was kept of it."""
    found: list[QemuTree] = []
    for tree in trees:
        if not any(tree.is_build_of(other) for other in found):
            found.append(tree)
    return found


def _has_name(tree: QemuTree, wanted: str) -> bool:
    return tree.name == wanted


def _has_version(tree: QemuTree, wanted: str) -> bool:
    return wanted in (str(tree.version), tree.package)


def _has_version_prefix(tree: QemuTree, wanted: str) -> bool:
    return bool(wanted) and f"{tree.version}.".startswith(f"{wanted}.")


def _unclear(wanted: str, trees: Sequence[QemuTree], found: str) -> UsageError:
    there = [f"{tree.name} ({tree.version})" for tree in trees]
    return UsageError(
        f"choosing a QEMU for {wanted!r}",
        expected=f"one of {_listed(there)}",
        found=found,
        hint="name a tree, or add that version to the host first",
    )


def _listed(words: Iterable[str]) -> str:
    return ", ".join(sorted(words)) or "none"
