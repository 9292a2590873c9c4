"""How long looking at a host and planning for it take, by the number of its guests: python -m bench.scaling.

The host is made up (tests/bench/made_up_agent.py): guests of every kind, of which nothing is known before. Needs no
guest.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from hostagent import wiring
from hostagent.planning.guest_policy import Policies
from hostagent.planning.planner import plan_qemu
from hostagent.update.journal_past import JournalPast
from hostagent.update.journal_tail import JournalTail
from tests.bench.cost import how_busy
from tests.bench.made_up_agent import NEWER, MadeUpHost, settings

COUNTS = (50, 100, 200, 500, 1000)


def measured(counts: Sequence[int] = COUNTS) -> dict[int, tuple[float, float]]:
    """Seconds for a first look at so many guests, and for a plan for all of them."""
    with tempfile.TemporaryDirectory() as name:
        past = JournalPast(JournalTail(wiring.journal_path(settings(Path(name), 60.0))))
        return {count: _of(MadeUpHost.of(Path(name), count), past) for count in counts}


def _of(made_up: MadeUpHost, past: JournalPast) -> tuple[float, float]:
    began = time.perf_counter()
    host, _ = made_up.look(past)
    looked = time.perf_counter()
    plan = plan_qemu(host, NEWER, None, policies=Policies())
    ended = time.perf_counter()
    assert len(plan.guests) == len(made_up.guests)
    return looked - began, ended - looked


def main() -> int:
    print(f"On {how_busy()}")
    for count, (look, plan) in measured().items():
        a_guest = f"{look / count * 1000:.2f} ms and {plan / count * 1000:.2f} ms a guest"
        print(f"  {count:5} guests: looked at in {look:.2f} s, planned for in {plan:.2f} s; {a_guest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
