"""The ladder: which methods a guest could be updated by, and what is against each."""

from __future__ import annotations

from dataclasses import replace

from called import Caller
from hypothesis import given
from hypothesis import strategies as st
from journals import OLD

from hostagent.facts import Component, Destinations, Freshness, Guest, GuestState, Host, Peer, RamRoom, Version
from hostagent.hypervisor.fake_metadata import in_namespace
from hostagent.plan import Blocker, GuestPlan, HostPlan, Method, Plan, Reason, Technique, Verdict, Way
from hostagent.planning.guest_policy import Policies
from hostagent.planning.held_together import who_leaves
from hostagent.planning.host_planner import Swap, plan_host
from hostagent.planning.ladder import ways_of
from hostagent.planning.planner import plan_qemu
from hostagent.planning.prediction import Past
from hostagent.planning.rolling import Rolling, place_of, rolled
from hostagent.planning.update_domains import are_apart
from hostagent.policy import Allowed, PolicyPart
from hostagent.policy_xml import written_policy
from tests.unit import sampled

NEW = replace(sampled.TREE, name="10.0.2", version=Version(10, 0, 2), package="1:10.0.2", emulator="/q/10")
SWAP = Swap(Component("modules", "1", "2", Freshness.OUTDATED), holds=True, first_seconds=1.0)
NAMES = ("a", "b", "c", "d", "e")

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


# -- any guests, policies and blockers ----------------------------------------------------------------------------


@st.composite
def _guests(draw: st.DrawFn) -> tuple[Guest, ...]:
    return tuple(draw(_guest(name)) for name in NAMES[: draw(st.integers(1, len(NAMES)))])


@st.composite
def _guest(draw: st.DrawFn, name: str) -> Guest:
    plain = sampled.guest(draw(st.sampled_from(("q35-plain", "anonymous", "q35-rich", "prealloc"))))
    own = PolicyPart(
        allow=draw(st.none() | st.frozensets(st.sampled_from(Allowed))),
        budget_seconds=draw(st.sampled_from((None, 0.01, 1.0, 300.0))),
        availability_set=draw(st.sampled_from((None, "web", "db"))),
        update_domain=draw(st.sampled_from((None, "1", "2", "3"))),
        never_together=draw(st.none() | st.frozensets(st.sampled_from(NAMES), max_size=2)),
        priority=draw(st.none() | st.integers(-2, 2)),
    )
    return replace(
        plain,
        name=name,
        uuid=f"00000000-0000-4000-8000-00000000000{NAMES.index(name)}",
        definition=replace(plain.definition, policy=in_namespace(written_policy(own))),
        state=draw(st.sampled_from((GuestState.RUNNING, GuestState.RUNNING, GuestState.SHUT_OFF))),
        job=draw(st.sampled_from(("", "", "a backup"))),
        snapshots=draw(st.sampled_from((0, 0, 1))),
    )


@st.composite
def _hosts(draw: st.DrawFn) -> Host:
    guests = draw(_guests())
    machines = frozenset((one.definition.virtualisation, one.definition.machine) for one in guests)
    peer = Peer(
        name="b",
        uri="qemu+tls://b/system",
        fault=draw(st.sampled_from(("", "", "no route to host"))),
        shared=("/",),
        qemu=sampled.TREE.version,
        machines=machines,
        memory_left=draw(st.sampled_from((1 << 28, 1 << 31, 1 << 36))),
        networks=frozenset({"default"}),
    )
    return sampled.host(
        guests=guests,
        qemu=(sampled.TREE, NEW),
        hold_hook=draw(st.booleans()),
        lock_manager=draw(st.sampled_from(("", "", "sanlock"))),
        reconnect_hook=draw(st.booleans()),
        ram_room=RamRoom("tmpfs", unpromised=draw(st.sampled_from((0, 64 << 30))), available=64 << 30),
        destinations=Destinations(
            (peer,) * draw(st.integers(0, 1)), home_uri="qemu+tls://a/system", lossy_emulation=draw(st.booleans())
        ),
    )


def _require_sound(host: Host, plan: Plan | HostPlan) -> None:
    assert sorted(one.name for one in plan.guests) == sorted(one.name for one in host.guests)
    known = {guest.uuid: guest for guest in host.guests}
    for one in plan.guests:
        allow = Policies().of(known[one.uuid]).policy.allow
        if one.verdict is Verdict.UPDATE:
            assert one.method is not None
            assert Allowed(one.method) in allow
            (way,) = (way for way in one.ways if way.method is one.method)
            assert not way.blockers
            assert (one.technique is not None) == one.method.in_place
            assert bool(one.peer) == (one.method is Method.LIVE_MIGRATE)
            above = one.ways[: one.ways.index(way)]
            assert all(higher.blockers or (plan_is_stopped(plan) and higher.method.in_place) for higher in above)
            assert all(Allowed(lower.method) in allow for lower in one.lower)
        elif one.verdict is Verdict.BLOCKED:
            assert one.blockers
            assert all(way.blockers or way.method.in_place for way in one.ways)


def plan_is_stopped(plan: Plan | HostPlan) -> bool:
    return bool(plan.blockers)


@given(_hosts())
def test_nobody_is_updated_by_a_method_that_is_not_allowed_or_not_possible(host: Host) -> None:
    _require_sound(host, plan_qemu(host, NEW, None, policies=Policies(), past=Past()))


@given(_hosts())
def test_nobody_is_held_or_leaves_by_one_either(host: Host) -> None:
    plan = plan_host(host, "modules", [SWAP], policies=Policies(), past=Past())
    _require_sound(host, plan)
    known = {guest.uuid: guest for guest in host.guests}
    apart = who_leaves([place_of(guest, Policies()) for guest in host.guests if guest.state.active])
    disturbed = [known[one.uuid] for one in plan.to_update if one.method is not Method.LIVE_MIGRATE]
    assert not any(guest.name in apart for guest in disturbed)


@given(_hosts(), st.integers(0, 3), st.sampled_from(("", "1", "2")))
def test_groups_keep_update_domains_apart(host: Host, limit: int, canary: str) -> None:
    plan = plan_qemu(host, NEW, None, policies=Policies(), past=Past())
    groups = rolled(plan, host, Policies(), Rolling(limit, canary)).groups
    assert sorted(name for group in groups for name in group) == sorted(one.name for one in plan.to_update)
    places = {guest.name: place_of(guest, Policies()) for guest in host.guests}
    for group in groups:
        for one in group:
            for other in set(group) - {one}:
                mine, theirs = places[one], places[other]
                assert not are_apart(mine, theirs)
                same = mine.availability_set and mine.availability_set == theirs.availability_set
                assert not same or mine.domain == theirs.domain


# -- guests that are easy to see -----------------------------------------------------------------------------------


def _allowing(name: str, *methods: Allowed) -> Guest:
    plain = sampled.guest("anonymous")
    policy = in_namespace(written_policy(PolicyPart(allow=frozenset(methods), boot_tcp="10.0.0.5:22")))
    return replace(plain, name=name, definition=replace(plain.definition, policy=policy))


def test_one_too_large_for_a_copy_goes_to_a_peer() -> None:
    emulated = _allowing("web1", *Allowed)
    guest = replace(emulated, definition=replace(emulated.definition, virtualisation="kvm"))
    peer = Peer(
        name="b",
        uri="qemu+tls://b/system",
        shared=("/",),
        qemu=sampled.TREE.version,
        machines=frozenset({(guest.definition.virtualisation, guest.definition.machine)}),
        memory_left=64 << 30,
    )
    host = sampled.host(
        guests=(guest,),
        ram_room=RamRoom("tmpfs", unpromised=1 << 20, available=64 << 30),
        destinations=Destinations((peer,), home_uri="qemu+tls://a/system"),
    )
    (planned,) = plan_qemu(host, NEW, None, policies=Policies(), past=Past()).guests
    assert (planned.method, planned.peer) == (Method.LIVE_MIGRATE, "b")
    assert [blocker.reason for blocker in planned.ways[0].blockers] == [Reason.RAM_ROOM]
    assert [way.method for way in planned.lower] == [Method.REBOOT]


def test_what_stops_the_whole_host_in_place_stops_only_those_without_another_way() -> None:
    plain = sampled.guest()
    kept = replace(plain, name="web1", uuid="u1")
    started = replace(_allowing("web2", Allowed.REBOOT), uuid="u2")
    own = in_namespace(written_policy(PolicyPart(allow=frozenset(Allowed), boot_tcp="10.0.0.5:22")))
    either = replace(kept, name="web3", uuid="u3", definition=replace(plain.definition, policy=own))
    host = sampled.host(guests=(kept, started, either), lock_manager="sanlock")
    plan = plan_qemu(host, NEW, None, policies=Policies())
    assert plan.blockers == ()
    assert [(one.name, one.verdict, one.method) for one in plan.guests] == [
        ("web1", Verdict.BLOCKED, None),
        ("web2", Verdict.UPDATE, Method.REBOOT),
        ("web3", Verdict.UPDATE, Method.REBOOT),
    ]
    assert [blocker.reason for blocker in plan.guests[0].blockers] == [Reason.LOCK_MANAGER]


def test_a_guest_that_no_method_fits_is_said_with_every_reason_and_nothing_is_touched(hostagent: Caller) -> None:
    one = replace(_allowing("web1", Allowed.LIVE_MIGRATE), qemu=OLD)
    hostagent.host = replace(hostagent.host, guests=(one,))
    hostagent.updates_by(AssertionError)  # type: ignore[arg-type]
    done = hostagent("update", "qemu", "--to", "10.0", "--guest", "web1", "--yes")
    assert done.exit_code == 3
    said = " ".join(done.stdout.split())
    assert "in-place-copy expected a policy that allows in-place-copy" in said
    assert "live-migrate expected a host to migrate to, found no [[peer]] in the settings" in said
    assert "reboot expected a policy that allows reboot" in said
    assert not hostagent.plans


def test_a_refusal_says_what_is_against_the_methods_that_were_asked_for(hostagent: Caller) -> None:
    hostagent.host = replace(hostagent.host, guests=(replace(_allowing("web1", *Allowed), qemu=OLD),))
    hostagent.updates_by(AssertionError)  # type: ignore[arg-type]
    done = hostagent("update", "qemu", "--to", "10.0", "--guest", "web1", "--method", "live-migrate", "--yes")
    assert done.exit_code == 3
    assert "web1: peer" in done.stderr
    assert "not-asked" not in done.stderr
