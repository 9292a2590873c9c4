"""A guest's ladder: the methods for it, the least disruptive first, and what is against each. Pure.

The first rung that nothing is against is taken; those below it are for when it fails.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from hostagent.facts import Guest, Host, QemuTree
from hostagent.plan import Blocker, GuestPlan, Method, Reason, Technique, Verdict, Way
from hostagent.planning.checks import guest_blockers, handover_blockers
from hostagent.planning.copy_checks import copy_blockers, ram_to_copy
from hostagent.planning.guest_policy import GuestPolicy, policy_blockers
from hostagent.planning.hold_checks import TAKEN, hold_blockers
from hostagent.planning.migrate_way import Leaving, migrate_way
from hostagent.planning.prediction import Past, over_budget, predict
from hostagent.planning.reboot_way import reboot_way


def ways_of(
    host: Host,
    guest: Guest,
    own: GuestPolicy,
    past: Past | None = None,
    *,
    to: QemuTree | None = None,
    promised: int = 0,
    leaving: Sequence[Leaving] = (),
    technique: Technique | None = None,
    methods: Collection[Method] | None = None,
) -> tuple[Way, ...]:
    """The ladder of a guest that runs.

    to: what it is to run on; None: that does not matter. promised: bytes that others of the update need for copies of
    their RAM. leaving: others that go to peers. technique: the only one to be used in place; None: a handover, or else
    a hold. methods: the only ones to be used; None: any.
    """
    ways = (
        in_place_way(host, guest, own, past, promised=promised, technique=technique),
        migrate_way(guest, own, host.destinations, past, to=to, leaving=leaving),
        reboot_way(guest, own),
    )
    return tuple(_unless_asked_for_others(way, methods) for way in ways)


def plan_by_ladder(guest: Guest, own: GuestPolicy, verdict: Verdict, ways: tuple[Way, ...]) -> GuestPlan:
    """What will be done to a guest that has that ladder: the first way that nothing is against, if it is updated."""
    chosen = next((way for way in ways if not way.blockers), None) if verdict is Verdict.UPDATE else None
    return GuestPlan(
        name=guest.name,
        uuid=guest.uuid,
        verdict=verdict,
        method=chosen.method if chosen else None,
        technique=chosen.technique if chosen else None,
        before=guest.qemu,
        blockers=ways[0].blockers if verdict is Verdict.BLOCKED else (),
        budget_seconds=own.policy.budget_seconds,
        predicted=chosen.predicted if chosen else None,
        copied_bytes=chosen.copied_bytes if chosen else 0,
        clock=own.policy.clock,
        ways=ways if verdict in (Verdict.UPDATE, Verdict.BLOCKED) else (),
        peer=chosen.peer if chosen else "",
        copied_disks=chosen.copied_disks if chosen else (),
        boot_tcp=own.policy.boot_tcp,
    )


def in_place_way(
    host: Host,
    guest: Guest,
    own: GuestPolicy,
    past: Past | None = None,
    *,
    promised: int = 0,
    technique: Technique | None = None,
) -> Way:
    """How the guest would go with its memory on its host, and every reason of its own why it cannot."""
    ram = ram_to_copy(guest)
    method = Method.IN_PLACE_COPY if ram else Method.IN_PLACE
    chosen, blockers = _technique(host, guest, promised, technique)
    blockers += policy_blockers(guest, own, method)
    predicted = predict(guest.uuid, past, ram, chosen) if past is not None else None
    if not blockers and predicted and (too_long := over_budget(predicted, own.policy.budget_seconds)):
        blockers = (too_long,)
    return Way(method, chosen, predicted, blockers, copied_bytes=ram)


def in_place_blockers(host: Host, guest: Guest, *, promised: int = 0) -> tuple[Blocker, ...]:
    """Every reason of the guest's own why it cannot be updated in place; `promised`: see ways_of."""
    ram = ram_to_copy(guest)
    return guest_blockers(guest) + (copy_blockers(guest, ram, host, promised) if ram else ())


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


def _unless_asked_for_others(way: Way, methods: Collection[Method] | None) -> Way:
    if methods is None or way.method in methods:
        return way
    wanted = ", ".join(method for method in Method if method in methods)
    return replace(way, blockers=(*way.blockers, Blocker(Reason.NOT_ASKED, f"to be updated by {wanted}", way.method)))
