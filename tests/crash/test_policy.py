"""Each guest of an update by its own policy: how long it may stand still, its clock, its turn. On the fake."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

from hostagent.hypervisor.fake import FaultKind
from hostagent.plan import ClockPolicy, GuestPlan, Method, Plan, Technique, Verdict
from hostagent.planning.guest_policy import Policies
from hostagent.policy import PolicyPart
from hostagent.policy_xml import read_policy
from hostagent.update.host import update_qemu
from hostagent.update.journal import Outcome, UpdateRecord
from hostagent.update.report import report_of
from hostagent.update.subject import Ports
from tests.crash import shapes
from tests.crash.rig import Points, Rig, Scenario, rig

GUESTS = ("first", "hurried", "left", "seen")
SAID: Mapping[str, PolicyPart] = {
    "first": PolicyPart(budget_seconds=300.0, priority=5),
    "hurried": PolicyPart(budget_seconds=20.0),
    "left": PolicyPart(budget_seconds=300.0, clock=ClockPolicy.OFF),
    "seen": PolicyPart(budget_seconds=300.0, clock=ClockPolicy.REPORT, priority=-5),
}


@dataclass
class Host:
    """Guests that have said how they want to be updated."""

    rig: Rig
    ports: Ports

    def plan(self, technique: Technique) -> Plan:
        """As the planner makes it of what they say."""
        policies = Policies()
        guests = policies.in_order(self.ports.libvirt.host().guests)
        return Plan(
            "qemu",
            shapes.NEW,
            tuple(
                GuestPlan(
                    *(guest.name, guest.uuid, Verdict.UPDATE, Method.IN_PLACE, technique, guest.qemu, ()),
                    budget_seconds=policies.of(guest).policy.budget_seconds,
                    clock=policies.of(guest).policy.clock,
                )
                for guest in guests
            ),
            (),
        )

    def update(self, technique: Technique = Technique.HANDOVER) -> UpdateRecord:
        """What the plan says; each stands still for a minute as it is handed over."""
        for name in GUESTS:
            self.rig.host.fault(FaultKind.LOAD_SLOW, self.rig.uuids[name])
        return update_qemu(
            *(self.ports, self.ports.libvirt.host(), self.plan(technique)),
            update_id="u1",
            tell=lambda *_: None,
            cancelled=lambda: False,
        )


@pytest.fixture
def host() -> Iterator[Host]:
    with rig(Scenario(guests=GUESTS)) as made, made._ports(Points(only=())) as ports:
        for name, own in SAID.items():
            ports.libvirt.put_policy(made.uuids[name], own)
        yield Host(made, ports)
        assert made.host.violations() == []


def test_each_may_stand_still_for_as_long_as_it_says(host: Host) -> None:
    ended = {guest.name: guest.outcome for guest in report_of(host.update()).guests}
    assert ended.pop("hurried") is Outcome.ROLLED_BACK
    assert set(ended.values()) == {Outcome.UPDATED}


def test_a_report_has_each_guest_s_own_budget(host: Host) -> None:
    for guest in report_of(host.update()).guests:
        assert guest.budget_seconds == SAID[guest.name].budget_seconds


def test_clocks_are_set_measured_or_left(host: Host) -> None:
    found = {guest.name: guest for guest in report_of(host.update()).guests}
    assert (found["first"].clock_outcome, found["hurried"].clock_outcome) == ("corrected", "corrected")
    for name in ("left", "seen"):
        assert (found[name].clock_outcome, found[name].clock_reason) == ("uncorrected", "policy")
    assert found["left"].clock.before is found["left"].clock.after is None
    assert found["seen"].clock.after is not None
    assert -62 < found["seen"].clock.after < -59


@pytest.mark.parametrize("technique", Technique)
def test_they_go_in_the_order_of_their_priority(host: Host, technique: Technique) -> None:
    record = host.update(technique)
    begun = [guest for guest, step, _ in record.step_times if step in ("switch", "pause")]
    assert begun == [host.rig.uuids[name] for name in ("first", "hurried", "left", "seen")]


@pytest.mark.parametrize("technique", Technique)
def test_what_they_said_stays(host: Host, technique: Technique) -> None:
    host.update(technique)
    for name, own in SAID.items():
        guest = host.ports.libvirt.guest(host.rig.uuids[name])
        assert guest is not None
        assert read_policy(name, guest.definition.policy) == own


def test_whoever_recovers_knows_it_too(host: Host) -> None:
    """It stands in the journal: what its metadata says by then, or the settings, decides nothing."""
    record = host.update()
    assert [(one["name"], one["budget_seconds"], one["clock"]) for one in record.order["guests"]] == [  # type: ignore[index, union-attr]
        ("first", 300.0, "step"),
        ("hurried", 20.0, "step"),
        ("left", 300.0, "off"),
        ("seen", 300.0, "report"),
    ]
