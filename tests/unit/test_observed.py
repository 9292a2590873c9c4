"""A look at the host, reduced to what metrics need."""

from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sampled import TREE, guest, host, within

from hostagent.facts import Component, Freshness, GuestState, QemuTree, Version
from hostagent.metrics.exposition import exposition
from hostagent.metrics.table import OF_LOOK
from hostagent.observed import Observed, SeenBlockers, observe
from hostagent.plan import Method, Reason
from hostagent.planning.prediction import Past

OLD = QemuTree("7.2", Version(7, 2, 20), "1:7.2+dfsg-5", "/var/lib/hostagent/qemu/7.2/usr/bin/q")
OFF = guest("user", state=GuestState.SHUT_OFF, process=None, qemu=None, domain_id=None)
KERNEL = Component("kernel", "6.1.0-48", "6.1.0-49", Freshness.OUTDATED)
KVM = Component("kvm", "6.1.0-48", "6.1.0-48", Freshness.CURRENT)
Series = dict[tuple[str, ...], float]


def look(*guests: object, **changed: object) -> Observed:
    seen = host(guests=guests, qemu=(TREE, OLD), **changed)
    return observe(seen, [KERNEL, KVM], within(30.0), at=7.5, update_domain="rack-2")


def series(seen: Observed, name: str) -> Series:
    """The values of one family, by those of its labels."""
    found = text_string_to_metric_families(exposition([], seen))
    labels = next(declared.labels for declared in OF_LOOK if declared.name == name)
    return {
        tuple(sample.labels[label] for label in labels): sample.value
        for family in found
        for sample in family.samples
        if sample.name == name
    }


def test_the_host_and_when_it_was_looked_at() -> None:
    seen = look()
    assert series(seen, "hostagent_host_info") == {("h1", "rack-2"): 1}
    assert series(seen, "hostagent_last_look_timestamp_seconds") == {(): 7.5}


def test_guests_are_counted_by_state_and_those_of_no_state_too() -> None:
    seen = look(guest(), guest("pc-plain", state=GuestState.PAUSED_BY_OWNER), guest("tuned"), OFF)
    counted = series(seen, "hostagent_guests")
    assert {labels: number for labels, number in counted.items() if number} == {
        ("running",): 2,
        ("paused-by-owner",): 1,
        ("shut-off",): 1,
    }
    assert len(counted) == len(GuestState)


def test_outdated_are_running_guests_of_another_build_and_all_of_an_outdated_host() -> None:
    unknown = guest("pc-none", qemu=None)
    seen = look(guest(), guest("pc-plain", qemu=OLD), unknown, OFF)
    assert series(seen, "hostagent_guests_outdated") == {("qemu",): 2, ("kernel",): 3, ("kvm",): 0}
    assert series(seen, "hostagent_component_outdated") == {("qemu",): 1, ("kernel",): 1, ("kvm",): 0}


def test_each_build_that_runs_is_there_once() -> None:
    seen = look(guest(), guest("pc-plain", qemu=OLD), guest("tuned", qemu=OLD), guest("pc-none", qemu=None))
    assert series(seen, "hostagent_component_info") == {
        ("qemu", OLD.package, TREE.package, "outdated"): 1,
        ("qemu", TREE.package, TREE.package, "current"): 1,
        ("qemu", "unknown", TREE.package, "unknown"): 1,
        ("kernel", "6.1.0-48", "6.1.0-49", "outdated"): 1,
        ("kvm", "6.1.0-48", "6.1.0-48", "current"): 1,
    }


def test_without_guests_nothing_of_qemu_runs() -> None:
    assert series(look(OFF), "hostagent_component_info")[("qemu", "", TREE.package, "not-there")] == 1


def test_blockers_are_counted_by_kind_also_of_guests_that_are_up_to_date() -> None:
    seen = look(guest(), guest("prealloc"), OFF)
    blockers = series(seen, "hostagent_guest_blockers")
    in_place = {labels for labels in blockers if labels[1] == Method.IN_PLACE}
    assert in_place == {("prealloc", "in-place", "ram-discard"), ("prealloc", "in-place", "ram-file")}
    assert ("q35-rich", "reboot", "policy") in blockers
    assert not [labels for labels in blockers if labels[0] == "user"]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [({"lock_manager": "sanlock"}, Reason.LOCK_MANAGER), ({"reconnect_hook": True}, Reason.HOST)],
)
def test_what_stops_all_guests_of_the_host_stops_each(changed: dict[str, object], reason: Reason) -> None:
    found = [one for one in look(guest(), **changed).blockers if one.method is Method.IN_PLACE]
    assert found == [SeenBlockers("q35-rich", Method.IN_PLACE, reason, 1)]


def test_a_pause_that_will_be_over_budget_is_a_blocker() -> None:
    past = Past(pauses={guest().uuid: [40.0]})
    seen = observe(host(), [], within(30.0), past, at=0.0)
    assert SeenBlockers("q35-rich", Method.IN_PLACE, Reason.BUDGET, 1) in seen.blockers


def test_every_metric_of_a_look_is_there() -> None:
    text = exposition([], look(guest("prealloc")))
    families = {family.name for family in text_string_to_metric_families(text) if family.samples}
    assert {declared.name for declared in OF_LOOK} <= families


def test_a_hostile_name_stays_inside_its_label() -> None:
    name = 'x"} 1\nhostagent_fake{a="\\\x1b[2J\u202e'
    seen = look(replace(guest("prealloc"), name=name), hostname="h\n1")
    assert next(labels[0] for labels in series(seen, "hostagent_guest_blockers")).startswith('x"} 1\\n')
    assert ("h\\n1", "rack-2") in series(seen, "hostagent_host_info")
    assert exposition([], seen).replace("\n", "").isprintable()
