"""The updater dies at every moment; recovery, in a process of its own, must leave every guest well."""

import signal
from collections.abc import Iterator, Sequence

import pytest

from hostagent.update.journal import Outcome
from tests.crash import shapes
from tests.crash.judge import outcomes, problems, reason
from tests.crash.rig import FILE, JOURNAL, WORLD, Points, Rig, Scenario, kill_me, rig
from tests.crash.sweep import Share, sweep

ALL_RUN = Scenario()
ONE_PAUSED = Scenario(paused=("db1",))
ALONE = Scenario(guests=("web1",))
ONE_COPIED = Scenario(copied=("db1",))
KVM_COPIED = Scenario(guests=("web1",), copied=("web1",), kvm=True)
HALTED = Scenario(guests=("web1",), copied=("web1",))
COPIED_PAUSED = Scenario(guests=("web1",), copied=("web1",), paused=("web1",))
HELD = Scenario(guests=("web1",), held=("web1",))
BOTH_HELD = Scenario(held=("web1", "db1"))
ONE_HELD = Scenario(held=("db1",))
REBOOTED = Scenario(guests=("web1",), rebooted=("web1",))
BOTH_REBOOTED = Scenario(rebooted=("web1", "db1"))
ONE_REBOOTED = Scenario(rebooted=("db1",))
SWAP = Scenario(held=("web1", "db1"), swaps=True)
ANYWHERE = (JOURNAL, FILE, WORLD)

Found = Iterator[tuple[str, Sequence[str]]]


def intended(host: Rig) -> dict[str, bool]:
    """By name: whether the intent to resume the new one is durable; of one that is rebooted, whether it runs there."""
    found = {
        guest.name: runs_on_new(host, guest.uuid)
        if guest.name in host.scenario.rebooted
        else "resume" in guest.progress.begun
        for update in host.updates()
        for guest in update.guests.values()
    }
    return dict.fromkeys(found, any(found.values())) if host.scenario.swaps else found  # then all go the same way


def runs_on_new(host: Rig, uuid: str) -> bool:
    """Whether it was started on what it is to run on."""
    return any(host.host.world.argv(one)[0] == shapes.NEW.emulator for one in host.host.processes(uuid))


def wrongly_ended(host: Rig, committed: dict[str, bool], ended: dict[str, Outcome | None]) -> list[str]:
    """Guests whose end does not fit what was intended: forward after the intent, back before it."""
    wanted = {name: Outcome.UPDATED if forward else Outcome.ROLLED_BACK for name, forward in committed.items()}
    return [
        f"{name} ended as {ended[name]}, not {wanted[name]}: {reason(host, name)}"
        for name in wanted
        if ended[name] is not wanted[name]
    ]


def judged(host: Rig, committed: dict[str, bool], raised: str) -> list[str]:
    """Everything that is wrong after a recovery."""
    updates = host.updates()
    ended = outcomes(host, updates)
    wrong = [*problems(host, updates=updates), *wrongly_ended(host, committed, ended)]
    return [*([f"recovery: {raised}"] if raised else []), *wrong]


def test_an_undisturbed_update() -> None:
    kept = (ALL_RUN, ONE_PAUSED, ALONE, ONE_COPIED, KVM_COPIED, COPIED_PAUSED, HELD, BOTH_HELD, ONE_HELD, SWAP)
    for scenario in (*kept, REBOOTED, BOTH_REBOOTED, ONE_REBOOTED):
        with rig(scenario) as host:
            assert host.update() == ""
            assert problems(host) == []
            assert set(outcomes(host).values()) == {Outcome.UPDATED}


@pytest.mark.parametrize("scenario", [ALL_RUN, BOTH_REBOOTED], ids=str)
def test_killed_for_real_at_every_journal_write(scenario: Scenario) -> None:
    """By SIGKILL, in processes of their own. The other sweeps go on from the disks as they were at each moment."""

    def trials(share: Share) -> Found:
        with rig(scenario) as host:
            counted = Points(only=(JOURNAL,))
            host.update(counted)
        for number, label in share.of(list(enumerate(counted.labels, start=1))):
            with rig(scenario) as host:
                points = Points(kill_me, number, (JOURNAL,))
                if host.update_killed(points) != -signal.SIGKILL:
                    yield label, ["it was not killed"]
                    continue
                committed = intended(host)
                ended = host.recover_killed(Points(only=()))
                yield label, judged(host, committed, f"exit {ended}" if ended else "")

    sweep(trials)


@pytest.mark.parametrize(
    ("scenario", "kinds"),
    [
        *((ALL_RUN, ANYWHERE), (ONE_PAUSED, (JOURNAL,))),
        *((ONE_COPIED, (JOURNAL,)), (KVM_COPIED, ANYWHERE), (HALTED, ANYWHERE), (COPIED_PAUSED, (JOURNAL,))),
        *((HELD, ANYWHERE), (BOTH_HELD, (JOURNAL,)), (ONE_HELD, (JOURNAL,)), (SWAP, ANYWHERE)),
        *((REBOOTED, ANYWHERE), (BOTH_REBOOTED, ANYWHERE), (ONE_REBOOTED, (JOURNAL,))),
    ],
    ids=str,
)
@pytest.mark.parametrize("daemon_comes_early", [False, True], ids=["alone", "daemon early"])
def test_killed_anywhere(scenario: Scenario, kinds: tuple[str, ...], daemon_comes_early: bool) -> None:
    """Around every journal write, before every file operation, after every change of the world."""

    def trials(share: Share) -> Found:
        with rig(scenario) as host:
            for moment in share.of(host.moments(host.update, kinds)):
                host.go_back(moment)
                committed = intended(host)
                if daemon_comes_early:
                    host.host.somebody_starts_daemon()
                yield moment.label, judged(host, committed, host.recover())

    sweep(trials)


@pytest.mark.parametrize("scenario", [ALONE, HALTED, HELD, SWAP, REBOOTED], ids=str)
def test_recovery_killed_as_well(scenario: Scenario) -> None:
    """At every journal write of every recovery from every journal write."""

    def trials(share: Share) -> Found:
        with rig(scenario) as host:
            for first in share.of(host.moments(host.update, (JOURNAL,))):
                host.go_back(first)
                committed = intended(host)
                for second in host.moments(host.recover, (JOURNAL,)):
                    host.go_back(second)
                    yield f"{first.label} / {second.label}", judged(host, committed, host.recover())

    sweep(trials)


def test_recovery_is_repeatable() -> None:
    """Recovered twice, all is as after once."""

    def trials(share: Share) -> Found:
        with rig(ALL_RUN) as host:
            for moment in share.of(host.moments(host.update, (JOURNAL,))):
                host.go_back(moment)
                committed = intended(host)
                host.recover()
                yield moment.label, judged(host, committed, host.recover())

    sweep(trials)
