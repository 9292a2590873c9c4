"""The ladder: which methods a guest could be updated by, and what is against each."""

from __future__ import annotations

from dataclasses import replace

from hostagent.plan import Blocker, GuestPlan, Method, Reason, Technique, Verdict, Way
from hostagent.planning.guest_policy import Policies
from hostagent.planning.ladder import ways_of
from hostagent.planning.planner import plan_qemu
from tests.unit import sampled

AGAINST = Blocker(Reason.POLICY, "one thing", "another")


def test_only_the_methods_asked_for_are_used() -> None:
    host = sampled.host()
    guest = next(guest for guest in host.guests if guest.state.active)
    free = ways_of(host, guest, Policies().of(guest))
    assert [way.blockers for way in free][:1] == [()]
    only = ways_of(host, guest, Policies().of(guest), methods=[Method.REBOOT])
    assert [blocker.reason for blocker in only[0].blockers] == [Reason.NOT_ASKED]
    plan = plan_qemu(host, host.qemu[-1], [guest.name], policies=Policies(), methods=[Method.REBOOT])
    assert plan.guests[0].verdict is not Verdict.UPDATE or plan.guests[0].method is Method.REBOOT


def test_lower_rungs_are_those_below_the_planned_one_that_nothing_is_against() -> None:
    ways = (
        Way(Method.IN_PLACE, Technique.HANDOVER, None, ()),
        Way(Method.LIVE_MIGRATE, None, None, (AGAINST,)),
        Way(Method.REBOOT, None, None, ()),
    )
    guest = GuestPlan("web1", "u", Verdict.UPDATE, Method.IN_PLACE, Technique.HANDOVER, None, (), 30.0, ways=ways)
    assert guest.lower == ways[2:]
    assert replace(guest, method=Method.REBOOT).lower == ()
    assert replace(guest, method=None).lower == (ways[0], ways[2])
