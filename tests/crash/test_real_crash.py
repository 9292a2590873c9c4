"""The updater dies at each step of a handover of a real guest; afterwards the guest runs, whole, exactly once."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from hostagent.update.handover import AFTER, ATTACH, BESIDE, DETACH, SWAP
from hostagent.update.journal import Outcome
from tests.bench.guest_spec import GuestSpec
from tests.crash.real_updater import End, How, When
from tests.crash.real_world import World, world

pytestmark = pytest.mark.skipif("HOSTAGENT_BENCH" not in os.environ, reason="runs inside the bench")

STEPS = [step.name for step in (*BESIDE, *SWAP, *AFTER, *DETACH, *ATTACH)]
COMMITTED = ("retire", "prove", "attach", "look")
FIGURES: list[str] = []


@pytest.fixture(scope="module")
def there(request: pytest.FixtureRequest) -> Iterator[World]:
    with world(GuestSpec(fill_mib=128)) as made:
        yield made
    reporter = request.config.pluginmanager.getplugin("terminalreporter")
    for line in FIGURES:
        reporter.write_line(f"\n{line}", flush=True)


PAUSED = ("switch", "record", "resume")


def ends(how: How, when: When, *, also: When) -> list[End]:
    """Each step once, those that a guest stands still in twice; what is one row apart is swept on the fake."""
    each = [End(step=step, when=when, how=how) for step in STEPS]
    return each + [End(step=step, when=also, how=how) for step in PAUSED]


@pytest.mark.parametrize("end", ends(How.KILL, When.AFTER, also=When.BEFORE), ids=str)
def test_guard_alone_recovers(there: World, end: End) -> None:
    before, to = there.guest.tree(), there.other_tree
    there.guest.forget_gaps()
    there.cut_off(end)
    forward = end.step in COMMITTED or (end.step == "resume" and end.when is When.AFTER)
    there.check(on=to if forward else before)
    assert there.last()[0] is (Outcome.UPDATED if forward else Outcome.ROLLED_BACK)
    FIGURES.append(f"updater killed {end.when} {end.step}: guest stood still for {there.guest.felt_ms():.1f} ms")


@pytest.mark.parametrize("end", ends(How.KILL_GUARD_TOO, When.BEFORE, also=When.AFTER), ids=str)
def test_next_start_recovers(there: World, end: End) -> None:
    before, to = there.guest.tree(), there.other_tree
    there.cut_off(end)
    there.lab.recover()
    forward = end.step in COMMITTED or (end.step == "resume" and end.when is When.AFTER)
    there.check(on=to if forward else before)
    assert there.last()[0] is (Outcome.UPDATED if forward else Outcome.ROLLED_BACK)
