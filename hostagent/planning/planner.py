"""Facts in, plan out: what an update would do to each guest, and every reason why not more. Pure."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from hostagent.errors import UsageError
from hostagent.facts import Guest, Host, QemuTree
from hostagent.plan import Blocker, GuestPlan, Method, Plan, Technique, Verdict
from hostagent.planning.checks import handover_blockers, host_blockers
from hostagent.planning.copy_checks import ram_to_copy
from hostagent.planning.guest_policy import Policies
from hostagent.planning.ladder import plan_by_ladder, ways_of
from hostagent.planning.migrate_way import Leaving, leaving_of
from hostagent.planning.prediction import Past


def plan_qemu(
    host: Host,
    to: QemuTree,
    guests: Sequence[str] | None,
    *,
    policies: Policies,
    past: Past | None = None,
    technique: Technique | None = None,
    methods: Collection[Method] | None = None,
) -> Plan:
    """The plan to bring the named guests, or all, onto a QEMU, in the order of their priority.

    UsageError for a name nobody has.

    past: what was measured on this host; given, each guest's next pause is predicted, and none begun with that would
    be over budget. technique: the only one to be used in place; None: a handover, or else a hold. methods: the only
    ones to be used; None: all that its policy allows.
    """
    wanted = [(guest, to) for guest in policies.in_order(chosen_guests(host, guests))]
    planned = plan_guests(host, wanted, policies, past, technique=technique, methods=methods)
    return Plan("qemu", to, *without_blocked_in_place(host, planned))


def without_blocked_in_place(
    host: Host, planned: Sequence[GuestPlan]
) -> tuple[tuple[GuestPlan, ...], tuple[Blocker, ...]]:
    """The guests, and what of the host stops them all; where some go in another way that stops only the others."""
    against = plan_blockers(host, planned)
    if not against:
        return tuple(planned), ()
    otherwise = tuple(_otherwise(guest, against) for guest in planned)
    if any(guest.verdict is Verdict.UPDATE for guest in otherwise):
        return otherwise, ()
    return tuple(planned), against


def _otherwise(guest: GuestPlan, against: tuple[Blocker, ...]) -> GuestPlan:
    """What becomes of it where nobody can be updated in place: the next rung of its ladder, if there is one."""
    if guest.method is None or not guest.method.in_place:
        return guest
    ways = tuple(replace(way, blockers=against) if way.method is guest.method else way for way in guest.ways)
    guest = replace(guest, ways=ways)
    if guest.lower:
        return guest.by(guest.lower[0])
    return replace(
        guest, verdict=Verdict.BLOCKED, method=None, technique=None, predicted=None, copied_bytes=0, blockers=against
    )


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
    planned = plan_guests(
        *(host, same, policies, past),
        adopt=True,
        technique=Technique.HANDOVER,
        methods=[method for method in Method if method.in_place],
    )
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
    methods: Collection[Method] | None = None,
) -> tuple[GuestPlan, ...]:
    """What bringing each onto that QEMU would mean; what one needs room for is no room for the next."""
    planned: list[GuestPlan] = []
    for guest, to in wanted:
        promised = sum(other.copied_bytes for other in planned)
        planned.append(
            guest_plan(
                *(host, guest, to, policies, past),
                promised=promised,
                leaving=leaving_of(planned, host.guests, host.destinations),
                adopt=adopt,
                technique=technique,
                methods=methods,
            )
        )
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


def guest_plan(
    host: Host,
    guest: Guest,
    to: QemuTree,
    policies: Policies,
    past: Past | None = None,
    *,
    promised: int = 0,
    leaving: Sequence[Leaving] = (),
    adopt: bool = False,
    technique: Technique | None = None,
    methods: Collection[Method] | None = None,
) -> GuestPlan:
    """What bringing a guest onto a QEMU would mean for it.

    promised, leaving, technique, methods: as for its ladder. adopt: RAM that is in no file goes there, also on the
    QEMU that the guest is on.
    """
    own = policies.of(guest)
    ways = ways_of(
        *(host, guest, own, past),
        to=to,
        promised=promised,
        leaving=leaving,
        technique=technique,
        methods=methods,
    )
    verdict = Verdict.UPDATE
    if not guest.state.active:
        verdict = Verdict.NOT_RUNNING
    elif guest.qemu is not None and guest.qemu.is_build_of(to) and not (adopt and ram_to_copy(guest)):
        verdict = Verdict.UP_TO_DATE
    elif all(way.blockers for way in ways):
        verdict = Verdict.BLOCKED
    return plan_by_ladder(guest, own, verdict, ways)


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
        hint="hostagent qemu list; to have another one: hostagent qemu fetch, or hostagent qemu add",
    )


def _listed(words: Iterable[str]) -> str:
    return ", ".join(sorted(words)) or "none"
