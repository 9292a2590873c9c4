"""What the steps of a reboot rely on, asked of the fake and of the real libvirt alike."""

from __future__ import annotations

import pytest

from hostagent.boot import boot_id_of
from hostagent.errors import Failed
from hostagent.facts import GuestState
from hostagent.hypervisor import ShutDownBy, Standing
from hostagent.hypervisor.domain_xml import read_definition
from tests.contract.conftest import SECONDS, Stage

BOOT_SECONDS = 300.0
NOBODY = "00000000-0000-0000-0000-000000000000"


def now(stage: Stage) -> Standing:
    standing = stage.ports.libvirt.standing(stage.world.uuid)
    assert standing is not None
    return standing


def boot_id(stage: Stage) -> str:
    with stage.ports.libvirt.agent(stage.world.uuid) as agent:
        return boot_id_of(agent, SECONDS)


def ended(stage: Stage) -> str:
    """Why it does not run, once it does not."""
    libvirt, uuid = stage.ports.libvirt, stage.world.uuid
    assert libvirt.wait_ended(uuid, SECONDS)
    assert (now(stage).state, now(stage).process) == (GuestState.SHUT_OFF, None)
    return now(stage).reason


def test_by_its_agent_and_onto_the_other_qemu(stage: Stage) -> None:
    libvirt, uuid, was = stage.ports.libvirt, stage.world.uuid, now(stage)
    assert libvirt.wait_agent(uuid, BOOT_SECONDS)
    before, defined = boot_id(stage), stage.world.persistent_xml()
    assert len(before) == 36
    assert libvirt.shut_down(uuid, ShutDownBy.AGENT, SECONDS)
    assert ended(stage) == "shut down"
    assert not libvirt.wait_agent(uuid, 0.0)
    libvirt.start(uuid, stage.world.other.emulator, SECONDS)
    libvirt.wait_started(uuid, SECONDS)
    assert (now(stage).state, now(stage).emulator) == (GuestState.RUNNING, stage.world.other.emulator)
    assert now(stage).process not in (None, was.process)
    guest = libvirt.guest(uuid)
    assert guest is not None and guest.persistent and not guest.managed_save
    assert guest.qemu == stage.world.other
    assert stage.world.persistent_xml() == defined
    assert libvirt.wait_agent(uuid, BOOT_SECONDS)
    assert boot_id(stage) not in ("", before)
    with pytest.raises(Failed):
        libvirt.start(uuid, None, SECONDS)
    assert now(stage).state is GuestState.RUNNING


def test_by_its_power_button_and_one_that_does_not_start(stage: Stage) -> None:
    libvirt, uuid = stage.ports.libvirt, stage.world.uuid
    assert libvirt.wait_agent(uuid, BOOT_SECONDS)
    defined = stage.world.persistent_xml()
    assert libvirt.shut_down(uuid, ShutDownBy.ACPI, SECONDS)
    assert ended(stage) == "shut down"
    with pytest.raises(Failed):
        libvirt.start(uuid, "/usr/bin/no-such-qemu", SECONDS)
    assert ended(stage)
    assert stage.world.persistent_xml() == defined
    assert not any(libvirt.shut_down(uuid, by, SECONDS) for by in ShutDownBy)
    libvirt.start(uuid, None, SECONDS)
    assert (now(stage).state, now(stage).emulator) == (GuestState.RUNNING, read_definition(defined).emulator)
    assert libvirt.wait_agent(uuid, BOOT_SECONDS)


def test_ended_without_being_asked(stage: Stage) -> None:
    libvirt, uuid = stage.ports.libvirt, stage.world.uuid
    libvirt.terminate(uuid, SECONDS)
    assert ended(stage) == "destroyed"
    libvirt.terminate(uuid, SECONDS)
    libvirt.start(uuid, None, SECONDS)
    assert libvirt.wait_agent(uuid, BOOT_SECONDS)


def test_it_is_not_booted_past_a_state_that_its_owner_has_saved(stage: Stage) -> None:
    libvirt, uuid = stage.ports.libvirt, stage.world.uuid
    stage.world.keep_state()
    assert ended(stage) == "saved"
    guest = libvirt.guest(uuid)
    assert guest is not None and guest.managed_save
    for emulator in (None, stage.world.other.emulator):
        with pytest.raises(Failed, match="no saved state of it"):
            libvirt.start(uuid, emulator, SECONDS)
    assert ended(stage) == "saved"
    stage.world.drop_state()
    libvirt.start(uuid, None, SECONDS)
    assert libvirt.wait_agent(uuid, BOOT_SECONDS)


def test_a_guest_that_libvirt_does_not_know(stage: Stage) -> None:
    libvirt = stage.ports.libvirt
    for ask in (
        lambda: libvirt.shut_down(NOBODY, ShutDownBy.ACPI, SECONDS),
        lambda: libvirt.start(NOBODY, None, SECONDS),
    ):
        with pytest.raises(Failed):
            ask()
    libvirt.wait_started(NOBODY, SECONDS)
    assert libvirt.wait_ended(NOBODY, SECONDS)
    assert not libvirt.wait_agent(NOBODY, 0.0)
