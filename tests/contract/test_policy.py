"""A guest's own policy in libvirt's metadata, asked of the fake and of the real libvirt alike."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hostagent.errors import Failed, Refused
from hostagent.hypervisor.domain_xml import live_differences
from hostagent.plan import ClockPolicy
from hostagent.policy import Allowed, PolicyPart
from hostagent.policy_xml import read_policy
from tests.contract.conftest import Stage

EVERYTHING = PolicyPart(
    allow=frozenset((Allowed.IN_PLACE, Allowed.REBOOT)),
    budget_seconds=0.125,
    clock=ClockPolicy.REPORT,
    priority=-7,
    availability_set="db",
    update_domain="2.a",
    boot_tcp="[fd00::5]:22",
    never_together=frozenset(("web2", "with <odd> & 'other' \"letters\"", "ünïcode")),
)
NOTHING = PolicyPart()


@pytest.fixture(autouse=True)
def without_one(stage: Stage) -> Iterator[None]:
    yield
    stage.ports.libvirt.put_policy(stage.world.uuid, NOTHING)


def own(stage: Stage) -> PolicyPart:
    """As it holds now."""
    guest = stage.ports.libvirt.guest(stage.world.uuid)
    assert guest is not None
    return read_policy(guest.name, guest.definition.policy)


def at_next_boot(stage: Stage) -> PolicyPart:
    return read_policy(stage.world.name, stage.world.persistent_policy())


@pytest.mark.parametrize("wanted", [EVERYTHING, PolicyPart(allow=frozenset()), PolicyPart(priority=0)])
def test_it_stands_in_both_definitions(stage: Stage, wanted: PolicyPart) -> None:
    stage.ports.libvirt.put_policy(stage.world.uuid, wanted)
    assert own(stage) == at_next_boot(stage) == wanted


def test_what_was_there_before_is_gone(stage: Stage) -> None:
    for wanted in (EVERYTHING, PolicyPart(budget_seconds=1e-05), EVERYTHING):
        stage.ports.libvirt.put_policy(stage.world.uuid, wanted)
        assert own(stage) == at_next_boot(stage) == wanted
    for _ in range(2):
        stage.ports.libvirt.put_policy(stage.world.uuid, NOTHING)
        assert own(stage) == at_next_boot(stage) == NOTHING


def test_nothing_else_of_a_definition_changes(stage: Stage) -> None:
    libvirt, uuid = stage.ports.libvirt, stage.world.uuid
    before = libvirt.live_xml(uuid)
    libvirt.put_policy(uuid, EVERYTHING)
    told = live_differences(before, libvirt.live_xml(uuid))
    assert told
    assert all(line.startswith("domain/metadata") for line in told), told


def test_a_guest_that_nobody_knows(stage: Stage) -> None:
    with pytest.raises(Failed, match="changing a guest's policy"):
        stage.ports.libvirt.put_policy("00000000-0000-4000-8000-00000000dead", EVERYTHING)


def test_a_handover_carries_it(stage: Stage) -> None:
    libvirt, uuid = stage.ports.libvirt, stage.world.uuid
    libvirt.put_policy(uuid, EVERYTHING)
    member = stage.whole_update()
    assert stage.updated, member.reason
    assert own(stage) == at_next_boot(stage) == EVERYTHING
    libvirt.put_policy(uuid, PolicyPart(priority=1))
    assert own(stage) == PolicyPart(priority=1)


def test_it_stays_while_the_daemon_is_away(stage: Stage) -> None:
    stage.ports.libvirt.put_policy(stage.world.uuid, EVERYTHING)
    stage.detached()
    with pytest.raises(Refused):
        stage.ports.libvirt.put_policy(stage.world.uuid, NOTHING)
    stage.attach()
    assert own(stage) == EVERYTHING
