"""A swap for the whole host whose updater is killed at a row of its journal: python -m tests.crash.dying_swap STEP WHEN

Its guard sees to the guests. What is swapped is a component of the host's owner, a file: its drop-in must be among the
settings.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hostagent import wiring
from hostagent.config import Config
from hostagent.update.hold import RESTORE, RESUME
from hostagent.update.host_hold import step_name
from tests.bench.lab import CONFIG, Lab
from tests.crash.real_updater import End, MortalJournal, When

COMPONENT = "flag"
FLAG = Path("/var/lib/lab-flag")
DROP_IN = Path(f"{CONFIG}.d/flag.toml")
SETTINGS = f"""\
[[component]]
name = "{COMPONENT}"
apply = ["/usr/bin/touch", "{FLAG}"]
verify = ["/usr/bin/test", "-e", "{FLAG}"]
roll_back = ["/usr/bin/rm", "-f", "{FLAG}"]
hold = true
"""
BUDGET_SECONDS = 300.0
ALL_ARE_SAVED = (step_name(COMPONENT), When.BEFORE)
COMMITTED = (RESUME[0].name, When.AFTER)
BARRIER = (
    ALL_ARE_SAVED,
    (step_name(COMPONENT), When.AFTER),
    (RESTORE[0].name, When.BEFORE),  # it is swapped
    (RESUME[0].name, When.BEFORE),  # all are restored
    COMMITTED,
)
"""Its rows; up to the last one all guests go back, and what was swapped with them."""


def main(step: str, when: When) -> None:
    config = Config.load(CONFIG)
    end = End(step=step, when=when)
    wiring.journal_of = lambda settings: MortalJournal(wiring.journal_path(settings), end)
    Lab(config).swap(COMPONENT, budget_seconds=BUDGET_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1], When(sys.argv[2]))
