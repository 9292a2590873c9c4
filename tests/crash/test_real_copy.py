"""The updater dies while RAM is copied, or after: the guest runs on, the copy is gone and its memory given back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import libvirt
import pytest

from hostagent.update.journal import Outcome
from tests.bench.guest_spec import GuestSpec, Ram
from tests.bench.lab import Lab
from tests.crash.real_updater import End, How, Order, When
from tests.crash.real_world import World, world

pytestmark = pytest.mark.skipif("HOSTAGENT_BENCH" not in os.environ, reason="runs inside the bench")

# On QEMU 10.0 it runs until next to nothing is left, as it would under KVM: see update/copying.py.
GUEST = GuestSpec("ordinary", 9, 512, "pc-q35-7.2", ram=Ram.ANONYMOUS, fill_mib=200)
# Before "copy" begins, when all has been copied once, with libvirt away, with the rest crossing, and with all of it.
BEFORE_THE_COMMIT = [
    End(step="copy", when=When.BEFORE),
    *(End(step=step, when=When.AFTER) for step in ("start", "detach", "reconcile", "switch", "record")),
]


@pytest.fixture(scope="module")
def there() -> Iterator[World]:
    with world() as made:
        made.boot(replace(GUEST, emulator=Lab.load().newer.emulator))
        made.guest.proof.rewrite(20)
        yield made


def not_touched(there: World) -> None:
    there.check(on=there.lab.newer)
    assert there.guest.ram == frozenset()
    assert there.last()[0] is Outcome.ROLLED_BACK


@pytest.mark.parametrize("end", BEFORE_THE_COMMIT, ids=str)
def test_guard_alone_gives_the_copy_up(there: World, end: End) -> None:
    there.cut_off(end)
    not_touched(there)


@pytest.mark.parametrize("end", BEFORE_THE_COMMIT[2:], ids=str)
def test_next_start_gives_the_copy_up(there: World, end: End) -> None:
    there.cut_off(end.model_copy(update={"how": How.KILL_GUARD_TOO}))
    there.lab.recover()
    not_touched(there)


def test_killed_in_the_middle_of_it(there: World) -> None:
    there.guest.forget_gaps()
    there.killed(Order(to=there.lab.system.name, dies_copying=True))
    assert there.guest.domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    not_touched(there)
    assert there.guest.felt_ms() < 100  # it never stood still: an emulated guest's ticks come late at times


@pytest.mark.parametrize("how", [How.KILL, How.KILL_GUARD_TOO], ids=str)
def test_killed_after_the_commit_it_is_adopted(there: World, how: How) -> None:
    if there.guest.ram:  # the one before has adopted it
        spec = there.guest.spec
        there.remove(spec)
        there.boot(spec)
    there.cut_off(End(step="resume", when=When.AFTER, how=how))
    there.lab.recover()
    assert there.last()[0] is Outcome.UPDATED
    guest = there.guest
    guest.ram = guest.ram_files()
    assert len(guest.ram) == 1
    guest.check()
    assert guest.tree() == there.lab.system
