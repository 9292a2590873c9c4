"""A swap for the whole host for which one guest is held, and another one, that cannot be, is shut down meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from hostagent.hypervisor.fake import FaultKind
from hostagent.update.journal import Outcome
from tests.crash.judge import outcomes, problems, reason
from tests.crash.rig import FILE, JOURNAL, WORLD, Points, Rig, Scenario, rig
from tests.crash.sweep import Share, sweep

K = FaultKind
UPDATED, ROLLED_BACK, LOST, NEEDS_OPERATOR = (
    Outcome.UPDATED,
    Outcome.ROLLED_BACK,
    Outcome.LOST,
    Outcome.NEEDS_OPERATOR,
)
CLEARED = Scenario(held=("web1",), rebooted=("db1",), swaps=True)
LEAP = Scenario(held=("web1",), rebooted=("db1",), swaps=True, component="kernel")
Found = Iterator[tuple[str, Sequence[str]]]


def ends(host: Rig) -> tuple[Outcome | None, Outcome | None]:
    """How it ended for the guest that is held, and for the one that leaves."""
    ended = outcomes(host)
    return ended["web1"], ended["db1"]


def boots(host: Rig) -> int:
    with host.host.world.look() as state:
        return state.guests[host.uuids["db1"]].boots


def test_it_is_started_anew_once_that_is_swapped() -> None:
    with rig(CLEARED) as host:
        assert host.update() == ""
        assert (ends(host), boots(host), problems(host)) == ((UPDATED, UPDATED), 2, []), reason(host, "db1")


def test_nothing_is_swapped_while_it_does_not_shut_down() -> None:
    with rig(CLEARED) as host:
        host.host.fault(K.SHUTDOWN_IGNORED, host.uuids["db1"], times=-1)
        assert host.update() == ""
        assert (ends(host), boots(host), problems(host)) == ((ROLLED_BACK, ROLLED_BACK), 1, [])
        (update,) = host.updates()
        assert (update.outcome, update.host.begun) == (ROLLED_BACK, ())
        assert "db1: having it leave" in reason(host, "web1")


@pytest.mark.parametrize("kind", [K.APPLY_FAILS, K.SAVE_FAILS, K.SUSPEND_FAILS], ids=str)
def test_it_is_started_again_when_nothing_was_swapped(kind: FaultKind) -> None:
    with rig(CLEARED) as host:
        host.host.fault(kind)
        assert host.update() == ""
        assert (ends(host), boots(host), problems(host)) == ((ROLLED_BACK, ROLLED_BACK), 2, [])
        assert reason(host, "db1").endswith("it was shut down, and started again")


def test_it_stays_away_while_what_was_to_be_swapped_waits_for_a_person() -> None:
    """What was before can only be put back while no guest runs."""
    with rig(CLEARED) as host:
        host.host.fault(K.APPLY_FAILS)
        host.host.fault(K.ROLL_BACK_FAILS, times=-1)
        assert host.update() == ""
        assert ends(host) == (NEEDS_OPERATOR, NEEDS_OPERATOR)
        assert host.host.processes(host.uuids["db1"]) == []
        assert reason(host, "db1").endswith("(hint: see to that; then: hostagent recover)")
        assert host.recover() == ""
        assert ends(host) == (NEEDS_OPERATOR, NEEDS_OPERATOR)
        host.host.no_more_faults()
        assert host.recover() == ""
        assert (ends(host), problems(host)) == ((ROLLED_BACK, ROLLED_BACK), [])


def test_it_is_started_under_the_new_kernel() -> None:
    with rig(LEAP) as host:
        assert host.update() == "HOST ENDED"
        assert (host.boot(), host.recover()) == ("", "")
        assert (ends(host), boots(host), problems(host)) == ((UPDATED, UPDATED), 2, []), reason(host, "db1")


@pytest.mark.parametrize("only", [(JOURNAL,), (FILE, WORLD)], ids=["journal", "world"])
def test_killed_at_any_moment(only: tuple[str, ...]) -> None:
    """Both run in the end: with what was swapped, or with what there was before."""

    def trials(share: Share) -> Found:
        with rig(CLEARED) as host:
            for snapshot in share.of(host.moments(host.update, only)):
                host.go_back(snapshot)
                wrong = [said for said in (host.recover(),) if said]
                ended = set(outcomes(host).values()) - {None}
                if not (ended <= {UPDATED} or ended <= {ROLLED_BACK}):
                    wrong.append(f"ended as {outcomes(host)}: {reason(host, 'db1')}")
                yield snapshot.label, [*wrong, *problems(host)]

    assert sweep(trials) > 30


def asked_to_stop(scenario: Scenario, share: Share) -> Iterator[tuple[str, Rig, str]]:
    """An update of that, somebody having asked to stop at each journal write, and what it raised."""
    with rig(scenario) as host:
        counted = Points(only=(JOURNAL,))
        host.update(counted)
    for number, label in enumerate(counted.labels, start=1):
        if share.has(number):
            with rig(scenario) as host:

                def act(host: Rig = host) -> None:
                    host.cancelled = True

                yield label, host, host.update(Points(act, at=number, only=(JOURNAL,)))


def test_asked_to_stop_at_any_moment() -> None:
    def trials(share: Share) -> Found:
        for label, host, said in asked_to_stop(CLEARED, share):
            wrong = [said] if said else []
            ended = set(outcomes(host).values())
            if ended not in ({UPDATED}, {ROLLED_BACK}):
                wrong.append(f"ended as {outcomes(host)}: {reason(host, 'db1')}")
            yield label, [*wrong, *problems(host)]

    assert sweep(trials) > 15


def test_killed_at_any_moment_under_the_new_kernel() -> None:
    def trials(share: Share) -> Found:
        with rig(LEAP) as host:
            host.update()
            host.boot()
            for snapshot in share.of(host.moments(host.recover, (JOURNAL,))):
                host.go_back(snapshot)
                wrong = [said for said in (host.recover(),) if said]
                if set(outcomes(host).values()) != {UPDATED}:
                    wrong.append(f"ended as {outcomes(host)}: {reason(host, 'db1')}")
                yield snapshot.label, [*wrong, *problems(host)]

    assert sweep(trials) > 10


def test_recovery_is_killed_as_well() -> None:
    def trials(share: Share) -> Found:
        with rig(CLEARED) as host:
            for moment in share.of(host.moments(host.update, (JOURNAL,))):
                host.go_back(moment)
                for later in host.moments(host.recover, (JOURNAL,)):
                    host.go_back(later)
                    said = host.recover()
                    yield f"{moment.label}, then {later.label}", [*([said] if said else []), *problems(host)]

    assert sweep(trials) > 30


def test_points_are_there() -> None:
    """The sweeps see the moments that matter."""
    points = Points(only=(JOURNAL,))
    with rig(CLEARED) as host:
        host.update(points)
    labels = " ".join(points.labels)
    order = [labels.index(step) for step in ("step-begun:shut-down", "step-begun:swap modules", "step-begun:start")]
    assert order == sorted(order)
