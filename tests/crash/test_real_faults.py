"""What others do to a handover of real guests: bad QEMUs, hangs, operators, impatient starts of libvirt's daemon."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import libvirt
import psutil
import pytest

from hostagent.errors import Refused
from hostagent.update.journal import Outcome
from tests.bench.guest_spec import GuestSpec
from tests.bench.lab import BUDGET_SECONDS
from tests.bench.proof import Proof
from tests.crash.real_updater import End, How, Order, When
from tests.crash.real_world import (
    LIMIT,
    World,
    driver_lock_is_libvirts,
    everything,
    start_libvirtd_early,
    world,
)

pytestmark = pytest.mark.skipif("HOSTAGENT_BENCH" not in os.environ, reason="runs inside the bench")

GUEST = GuestSpec(fill_mib=128)
VICTIM = GuestSpec(name="victim", index=2, memory_mib=256, machine="pc-q35-7.2", nic=False)
WRAPPER = Path("/var/lib/hostagent/wrapper")
LEFT_SECONDS, START_SECONDS = 10.0, 15.0
"""Budget, and what a new QEMU may take to answer, where one is waited for that never will: but it must get there."""
UNTIL_PAUSE = ("detach", "reconcile", "switch")


@pytest.fixture(scope="module")
def made() -> Iterator[World]:
    with world(GUEST) as made:
        yield made


@pytest.fixture
def there(made: World) -> World:
    if not made.sound:
        made.renew()
    made.sound = False
    return made


def at(step: str, how: How = How.STOP, when: When = When.AFTER) -> End:
    return End(step=step, when=when, how=how)


def order(
    there: World, end: End | None = None, *guests: str, budget_seconds: float = BUDGET_SECONDS, **more: object
) -> Order:
    to = there.other_tree.name
    return Order.model_validate(
        {"to": to, "guests": guests or None, "budget_seconds": budget_seconds, "end": end, **more}
    )


@contextmanager
def victim(there: World) -> Iterator[libvirt.virDomain]:
    """A second guest, first in its batch, that is not expected to live."""
    emulator = there.guest.tree().emulator
    spec = GuestSpec(**{**VICTIM.__dict__, "emulator": emulator})
    before = there.files
    try:
        yield there.host.boot(spec)
    finally:
        there.host.remove_guest(spec)
    there.files = before


def both(there: World, end: End, **more: object) -> Order:
    return order(there, end, VICTIM.name, GUEST.name, **more)


def nothing_of_ours(there: World) -> None:
    """With the victim's own files still there."""
    assert not there.open_updates()
    ours = [path for path in everything() - there.files if "victim" not in path and "domain-" not in path]
    assert not ours, ours
    assert not [path for path in everything() if "hostagent" in path.removeprefix("/var/lib/hostagent")]


# -- a new QEMU that is not fit ------------------------------------------------------------------------------


def wrap(there: World, script: str) -> str:
    """A QEMU that misbehaves when it is to take a guest over; libvirt finds it whole."""
    real = there.other_tree.emulator
    WRAPPER.write_text(
        f'#!/bin/bash\\ncase " $* " in *" -incoming "*) : ;; *) exec {real} "$@" ;; esac\\n'.replace("\\n", "\n")
        + script.replace("QEMU", f"env -u PWD -u OLDPWD -u SHLVL -u _ {real}")
        + "\n"
    )
    WRAPPER.chmod(0o755)
    return str(WRAPPER)


UNFIT = {
    "does not start": ('echo "qemu-system: no luck today" >&2; exit 1', "no luck today"),
    "refuses the machine": ('exec QEMU "${@//pc-q35-7.2/pc-q35-77}"', "unsupported machine type"),
    "lacks a device": ('exec QEMU "${@//virtio-rng-pci/virtio-unheard-of}"', "virtio-unheard-of"),
    "refuses the state": ('exec QEMU "$@" -global virtio-net-pci.mrg_rxbuf=off', "load"),
    "hangs at its start": ("exec sleep 1000", "monitor"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_unfit_qemu_is_left_for_the_old_one(there: World, kind: str) -> None:
    script, words = UNFIT[kind]
    before = there.guest.tree()
    there.guest.forget_gaps()
    patience = 3.0 if "hangs" in kind else 60.0
    code = there.run(order(there, emulator=wrap(there, script), start_seconds=patience))
    outcome, reason = there.last()
    print(kind, outcome, reason, f"{there.guest.felt_ms():.1f} ms")
    assert code == 0
    assert outcome is Outcome.ROLLED_BACK
    there.check(on=before)
    assert words in reason


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
@pytest.mark.parametrize("step", ["reconcile", "switch", "record"])
def test_new_qemu_hangs_or_dies(there: World, step: str, number: int) -> None:
    before = there.guest.tree()
    there.guest.forget_gaps()
    with there.stopped(order(there, at(step), budget_seconds=LEFT_SECONDS, start_seconds=START_SECONDS)) as halted:
        os.kill(halted.pids(GUEST.name)[1], number)
    print(step, number, there.last(), f"{there.guest.felt_ms():.1f} ms", halted.code)
    there.check(on=before)
    assert there.last()[0] is Outcome.ROLLED_BACK
    assert halted.code == 0, "expected the updater to end by itself"


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_new_qemu_hangs_or_dies_while_loading(there: World, number: int) -> None:
    before = there.guest.tree()
    there.guest.forget_gaps()
    code = there.run(order(there, budget_seconds=LEFT_SECONDS, start_seconds=START_SECONDS, at_send=number))
    print(number, there.last(), f"{there.guest.felt_ms():.1f} ms", code)
    there.check(on=before)
    assert there.last()[0] is Outcome.ROLLED_BACK
    assert code == 0, "expected the updater to end by itself"


def test_budget_turns_back(there: World) -> None:
    before = there.guest.tree()
    code = there.run(order(there, budget_seconds=0.001))
    outcome, reason = there.last()
    print(outcome, reason, f"{there.guest.felt_ms():.1f} ms")
    there.check(on=before)
    assert (code, outcome) == (0, Outcome.ROLLED_BACK)
    assert "budget" in reason


# -- the old one ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["reconcile", "switch"])
def test_old_qemu_hangs(there: World, step: str) -> None:
    """Nothing can be done while it hangs; once it goes on, recovery brings everything in order."""
    before = there.guest.tree()
    with there.stopped(
        order(there, at(step), budget_seconds=LEFT_SECONDS, start_seconds=START_SECONDS, ready_seconds=5.0)
    ) as halted:
        old = psutil.Process(halted.pids(GUEST.name)[0])
        old.suspend()
    print(step, there.last(), halted.code)
    old.resume()
    if there.open_updates():
        there.lab.recover()
    print(step, there.last())
    there.check(on=before)


def test_old_qemu_hangs_after_the_commit(there: World) -> None:
    to = there.other_tree
    with there.stopped(order(there, at("retire"), start_seconds=START_SECONDS)) as halted:
        psutil.Process(halted.pids(GUEST.name)[0]).suspend()
    print(there.last(), halted.code)
    there.check(on=to)


def test_new_qemu_hangs_after_the_commit(there: World) -> None:
    """The old one must be gone all the same: whoever resumed it through libvirt would make a second copy."""
    to = there.other_tree
    with there.stopped(order(there, at("resume"), start_seconds=START_SECONDS)) as halted:
        _, new = halted.pids(GUEST.name)
        psutil.Process(new).suspend()
    print(there.last(), halted.code)
    assert [process.pid for process in there.guest.processes()] == [new]
    psutil.Process(new).resume()
    there.lab.recover()
    there.check(on=to)


def test_new_qemu_dies_after_the_commit(there: World) -> None:
    to = there.other_tree
    with victim(there):
        with there.stopped(both(there, at("resume"))) as halted:
            os.kill(halted.pids(VICTIM.name)[1], signal.SIGKILL)
        print(there.last(VICTIM.name), halted.code)
        assert there.last(VICTIM.name)[0] is Outcome.LOST
        nothing_of_ours(there)
    there.check(on=to)
    assert there.last(GUEST.name)[0] is Outcome.UPDATED


EXPECTED = {"start": "gone", "reconcile": "gone", "switch": "lost", "record": "updated", "retire": "updated"}


@pytest.mark.parametrize("step", EXPECTED)
def test_old_qemu_is_killed(there: World, step: str) -> None:
    to = there.other_tree
    with victim(there):
        with there.stopped(both(there, at(step))) as halted, suppress(ProcessLookupError):
            os.kill(halted.pids(VICTIM.name)[0], signal.SIGKILL)  # gone already, once it is retired
        print(step, there.last(VICTIM.name), halted.code)
        assert there.last(VICTIM.name)[0] == EXPECTED[step]
        alive = EXPECTED[step] == "updated"
        assert bool(there.host.connection.lookupByUUIDString(VICTIM.uuid).isActive()) is alive
        nothing_of_ours(there)
    there.check(on=to)
    assert there.last(GUEST.name)[0] is Outcome.UPDATED


@pytest.mark.parametrize(
    ("end", "again", "expected"),
    [
        (at("prepare", when=When.BEFORE), False, Outcome.GONE),
        (at("prepare", when=When.BEFORE), True, Outcome.UPDATED),  # the guest that was named, begun anew
        (at("start"), False, Outcome.GONE),
        (at("start"), True, Outcome.GONE),
        (at("detach", when=When.BEFORE), False, Outcome.GONE),
    ],
    ids=str,
)
def test_operator_destroys_it(there: World, end: End, *, again: bool, expected: Outcome) -> None:
    to = there.other_tree
    with victim(there) as domain:
        with there.stopped(both(there, end)) as halted:
            domain.destroy()
            if again:
                domain.create()
        print(end, there.last(VICTIM.name), halted.code)
        assert there.last(VICTIM.name)[0] is expected
        assert bool(there.host.connection.lookupByUUIDString(VICTIM.uuid).isActive()) is again
        nothing_of_ours(there)
    there.check(on=to)
    assert there.last(GUEST.name)[0] is Outcome.UPDATED


def test_paused_guest_is_undone(there: World) -> None:
    with victim(there) as domain:
        domain.suspend()
        there.run(both(there, None, budget_seconds=0.001))
        print(there.last(VICTIM.name))
        undone = there.host.connection.lookupByUUIDString(VICTIM.uuid)
        assert undone.state() == [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER]
        there.run(both(there, None))
        print("again", there.last(VICTIM.name))
        still = there.host.connection.lookupByUUIDString(VICTIM.uuid)
        still.resume()
        Proof(still).wait_booted(connected=False, first=False)
    there.check()


# -- the updater ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "how"),
    [
        *(("start", How.RAISE), ("switch", How.INTERRUPT), ("record", How.RAISE)),
        *(("resume", How.INTERRUPT), ("retire", How.RAISE)),
    ],
)
def test_updater_ends_by_an_error_of_its_own(there: World, step: str, how: How) -> None:
    code = there.run(order(there, at(step, how)))
    print(step, how, code, there.last())
    there.check()


@pytest.mark.parametrize("step", ["switch", "record", "resume", "retire", "attach"])
def test_journal_is_full(there: World, step: str) -> None:
    code = there.run(order(there, at(step, How.DISK_FULL)))
    print(step, code, there.last())
    assert driver_lock_is_libvirts()
    there.guest.check()
    there.lab.recover()
    there.check()


@pytest.mark.parametrize("step", ["record", "retire"])
def test_nobody_can_write_the_journal(there: World, step: str) -> None:
    """The guard cannot either: the guest runs and libvirt is up all the same, and recovery comes later."""
    path = there.lab.config.paths.state / "journal.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as journal:
        with there.stopped(order(there, at(step))) as halted:
            journal.execute("begin exclusive")
        print(step, halted.code)
        assert driver_lock_is_libvirts()
        there.guest.check()
        journal.execute("rollback")
    there.lab.recover()
    print(step, there.last())
    there.check()


def test_updater_hangs_while_the_guest_is_paused(there: World) -> None:
    before = there.guest.tree()
    there.guest.forget_gaps()
    updater = there.start_updater(order(there, at("record"), budget_seconds=LEFT_SECONDS))
    assert updater.wait(LIMIT) == -signal.SIGKILL
    there.wait_unguarded()
    print(f"{there.guest.felt_ms():.1f} ms")
    there.check(on=before)


def test_second_update_is_refused(there: World) -> None:
    to = there.other_tree
    with there.stopped(order(there, at("start"))) as halted:
        with pytest.raises(Refused) as refused:
            there.lab.update(to)
        assert str(halted.updater.pid) in str(refused.value)
        assert "since 20" in str(refused.value)
        with pytest.raises(Refused):
            there.lab.recover()
    there.check(on=to)


# -- libvirt's daemon started early --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end", [at(s) for s in ("reconcile", "switch", "record", "resume", "retire", "prove", "attach")], ids=str
)
def test_early_daemon_is_kept_out(there: World, end: End) -> None:
    to = there.other_tree
    with there.stopped(order(there, end)) as halted:
        assert not start_libvirtd_early()
    print(end, there.last(), halted.code)
    there.check(on=to)
    assert there.last()[0] is Outcome.UPDATED


@pytest.mark.parametrize("step", ["reconcile", "record", "resume", "retire"])
def test_early_daemon_when_nobody_keeps_it_out(there: World, step: str) -> None:
    there.cut_off(at(step, How.KILL_GUARD_TOO))
    assert start_libvirtd_early()
    print(step, there.guest.domain.state())
    there.lab.recover()
    print(step, there.last())
    there.check()
