"""What a copy of a running guest's RAM relies on, asked of the fake and of the real QEMU and libvirt alike."""

from __future__ import annotations

import time
from pathlib import Path

from hostagent.facts import GuestState, RamBacking
from hostagent.hypervisor import MoveStatus, RunState, Sender
from hostagent.update.attachment import detach
from hostagent.update.copying import end_copy, look_at_copy
from hostagent.update.crossing import reconcile, switch
from hostagent.update.journal import Outcome
from tests.contract.conftest import SECONDS, Stage, wait_for

LOOKS = 4  # a quarter of a second each


def left_on(sender: Sender) -> list[str]:
    return [name for name, state in sender.capabilities().items() if state]


def runs(stage: Stage) -> bool:
    guest = stage.ports.libvirt.guest(stage.world.uuid)
    return guest is not None and guest.state is GuestState.RUNNING


def test_its_ram_is_in_a_file_of_its_user_s(ordinary: Stage) -> None:
    (new_ram,) = ordinary.prepared().swap.notes.new_ram
    assert (new_ram.uid, new_ram.gid) == ordinary.ports.qemu.owner(ordinary.old)
    found = Path(new_ram.path).stat()
    assert (found.st_size, found.st_uid, found.st_mode & 0o777) == (new_ram.size, new_ram.uid, 0o600)
    assert new_ram.path.startswith(f"{ordinary.ports.libvirt.memory_backing_dir()}/libvirt/qemu/")


def test_the_new_one_maps_the_file_and_the_old_one_does_not(ordinary: Stage) -> None:
    (pin,) = ordinary.beside().swap.notes.pins
    assert (pin.device, pin.inode) in ordinary.ports.qemu.ram_inodes(ordinary.new)
    assert (pin.device, pin.inode) not in ordinary.ports.qemu.ram_inodes(ordinary.old)


def test_a_copy_does_not_end_by_itself(ordinary: Stage) -> None:
    """With everything copied, however little the guest writes: it is not stopped while libvirt is there."""
    ordinary.copied()
    for _ in range(LOOKS):
        move = look_at_copy(ordinary.swap)
        assert (move.status, move.ram_left) == (MoveStatus.UNDER_WAY, 0)
        assert move.ram_total >= ordinary.swap.notes.pins[0].size
        time.sleep(0.05)
    with ordinary.swap.sender() as old:
        assert old.run_state() is RunState.RUNNING
        wait_for(lambda: old.dirtying() is not None)  # it is measured over a second
    assert runs(ordinary)
    assert ordinary.new_monitor().move().status is MoveStatus.UNDER_WAY


def test_given_up_it_leaves_the_old_one_as_it_was(ordinary: Stage) -> None:
    ordinary.beside()
    with ordinary.swap.sender() as old:
        before = (left_on(old), dict(old.parameters()))
    ordinary.copied_from_beside()
    for _ in range(2):
        end_copy(ordinary.swap)
        with ordinary.swap.sender() as old:
            assert (left_on(old), dict(old.parameters())) == before
            assert old.run_state() is RunState.RUNNING
            assert old.move().status is not MoveStatus.UNDER_WAY
            old.put_ballast(bitmap=True)  # nothing of that name is left
            old.drop_ballast()
    assert not ordinary.ports.qemu.alive(ordinary.new)
    assert runs(ordinary)


def test_it_breaks_off_when_the_new_one_ends(ordinary: Stage) -> None:
    ordinary.copied()
    ordinary.ports.qemu.kill(ordinary.new, SECONDS)
    with ordinary.swap.sender() as old:
        while old.wait_sent(0.25).status is MoveStatus.UNDER_WAY:
            pass
        assert old.move().status is MoveStatus.FAILED
        assert old.run_state() is RunState.RUNNING
    assert runs(ordinary)


def test_ballast_is_nothing_that_anybody_compares(ordinary: Stage) -> None:
    ordinary.copied()
    detach(ordinary.host)
    old, new = ordinary.old_monitor().inventory(), ordinary.new_monitor().inventory()
    assert old.block_nodes == new.block_nodes


def test_the_rest_crosses_once_libvirt_is_away(ordinary: Stage) -> None:
    ordinary.copied()
    detach(ordinary.host)
    reconcile(ordinary.swap)
    switch(ordinary.swap)
    old, new = ordinary.old_monitor(), ordinary.new_monitor()
    assert (old.run_state(), old.move().status) == (RunState.POSTMIGRATE, MoveStatus.COMPLETED)
    assert (new.run_state(), new.move().status) == (RunState.PAUSED, MoveStatus.COMPLETED)
    assert old.stopped_at() is not None
    new.drop_ballast()
    new.drop_ballast()


def test_its_ram_is_in_files_for_libvirt_too(ordinary: Stage) -> None:
    member = ordinary.whole_update()
    assert member.outcome is Outcome.UPDATED, member.reason
    guest = ordinary.ports.libvirt.guest(ordinary.world.uuid)
    assert guest is not None
    assert guest.definition.ram is RamBacking.SHARED_FILE
    assert [ram.path for ram in guest.ram_files] == [pin.ram for pin in ordinary.swap.notes.pins]
    assert not ordinary.ports.libvirt.adopt_definition(ordinary.world.uuid)  # it was done already
    ordinary.ports.libvirt.destroy(ordinary.world.uuid)  # the next one begins with ordinary RAM
    assert not any(Path(pin.ram).exists() for pin in ordinary.swap.notes.pins)
