"""The host's kernel is swapped under held guests: what ends with the old one, and what goes on under the new one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count

import pytest

from hostagent.errors import HostagentError, NeedsOperator
from hostagent.hypervisor.fake import FaultKind
from hostagent.hypervisor.fake_component import FakeKernel
from hostagent.update.journal import Entry, Kind, Outcome, SqliteJournal
from tests.crash.judge import outcomes, problems, reason
from tests.crash.rig import FILE, JOURNAL, WORLD, Points, Rig, Scenario, kill_me, rig
from tests.crash.sweep import Share, sweep

LEAP = Scenario(held=("web1", "db1"), swaps=True, component="kernel")
K = FaultKind
UPDATED, ROLLED_BACK, LOST = Outcome.UPDATED, Outcome.ROLLED_BACK, Outcome.LOST
Found = Iterator[tuple[str, Sequence[str]]]


def both(host: Rig) -> tuple[Outcome | None, Outcome | None]:
    ended = outcomes(host)
    return ended["web1"], ended["db1"]


def reset(host: Rig, *, leaps: bool = False) -> None:
    """The host goes down once more, and comes up."""
    with host.host.world.change() as state:
        host.host.world.end_kernel(state, leaps=leaps)


def test_guests_go_on_under_the_new_kernel() -> None:
    with rig(LEAP) as host:
        assert host.update() == "HOST ENDED"
        assert (host.boot(), host.recover()) == ("", "")
        assert (both(host), problems(host)) == ((UPDATED, UPDATED), []), reason(host, "web1")
        (update,) = host.updates()
        assert update.host.done == {"swap kernel"}
        measured = [guest.measured for guest in update.guests.values()]
        assert all(one["pause_source"] == "wall-clock" and float(str(one["pause_seconds"])) > 2 for one in measured)


def test_nobody_else_starts_them_first() -> None:
    """libvirt's daemon may start guests as it comes up: the hook knows before that."""
    with rig(LEAP) as host:
        assert host.update() == "HOST ENDED"
        assert not list(host.host.world.held.glob("*"))
        assert host.boot() == ""
        assert sorted(path.name for path in host.host.world.held.iterdir()) == ["db1.held", "web1.held"]


@pytest.mark.parametrize("kind", [K.APPLY_FAILS, K.SAVE_FAILS, K.SUSPEND_FAILS], ids=str)
def test_all_go_back_when_there_is_no_leap(kind: FaultKind) -> None:
    with rig(LEAP) as host:
        host.host.fault(kind)
        assert host.update() == ""
        assert (both(host), problems(host)) == ((ROLLED_BACK, ROLLED_BACK), [])


def test_a_host_that_firmware_has_started_has_nothing_of_them_left() -> None:
    """The new kernel did not come up, or the plug was pulled: what was saved is never loaded."""
    with rig(LEAP) as host:
        host.host.fault(K.HOST_RESET)
        assert host.update() == "HOST ENDED"
        assert host.boot() == ""
        assert both(host) == (LOST, LOST)
        assert "restarted" in reason(host, "web1")
        assert host.recover() == ""
        assert not list(host.host.world.held.glob("*"))
        assert (host.host.violations(), both(host)) == ([], (LOST, LOST))
        assert not list((host.root / "state" / "held").glob("*"))


@pytest.mark.parametrize("leaps", [False, True])
def test_another_boot_after_that_ends_it(leaps: bool) -> None:
    """Guests may have run on since the first one: also a kernel that was started with the same words is too late."""
    with rig(LEAP) as host:
        assert host.update() == "HOST ENDED"
        assert host.boot() == ""
        reset(host, leaps=leaps)
        assert (host.boot(), host.recover()) == ("", "")
        assert (both(host), host.host.violations()) == ((LOST, LOST), [])


def test_a_reboot_into_the_kernel_that_was_ready_is_no_leap() -> None:
    """kexec-tools starts what is loaded when somebody reboots the host: guests ended as with any reboot."""

    def trials(share: Share) -> Found:
        for fails in (False, True):
            with rig(LEAP) as host:
                if fails:
                    host.host.fault(K.SAVE_FAILS, host.uuids["db1"])
                for snapshot in share.of(host.snapshots(host.update, (JOURNAL,))):
                    host.go_back(snapshot)
                    host.host.no_more_faults()
                    if "swap kernel" in snapshot.label or not any(update.is_open for update in host.updates()):
                        continue
                    reset(host, leaps=True)
                    wrong = [said for said in (host.boot(), host.recover(), *host.host.violations()) if said]
                    if not set(outcomes(host).values()) <= {LOST, ROLLED_BACK}:
                        wrong.append(f"ended as {outcomes(host)}")
                    yield snapshot.label, wrong

    assert sweep(trials) > 30


def test_ram_that_is_mounted_late_is_found_under_its_new_device() -> None:
    """Devices may have other numbers under another kernel, and RAM may not be in its place at first."""
    with rig(LEAP) as host:
        assert host.update() == "HOST ENDED"
        _had_another_device(host)
        assert host.boot() == ""
        pins, aside = host.root / "ram" / "hostagent", host.root / "aside"
        pins.rename(aside)
        assert host.recover() == ""
        assert both(host) == (Outcome.NEEDS_OPERATOR, Outcome.NEEDS_OPERATOR)
        aside.rename(pins)
        assert host.recover() == ""
        assert both(host) == (UPDATED, UPDATED), reason(host, "web1")
        told = [line for line in problems(host) if "discarded" not in line]  # that was the test itself
        assert told == []


def _had_another_device(host: Rig) -> None:
    (update,) = host.updates()
    journal = SqliteJournal(host.root / "state" / "journal.sqlite", update.boot_id, lambda: 0.0)
    for uuid, guest in update.guests.items():
        pins = guest.notes["pins"]
        assert isinstance(pins, list)
        moved = [{**pin, "device": pin["device"] + 1} for pin in pins]
        journal.append(update.id, Entry(Kind.NOTED, uuid, body={"pins": moved}))
    journal.close()


def test_whether_it_was_a_leap_cannot_be_told_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that was saved is given up, and nobody starts the guests, until a person has mended that."""
    with rig(LEAP) as host:
        assert host.update() == "HOST ENDED"
        with monkeypatch.context() as patched:
            patched.setattr(FakeKernel, "is_for_good", _cannot_be_told)
            assert (host.boot(), host.recover()) == ("", "")
            assert sorted(path.name for path in host.host.world.held.iterdir()) == ["db1.held", "web1.held"]
            assert both(host) == (None, None)
        assert host.recover() == ""
        assert (both(host), problems(host)) == ((UPDATED, UPDATED), [])


def _cannot_be_told(_kernel: FakeKernel) -> bool:
    raise NeedsOperator("reading what the new kernel was started for", found="leap.json: damaged")


def test_one_that_cannot_be_restored_at_first_waits_and_the_other_goes_on() -> None:
    with rig(LEAP) as host:
        assert host.update() == "HOST ENDED"
        assert host.boot() == ""
        host.host.fault(K.RESTORE_FAILS, host.uuids["web1"], times=-1)
        assert host.recover() == ""
        assert both(host) == (Outcome.NEEDS_OPERATOR, UPDATED)
        host.host.no_more_faults()
        assert host.recover() == ""
        assert (both(host), problems(host)) == ((UPDATED, UPDATED), [])


def test_the_host_s_own_clock_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever keeps it right needs a moment after the boot; the guests run meanwhile."""
    slept: list[float] = []
    monkeypatch.setattr("hostagent.update.clocks.time.sleep", slept.append)
    with rig(LEAP) as host:
        assert host.update() == "HOST ENDED"
        assert host.boot() == ""
        monkeypatch.setattr(type(host.host.clock), "synchronised", lambda _: len(slept) >= 3)
        assert host.recover() == ""
        assert len(slept) == 3
        outcomes_ = {guest.measured["clock_outcome"] for update in host.updates() for guest in update.guests.values()}
        assert outcomes_ == {"corrected"}


def test_cut_off_anywhere_before_the_leap() -> None:
    """The same kernel still runs: guests come back on it."""

    def trials(share: Share) -> Found:
        with rig(LEAP) as host:
            for snapshot in share.of(host.moments(host.update, (JOURNAL, FILE, WORLD))):
                host.go_back(snapshot)
                if FakeKernel(host.host.world).is_for_good():
                    continue
                said = host.recover()
                wrong = [said] if said else [*problems(host)]
                if {*outcomes(host).values()} - {ROLLED_BACK}:
                    wrong.append(f"ended as {outcomes(host)}")
                yield snapshot.label, wrong

    assert sweep(trials) > 50


def killed_after_it(judged: Callable[[Rig], list[str]]) -> Callable[[Share], Found]:
    """Recovery is killed at each of its moments under the new kernel; what is wrong then is for somebody to say."""

    def trials(share: Share) -> Found:
        for number in count(1):
            if not share.has(number):
                continue
            with rig(LEAP) as host:
                host.update()
                host.boot()
                if host.recover_killed(Points(kill_me, at=number)) == 0:
                    return
                yield f"moment {number}", judged(host)

    return trials


def test_cut_off_anywhere_after_it() -> None:
    """Whoever is killed on the way: the next one brings all of them to an end, under the new kernel."""

    def judged(host: Rig) -> list[str]:
        said = host.recover()
        wrong = [said] if said else [*problems(host)]
        if both(host) != (UPDATED, UPDATED):
            wrong.append(f"ended as {both(host)}: {reason(host, 'web1')}")
        return wrong

    assert sweep(killed_after_it(judged)) > 50


def ends_it(host: Rig) -> None:
    """Somebody who sees web1 paused has it go on, and ends it then."""
    with suppress(HostagentError, KeyError):
        host.host.resume(host.uuids["web1"])
    with suppress(HostagentError, KeyError):
        host.host.destroy(host.uuids["web1"])


def crashes(host: Rig) -> None:
    """The same, and its QEMU dies. Once it was written down that it was restored: before that nobody knows of it."""
    (update,) = host.updates()
    web1 = host.uuids["web1"]
    if update.guests[web1].notes.get("restored"):
        with suppress(HostagentError, KeyError):
            host.host.resume(web1)
        for process in host.host.processes(web1):
            host.host.kill(process.pid)


@pytest.mark.parametrize("act", [ends_it, crashes])
def test_what_has_gone_on_is_not_loaded_again(act: Callable[[Rig], None]) -> None:
    """Recovery dies at any moment under the new kernel, and somebody acts before the next one comes."""

    def judged(host: Rig) -> list[str]:
        act(host)
        said = host.recover()
        wrong = [said] if said else [line for line in host.host.violations() if "discarded" not in line]
        if outcomes(host)["db1"] is not UPDATED:
            wrong.append(f"db1 ended as {outcomes(host)['db1']}: {reason(host, 'db1')}")
        return wrong

    assert sweep(killed_after_it(judged)) > 50
