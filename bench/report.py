"""What the benchmark leaves and shows."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from bench.reach import AIMS, Reached, reached
from bench.series import Series, ratios
from bench.tables import COLUMNS, markdown, rows, shown
from tests.bench.demo import machine
from tests.bench.paths import BUILD

RESULT = BUILD / "bench.json"
TABLE = BUILD / "bench.md"
RATIOS = (
    ("handover_kept", "limit"),
    ("handover_kept", "cpr_transfer"),
    ("handover_kept", "save_restore"),
    ("handover_copied", "live_migration"),
    ("hold", "raw_hold"),
    ("hold", "save_restore"),
)

Looked = Mapping[int, tuple[float, float]]
"""Seconds for a first look at so many guests, and for a plan for them."""


@dataclass(frozen=True)
class Report:
    """What there is by now: of a run that is cut off, that much."""

    plainly_at: int  # MiB filled of the guests whose ratios do not name their size
    found: Sequence[Series]
    away: Mapping[int, float]  # for how long libvirt was, by the number of guests, seconds
    looked: Looked

    def keep(self) -> None:
        aims = self._aims()
        told = {
            "machine": machine(),
            "series": [one.to_json() for one in self.found],
            "ratios": dict(ratios(self.found, RATIOS, self.plainly_at)),
            "aims": [aim.to_json() for aim in aims],
            "libvirt_away_seconds": {str(count): round(seconds, 3) for count, seconds in self.away.items()},
            "look_and_plan_seconds": {str(count): [round(one, 3) for one in two] for count, two in self.looked.items()},
        }
        RESULT.write_text(json.dumps(told, indent=1))
        TABLE.write_text(f"{markdown(COLUMNS, rows(self.found))}\n{markdown(AIMS, [aim.row() for aim in aims])}")

    def show(self, out: Console) -> None:
        out.print(shown("How long a guest stands still", COLUMNS, rows(self.found)))
        out.print(shown("What was to be reached", AIMS, [aim.row() for aim in self._aims()]))

    def _aims(self) -> Sequence[Reached]:
        return reached(self.found, self.away, os.cpu_count() or 1)
