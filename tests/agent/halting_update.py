"""`hostagent WORDS...`, which stands still once a step has begun, until somebody sends it SIGCONT."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hostagent import wiring
from hostagent.agent.launching import AsChild
from hostagent.cli import main
from tests.bench.paths import PROJECT
from tests.crash.real_updater import End, How, MortalJournal


@dataclass(frozen=True)
class Halting(AsChild):
    """Launches what changes something so that it halts there."""

    step: str = ""

    def changing(self, words: Sequence[str], environment: Mapping[str, str]) -> Sequence[str]:
        path, here = f"import sys; sys.path.insert(0, {str(PROJECT)!r})", f"from {__name__} import halt_at"
        return (sys.executable, "-c", f"{path}; {here}; halt_at({self.step!r})", *self.common, *words)


def halt_at(step: str) -> None:
    end = End(step=step, how=How.STOP)
    wiring.journal_of = lambda config: MortalJournal(wiring.journal_path(config), end)
    main()
