"""Facts in, plan out: what an update would do to each guest, and every reason why not more. Pure."""

from collections.abc import Iterable, Sequence

from hostagent.errors import UsageError
from hostagent.facts import Guest, Host, QemuTree
from hostagent.plan import GuestPlan, Method, Plan, Technique, Verdict
from hostagent.planning.checks import guest_blockers, host_blockers
from hostagent.planning.prediction import Pauses, over_budget, predict


def plan_qemu(
    host: Host, to: QemuTree, guests: Sequence[str] | None, *, budget_seconds: float, pauses: Pauses | None = None
) -> Plan:
    """The plan to bring the named guests, or all, onto a QEMU; UsageError for a name nobody has.

    pauses: those measured on this host; given, each guest's next one is predicted, and none begun with that would
    be over budget.
    """
    chosen = tuple(guest_plan(guest, to, budget_seconds, pauses) for guest in chosen_guests(host, guests))
    return Plan(component="qemu", to=to, guests=chosen, blockers=host_blockers(host))


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


def guest_plan(guest: Guest, to: QemuTree, budget_seconds: float, pauses: Pauses | None = None) -> GuestPlan:
    """What bringing a guest onto a QEMU would mean for it."""
    verdict, blockers = Verdict.UPDATE, guest_blockers(guest)
    predicted = predict(guest.uuid, pauses) if pauses is not None else None
    if not guest.state.active:
        verdict, blockers = Verdict.NOT_RUNNING, ()
    elif guest.qemu is not None and guest.qemu.is_build_of(to):
        verdict, blockers = Verdict.UP_TO_DATE, ()
    elif not blockers and predicted and (too_long := over_budget(predicted, budget_seconds)):
        blockers = (too_long,)
    if blockers:
        verdict = Verdict.BLOCKED
    updates = verdict is Verdict.UPDATE
    return GuestPlan(
        name=guest.name,
        uuid=guest.uuid,
        verdict=verdict,
        method=Method.IN_PLACE if updates else None,
        technique=Technique.HANDOVER if updates else None,
        before=guest.qemu,
        blockers=blockers,
        budget_seconds=budget_seconds,
        predicted=predicted if updates else None,
    )


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
