"""A guest's policy: what its metadata may say, how places add up, and what it forbids."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest
import sampled
from hypothesis import given
from hypothesis import strategies as st

from hostagent.errors import Refused
from hostagent.facts import Guest
from hostagent.hypervisor.domain_xml import read_definition
from hostagent.hypervisor.fake_metadata import in_namespace, with_policy
from hostagent.plan import ClockPolicy, Method, Reason, Technique, Verdict
from hostagent.planning.guest_policy import Policies, policy_blockers
from hostagent.planning.host_planner import Swap, plan_host
from hostagent.planning.ladder import in_place_way
from hostagent.planning.planner import plan_adoption, plan_qemu
from hostagent.planning.prediction import Past
from hostagent.planning.way_back import plan_way_back
from hostagent.policy import Allowed, Layer, PolicyPart, Setting, is_guest_name, merged, tcp_address
from hostagent.policy_xml import NAMESPACE, SIZE_LIMIT, read_policy, written_policy

NEW = replace(sampled.TREE, name="new", package="1:10.0", emulator="/new/qemu")
NAME = st.text("abzAZ019._-", min_size=1, max_size=64)
PART = st.builds(
    PolicyPart,
    allow=st.none() | st.frozensets(st.sampled_from(Allowed)),
    budget_seconds=st.none() | st.floats(1e-12, 3600.0),
    clock=st.none() | st.sampled_from(ClockPolicy),
    priority=st.none() | st.integers(-1000, 1000),
    availability_set=st.none() | NAME,
    update_domain=st.none() | NAME,
    never_together=st.none() | st.frozensets(st.text(min_size=1, max_size=128).filter(is_guest_name), max_size=64),
    boot_tcp=st.none() | st.builds("{}:{}".format, NAME | st.just("[fd00::5]"), st.integers(1, 65535)),
)


def policy(inside: str, root: str = "policy", namespace: str = NAMESPACE) -> str:
    return f'<h:{root} xmlns:h="{namespace}">{inside}</h:{root}>'


def saying(name: str = "web1", **said: Any) -> Guest:
    """A guest whose own policy says that."""
    return with_text(in_namespace(written_policy(PolicyPart(**said))), name)


def with_text(text: str, name: str = "web1") -> Guest:
    plain = sampled.guest(name="q35-rich")
    return replace(plain, name=name, uuid=f"uuid of {name}", definition=replace(plain.definition, policy=text))


# -- in the metadata


@given(PART)
def test_what_is_written_is_read(part: PolicyPart) -> None:
    text = in_namespace(written_policy(part))
    assert read_policy("web1", text) == part
    assert part.wrong() is None


def test_the_largest_is_read() -> None:
    names = frozenset(f"{number}".rjust(128, "&") for number in range(64))
    part = PolicyPart(frozenset(Allowed), 1.2345678901234567e-11, ClockPolicy.REPORT, -1000, *["x" * 64] * 2, names)
    part = replace(part, boot_tcp=f"{'x' * 253}:65535")
    assert part.wrong() is None
    assert read_policy("web1", in_namespace(written_policy(part))) == part


@given(st.text(max_size=60) | st.text("<>/h:policyallowbudget \"'=&;!", max_size=60))
def test_whatever_is_there_is_read_or_refused(text: str) -> None:
    for one in (text, policy(text), policy(f"<h:budget>{text}</h:budget>"), policy(f"<h:allow>{text}</h:allow>")):
        try:
            assert read_policy("web1", one).wrong() is None
        except Refused as refused:
            assert "guest 'web1'" in str(refused)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (policy("<h:quux>1</h:quux>"), "one of allow, budget, clock, priority, .* in <policy>, found 'quux'"),
        (policy('<budget xmlns="">1</budget>'), f"elements of {NAMESPACE}, found 'budget'"),
        (policy("<h:budget>1</h:budget><h:budget>1</h:budget>"), "<budget> once"),
        (policy("<h:budget>0</h:budget>"), "in <budget> a number of seconds above 0, at most 3600, found '0.0'"),
        (policy("<h:budget>3601</h:budget>"), "in <budget> a number"),
        (policy("<h:budget>nan</h:budget>"), "in <budget> a number of seconds .*, found 'nan'"),
        (policy("<h:budget>-1</h:budget>"), "in <budget> a number"),
        (policy("<h:budget>٣</h:budget>"), "in <budget> a number"),
        (policy("<h:budget/>"), "in <budget> a number of seconds .*, found ''"),
        (policy('<h:budget unit="ms">2</h:budget>'), "only a text in <budget>, found an attribute"),
        (policy("<h:budget><h:budget/></h:budget>"), "only a text in <budget>, found an element"),
        (policy("<h:clock>slew</h:clock>"), "in <clock> step, report or off, found 'slew'"),
        (policy("<h:priority>1.5</h:priority>"), "in <priority> a whole number"),
        (policy("<h:priority>1001</h:priority>"), "in <priority> a whole number from -1000 to 1000, found '1001'"),
        (policy("<h:availability-set>a b</h:availability-set>"), "in <availability-set> a name of at most 64"),
        (policy("<h:availability-set/>"), "in <availability-set> a name of at most 64"),
        (policy(f"<h:update-domain>{'x' * 65}</h:update-domain>"), "in <update-domain> a name of at most 64"),
        (policy("<h:boot-tcp>10.0.0.5</h:boot-tcp>"), "in <boot-tcp> a host and a TCP port, like 10.0.0.5:22"),
        (policy("<h:boot-tcp>10.0.0.5:65536</h:boot-tcp>"), "in <boot-tcp> a host and a TCP port"),
        (policy("<h:boot-tcp>fd00::5:22</h:boot-tcp>"), "in <boot-tcp> a host and a TCP port"),
        (policy("<h:boot-tcp>a b:22</h:boot-tcp>"), "in <boot-tcp> a host and a TCP port"),
        (policy("<h:boot-tcp/>"), "in <boot-tcp> a host and a TCP port"),
        (policy("<h:allow>in-place</h:allow>"), "only elements in <allow>, found 'in-place'"),
        (policy("<h:allow><h:method>magic</h:method></h:allow>"), "in <allow> some of in-place, .*found 'magic'"),
        (policy("<h:allow><h:guest>web1</h:guest></h:allow>"), "<method> in <allow>, found 'guest'"),
        (policy("<h:never-together><h:guest>a/b</h:guest></h:never-together>"), "in <never-together> at most 64 names"),
        (policy(f"<h:never-together>{'<h:guest>a</h:guest>' * 65}</h:never-together>"), "at most 64 in"),
        (policy("words"), "only elements in <policy>, found 'words'"),
        (policy("", root="rule"), "<policy> of urn:hostagent:policy:1"),
        (policy("", namespace="urn:hostagent:policy:2"), "<policy> of urn:hostagent:policy:1"),
        (policy("") * 2, "one <policy> of"),
        ("<!DOCTYPE policy>" + policy(""), "elements alone"),
        (policy("<h:budget>"), "one <policy> of"),
        (policy(" " * SIZE_LIMIT), f"at most {SIZE_LIMIT} characters"),
        (policy("<h:a>" * 1000 + "</h:a>" * 1000), "found 'a'"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, found: str) -> None:
    with pytest.raises(Refused, match=f"reading the policy of guest 'web1': expected .*{found}") as refused:
        read_policy("web1", text)
    assert len(str(refused.value)) < 600


def test_a_policy_is_found_in_a_definition() -> None:
    text = in_namespace(written_policy(PolicyPart(budget_seconds=2.0)))
    for name in ("q35-rich", "q35-none"):  # with metadata of somebody else's, and without
        xml = sampled.xml(name)
        assert read_definition(xml).policy == ""
        assert read_policy("it", read_definition(with_policy(xml, text)).policy) == PolicyPart(budget_seconds=2.0)


@pytest.mark.parametrize("version", [NAMESPACE, "urn:hostagent:policy:2"])
def test_one_of_another_version_and_a_second_one_are_not_passed_over(version: str) -> None:
    xml = with_policy(sampled.xml("q35-none"), policy("") + policy("", namespace=version))
    with pytest.raises(Refused) as refused:
        read_policy("it", read_definition(xml).policy)
    assert ("urn:hostagent:policy:2 --remove" in str(refused.value)) is (version != NAMESPACE)


def test_a_huge_one_is_cut_and_refused() -> None:
    xml = with_policy(sampled.xml("q35-none"), policy("<h:budget>1</h:budget>" * 10_000))
    found = read_definition(xml).policy
    assert len(found) == SIZE_LIMIT + 1
    with pytest.raises(Refused, match="at most"):
        read_policy("it", found)


def test_nothing_said_is_no_element() -> None:
    assert written_policy(PolicyPart()) == ""
    assert read_policy("it", "") == PolicyPart()
    assert ElementTree.fromstring(written_policy(PolicyPart(allow=frozenset()))).find("allow") is not None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        *(("10.0.0.5:22", ("10.0.0.5", 22)), ("web1.example:443", ("web1.example", 443))),
        *(("[fd00::5]:1", ("fd00::5", 1)), ("[fe80::1%br0]:22", None), ("[fe80::1]:65535", ("fe80::1", 65535))),
        *(("web1", None), ("web1:", None), (":22", None), ("web1:0", None), ("web1:022", None), ("web1:22\n", None)),
        *(("http://web1:80", None), ("web1:٢٢", None), ("[]:22", None)),
    ],
)
def test_a_place_that_can_be_connected_to(text: str, found: tuple[str, int] | None) -> None:
    assert tcp_address(text) == found


# -- several places


def test_the_strongest_that_says_it_counts() -> None:
    policies = Policies(
        (
            Layer("[policy]", PolicyPart(budget_seconds=20.0, clock=ClockPolicy.OFF, priority=1)),
            Layer("[[policy.guest]] db*", PolicyPart(budget_seconds=10.0, availability_set="db"), "db*"),
            Layer("[[policy.guest]] db?", PolicyPart(budget_seconds=5.0, update_domain="1"), "db?"),
        )
    )
    held_to = policies.of(saying("db1", priority=7, availability_set="own"))
    assert held_to.policy.budget_seconds == 5.0
    assert held_to.policy.allow == {Allowed.IN_PLACE, Allowed.IN_PLACE_COPY}
    assert (held_to.policy.availability_set, held_to.policy.update_domain) == ("own", "1")
    assert held_to.origins == {
        Setting.ALLOW: "built in",
        Setting.BUDGET: "[[policy.guest]] db?",
        Setting.CLOCK: "[policy]",
        Setting.PRIORITY: "its metadata",
        Setting.AVAILABILITY_SET: "its metadata",
        Setting.UPDATE_DOMAIN: "[[policy.guest]] db?",
        Setting.NEVER_TOGETHER: "built in",
        Setting.BOOT_TCP: "built in",
    }
    assert policies.of(saying("web1")).policy.budget_seconds == 20.0
    asked = policies.keeping(PolicyPart(budget_seconds=1.0)).of(saying("db1", budget_seconds=3.0))
    assert (asked.policy.budget_seconds, asked.origins[Setting.BUDGET]) == (1.0, "the command line")


def test_a_name_is_meant_as_it_is_too() -> None:
    policies = Policies((Layer("[[policy.guest]] db[1]", PolicyPart(priority=4), "db[1]"),))
    assert [policies.of(saying(name)).policy.priority for name in ("db[1]", "db1", "db2")] == [4, 4, 0]


@given(st.lists(PART, max_size=5))
def test_each_setting_is_that_of_the_last_that_says_it(parts: list[PolicyPart]) -> None:
    found, origins = merged("web1", [Layer(str(number), part) for number, part in enumerate(parts)])
    for setting in Setting:
        said = [(str(n), part.says(setting)) for n, part in enumerate(parts) if part.says(setting) is not None]
        if said:
            assert (origins[setting], getattr(found, setting.field)) == said[-1]
        else:
            assert origins[setting] == "built in"


# -- in a plan


def plan_of(*guests: Guest, policies: Policies | None = None, past: Past | None = None) -> Any:
    seen = sampled.host(guests=guests, hold_hook=True)
    return plan_qemu(seen, NEW, None, policies=policies or Policies(), past=past).guests


def test_what_is_not_allowed_is_blocked_and_nothing_else() -> None:
    (planned,) = plan_of(saying(allow=frozenset((Allowed.IN_PLACE_COPY,))))
    (blocker,) = planned.blockers
    assert (planned.verdict, blocker.reason) == (Verdict.BLOCKED, Reason.POLICY)
    assert str(blocker) == (
        "expected a policy that allows in-place, found one that allows in-place-copy (its metadata) "
        "(hint: if its owner agrees: hostagent guest set web1 --allow in-place,in-place-copy)"
    )
    (planned,) = plan_of(saying(allow=frozenset((Allowed.IN_PLACE,))))
    assert (planned.verdict, planned.method) == (Verdict.UPDATE, Method.IN_PLACE)


def test_the_command_of_a_hint_can_be_pasted_whatever_the_guest_is_called() -> None:
    (planned,) = plan_of(replace(saying(allow=frozenset((Allowed.IN_PLACE_COPY,))), name="desk 1"))
    assert "hostagent guest set 'desk 1' --allow" in planned.blockers[0].hint


def test_a_copy_is_allowed_for_itself() -> None:
    plain = replace(sampled.guest("anonymous"), name="web1")
    only_kept = Policies((Layer("[policy]", PolicyPart(allow=frozenset((Allowed.IN_PLACE,)))),))
    seen = sampled.host(guests=(plain,))
    (planned,) = plan_qemu(seen, NEW, None, policies=only_kept).guests
    assert [blocker.expected for blocker in planned.blockers] == ["a policy that allows in-place-copy"]
    (adopted,) = plan_adoption(seen, ["web1"], policies=only_kept)
    assert adopted.blocked
    assert [blocker.reason for blocker in in_place_way(seen, plain, only_kept.of(plain)).blockers] == [Reason.POLICY]
    assert in_place_way(seen, plain, Policies().of(plain)).blockers == ()


def test_all_that_is_against_it_is_said() -> None:
    (planned,) = plan_of(replace(saying(allow=frozenset()), job="a backup"))
    assert {blocker.reason for blocker in planned.blockers} == {Reason.JOB, Reason.POLICY}


def test_one_whose_policy_cannot_be_read_is_blocked_and_not_given_defaults() -> None:
    unreadable = with_text(policy("<h:quux/>"))
    (planned,) = plan_of(unreadable)
    (blocker,) = planned.blockers
    assert (planned.verdict, blocker.reason, blocker.found) == (Verdict.BLOCKED, Reason.POLICY, "'quux'")
    assert "hostagent guest set web1 --unset all" in blocker.hint
    assert in_place_way(sampled.host(), unreadable, Policies().of(unreadable)).blockers == (blocker,)
    held = plan_host(
        sampled.host(guests=(unreadable,), hold_hook=True), "kvm", [SWAP], policies=Policies(), past=Past()
    )
    assert held.blockers
    assert held.guests[0].blockers == (blocker,)


def test_one_that_needs_nothing_is_left_in_peace() -> None:
    up_to_date = replace(saying(allow=frozenset()), qemu=NEW)
    assert [planned.verdict for planned in plan_of(up_to_date)] == [Verdict.UP_TO_DATE]


SWAP = Swap(sampled.component("kvm"), holds=True, first_seconds=2.0)


def test_each_has_its_own_budget_and_clock() -> None:
    patient, hurried = saying("patient", budget_seconds=9.0, clock=ClockPolicy.OFF), saying("quick", budget_seconds=0.1)
    first, second = plan_of(patient, hurried, past=Past())
    assert (first.verdict, first.budget_seconds, first.clock) == (Verdict.UPDATE, 9.0, ClockPolicy.OFF)
    assert (second.verdict, second.budget_seconds) == (Verdict.BLOCKED, 0.1)
    assert [blocker.reason for blocker in second.blockers] == [Reason.BUDGET]
    held = plan_host(
        sampled.host(guests=(patient, hurried), hold_hook=True), "kvm", [SWAP], policies=Policies(), past=Past()
    )
    assert [(one.verdict, one.budget_seconds) for one in held.guests] == [(Verdict.UPDATE, 9.0), (Verdict.BLOCKED, 0.1)]


def test_those_of_higher_priority_go_first_and_others_stay_in_order() -> None:
    guests = (saying("a"), saying("b", priority=5), saying("c"), saying("d", priority=-1), saying("e", priority=9))
    wanted = ["e", "b", "a", "c", "d"]
    seen = sampled.host(guests=guests, hold_hook=True)
    assert [planned.name for planned in plan_of(*guests)] == wanted
    held = plan_host(seen, "kvm", [SWAP], policies=Policies(), past=Past())
    assert [planned.name for planned in held.guests] == wanted
    came_from = {guest.uuid: NEW for guest in guests}
    (back,) = plan_way_back(replace(seen, qemu=(sampled.TREE, NEW)), came_from, sampled.TREE, policies=Policies())
    assert [planned.name for planned in back.guests] == wanted
    named = plan_qemu(seen, NEW, ["d", "c", "a", "b"], policies=Policies(), technique=Technique.HANDOVER)
    assert [planned.name for planned in named.guests] == ["b", "c", "a", "d"]


@given(st.sampled_from(Method), st.frozensets(st.sampled_from(Allowed)))
def test_never_a_method_that_is_not_allowed(method: Method, allow: frozenset[Allowed]) -> None:
    guest = saying(allow=allow)
    assert bool(policy_blockers(guest, Policies().of(guest), method)) is (method.value not in allow)
