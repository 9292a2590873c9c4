"""A swap for the whole host for which one guest is held, and another one is on a peer meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from hostagent.hypervisor import RunState
from hostagent.hypervisor.fake import FaultKind
from hostagent.update.journal import Outcome
from tests.crash.judge import outcomes, reason
from tests.crash.rig import JOURNAL, WORLD, Rig, Scenario, rig
from tests.crash.sweep import Share, sweep
from tests.crash.test_cleared import asked_to_stop

AWAY = Scenario(held=("web1",), migrated=("db1",), comes_back=True, swaps=True)
LEAP = replace(AWAY, component="kernel")
Found = Iterator[tuple[str, Sequence[str]]]


def runs(host: Rig) -> dict[str, list[str]]:
    """The hosts on which each guest runs."""
    return {
        name: [one.host for one in host.host.processes(uuid) if one.state is RunState.RUNNING]
        for name, uuid in host.uuids.items()
    }


HOME = {"web1": [""], "db1": [""]}


def test_it_is_back_once_that_is_swapped() -> None:
    with rig(AWAY) as host:
        assert host.update() == ""
        assert (set(outcomes(host).values()), runs(host), host.host.violations()) == ({Outcome.UPDATED}, HOME, [])


def test_it_is_back_under_the_new_kernel() -> None:
    with rig(LEAP) as host:
        assert host.update() == "HOST ENDED"
        assert (host.boot(), host.recover()) == ("", "")
        assert (set(outcomes(host).values()), runs(host), host.host.violations()) == ({Outcome.UPDATED}, HOME, [])


@pytest.mark.parametrize("kind", [FaultKind.APPLY_FAILS, FaultKind.SAVE_FAILS], ids=str)
def test_it_is_back_when_nothing_was_swapped(kind: FaultKind) -> None:
    with rig(AWAY) as host:
        host.host.fault(kind)
        assert host.update() == ""
        assert (runs(host), host.host.violations()) == (HOME, []), reason(host, "db1")
        assert set(outcomes(host).values()) == {Outcome.ROLLED_BACK}


def test_killed_at_any_moment() -> None:
    def trials(share: Share) -> Found:
        with rig(AWAY) as host:
            for snapshot in share.of(host.moments(host.update, (JOURNAL, WORLD))):
                host.go_back(snapshot)
                wrong = [said for said in (host.recover(),) if said] + host.host.violations()
                if runs(host) != HOME or len(set(outcomes(host).values()) - {None}) > 1:
                    wrong.append(f"{runs(host)}: {outcomes(host)}: {reason(host, 'db1')}")
                yield snapshot.label, wrong

    assert sweep(trials) > 30


def test_asked_to_stop_at_any_moment() -> None:
    def trials(share: Share) -> Found:
        for label, host, said in asked_to_stop(AWAY, share):
            wrong = ([said] if said else []) + host.host.violations()
            if runs(host) != HOME or set(outcomes(host).values()) not in ({Outcome.UPDATED}, {Outcome.ROLLED_BACK}):
                wrong.append(f"{runs(host)}: {outcomes(host)}: {reason(host, 'db1')}")
            yield label, wrong

    assert sweep(trials) > 15


def test_killed_at_any_moment_under_the_new_kernel() -> None:
    def trials(share: Share) -> Found:
        with rig(LEAP) as host:
            host.update()
            host.boot()
            for snapshot in share.of(host.moments(host.recover, (JOURNAL, WORLD))):
                host.go_back(snapshot)
                wrong = [said for said in (host.recover(),) if said] + host.host.violations()
                if runs(host) != HOME or set(outcomes(host).values()) != {Outcome.UPDATED}:
                    wrong.append(f"{runs(host)}: {outcomes(host)}: {reason(host, 'db1')}")
                yield snapshot.label, wrong

    assert sweep(trials) > 10


def test_the_host_is_restarted_otherwise_at_any_moment() -> None:
    """The guest that is on the peer has its memory, and goes on."""

    def trials(share: Share) -> Found:
        with rig(AWAY) as host:
            for snapshot in share.of(host.moments(host.update, (JOURNAL,))):
                host.go_back(snapshot)
                there = [one for one in host.host.processes(host.uuids["db1"]) if one.host and one.holds >= 0]
                here = [one for one in host.host.processes(host.uuids["db1"]) if not one.host]
                with host.host.world.change() as state:
                    host.host.world.end_kernel(state, leaps=False)
                wrong = [said for said in (host.boot(),) if said]
                host.host.somebody_starts_daemon()
                wrong += [said for said in (host.recover(),) if said] + host.host.violations()
                if there and not here and not runs(host)["db1"]:
                    wrong.append(f"{runs(host)}: {outcomes(host)}: {reason(host, 'db1')}")
                if any(ended in (None, Outcome.NEEDS_OPERATOR) for ended in outcomes(host).values()):
                    wrong.append(f"{outcomes(host)}: {reason(host, 'db1')}")
                yield snapshot.label, wrong

    assert sweep(trials) > 20
