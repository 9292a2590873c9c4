"""The updater dies while a real guest is held; afterwards the guest runs, whole, exactly once."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from hostagent.plan import Technique
from hostagent.update.hold import AFTER, HOLD, HOLD_STEPS, PREPARE, RESTORE, RESUME
from hostagent.update.journal import Outcome
from tests.bench.guest_spec import GuestSpec
from tests.crash.real_updater import End, How, Order, When
from tests.crash.real_world import World, world

pytestmark = pytest.mark.skipif("HOSTAGENT_BENCH" not in os.environ, reason="runs inside the bench")

STILL = [step.name for step in (*HOLD, *RESTORE, *RESUME)]
FIGURES: list[str] = []


@pytest.fixture(scope="module")
def there(request: pytest.FixtureRequest) -> Iterator[World]:
    with world(GuestSpec(fill_mib=128, vcpus=2), technique=Technique.HOLD) as made:
        yield made
    reporter = request.config.pluginmanager.getplugin("terminalreporter")
    for line in FIGURES:
        reporter.write_line(f"\n{line}", flush=True)


def went_forward(end: End) -> bool:
    committed = end.step in [step.name for step in AFTER]
    return committed or (end.step == RESUME[0].name and end.when is When.AFTER)


def judge(there: World, end: End) -> None:
    there.check(on=there.to if went_forward(end) else there.before)
    assert there.last()[0] is (Outcome.UPDATED if went_forward(end) else Outcome.ROLLED_BACK)


AFTER_EACH = [End(step=step.name, when=When.AFTER, how=How.KILL) for step in HOLD_STEPS]
BEFORE_EACH = [End(step=step, when=When.BEFORE, how=How.KILL_GUARD_TOO) for step in STILL]


@pytest.mark.parametrize("end", [*AFTER_EACH, End(step="resume", when=When.BEFORE, how=How.KILL)], ids=str)
def test_guard_alone_recovers(there: World, end: End) -> None:
    there.guest.forget_gaps()
    there.cut_off(end)
    judge(there, end)
    FIGURES.append(f"updater killed {end.when} {end.step}: guest stood still for {there.guest.felt_ms():.0f} ms")


@pytest.mark.parametrize("end", BEFORE_EACH, ids=str)
def test_next_start_recovers(there: World, end: End) -> None:
    there.cut_off(end)
    there.lab.recover()
    judge(there, end)


def test_held_at_once_again(there: World) -> None:
    """After all of that."""
    assert there.run(Order(to=there.other_tree.name, technique=Technique.HOLD)) == 0
    assert there.last()[0] is Outcome.UPDATED
    there.check()


assert PREPARE[0].name == HOLD_STEPS[0].name
