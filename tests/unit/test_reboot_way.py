"""Why a guest cannot be updated by a reboot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hostagent.facts import Guest, GuestState
from hostagent.plan import Method, Reason, Verdict
from hostagent.planning.guest_policy import Policies
from hostagent.planning.planner import plan_qemu
from hostagent.planning.reboot_way import AGENT_CHANNEL, reboot_way
from hostagent.policy import Allowed, PolicyPart
from tests.unit import sampled

ALLOWED = Policies(asked=PolicyPart(allow=frozenset((Allowed.REBOOT,))))
WITH_PORT = Policies(asked=PolicyPart(allow=frozenset((Allowed.REBOOT,)), boot_tcp="10.0.0.5:22"))
PLAIN = sampled.guest("q35-plain")


def reasons(guest: Guest, policies: Policies = ALLOWED) -> list[Reason]:
    return [blocker.reason for blocker in reboot_way(guest, policies.of(guest)).blockers]


def defined(guest: Guest, **changed: Any) -> Guest:
    return replace(guest, definition=replace(guest.definition, **changed))


def without_agent(guest: Guest) -> Guest:
    kept = tuple(device for device in guest.definition.devices if device.detail != AGENT_CHANNEL)
    assert len(kept) < len(guest.definition.devices)
    return defined(guest, devices=kept)


def test_nothing_is_against_a_plain_guest() -> None:
    way = reboot_way(PLAIN, ALLOWED.of(PLAIN))
    assert (way.method, way.technique, way.predicted, way.blockers) == (Method.REBOOT, None, None, ())


def test_nobody_is_rebooted_whose_policy_does_not_say_so() -> None:
    assert reasons(PLAIN, Policies()) == [Reason.POLICY]


@pytest.mark.parametrize(
    ("guest", "reason"),
    [
        *((replace(PLAIN, state=state), Reason.STATE) for state in GuestState if state is not GuestState.RUNNING),
        (replace(PLAIN, persistent=False), Reason.STATE),
        (replace(PLAIN, managed_save=True), Reason.STATE),
        (replace(PLAIN, process=None), Reason.PROCESS),
        (replace(PLAIN, job="a block job on vda"), Reason.JOB),
        *((defined(PLAIN, on_poweroff=what), Reason.LIFECYCLE) for what in ("restart", "preserve", "rename-restart")),
        (without_agent(PLAIN), Reason.BOOT_PROOF),
    ],
)
def test_what_is_against_it(guest: Guest, reason: Reason) -> None:
    assert reasons(guest) == [reason]


def test_a_port_proves_the_boot_of_one_without_an_agent() -> None:
    assert reasons(without_agent(PLAIN), WITH_PORT) == []


def test_all_that_is_against_it_is_told() -> None:
    guest = replace(without_agent(defined(PLAIN, on_poweroff="restart")), persistent=False, job="a domain job")
    assert set(reasons(guest, Policies())) == {
        *(Reason.POLICY, Reason.STATE, Reason.JOB, Reason.LIFECYCLE, Reason.BOOT_PROOF)
    }


@pytest.mark.parametrize("text", ["restart", "preserve"])
def test_what_becomes_of_it_at_its_shutdown_is_read_from_its_definition(text: str) -> None:
    from hostagent.hypervisor.domain_xml import read_definition

    xml = sampled.xml("q35-plain")
    assert read_definition(xml).on_poweroff == "destroy"
    changed = xml.replace("<on_poweroff>destroy<", f"<on_poweroff>{text}<")
    assert read_definition(changed).on_poweroff == text


def test_a_plan_reboots_what_may_only_be_rebooted_and_knows_how_its_boot_is_proved() -> None:
    new = replace(sampled.TREE, name="new", package="1:10.0", emulator="/new/qemu")
    seen = sampled.host(guests=(PLAIN,), qemu=(sampled.TREE, new))
    (planned,) = plan_qemu(seen, new, None, policies=WITH_PORT).guests
    assert (planned.verdict, planned.method, planned.technique) == (Verdict.UPDATE, Method.REBOOT, None)
    assert planned.boot_tcp == "10.0.0.5:22"
    both = PolicyPart(allow=frozenset((Allowed.IN_PLACE, Allowed.REBOOT)))
    (planned,) = plan_qemu(seen, new, None, policies=Policies(asked=both)).guests
    assert planned.method is Method.IN_PLACE
    assert [way.method for way in planned.lower] == [Method.REBOOT]
