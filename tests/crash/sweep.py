"""Runs a sweep on every core: each worker process takes its share of the points."""

from __future__ import annotations

import gc
import json
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

WORKERS = os.cpu_count() or 1
_SHOWN = 12


@dataclass(frozen=True)
class Share:
    """What one worker does of everything."""

    number: int

    def of(self, everything: Sequence[T]) -> Sequence[T]:
        """Every so many-th, so that each worker sees all kinds."""
        return everything[self.number :: WORKERS]

    def has(self, number: int) -> bool:
        """Whether that one is among them, where nobody knows how many there are."""
        return number % WORKERS == self.number


Trials = Callable[[Share], Iterator[tuple[str, Sequence[str]]]]


def sweep(trials: Trials) -> int:
    """Run all trials; each yields what it was and what was wrong. Fails with what was wrong; returns their number."""
    with tempfile.TemporaryDirectory() as folder:
        reports = [Path(folder) / str(number) for number in range(WORKERS)]
        workers = [os.fork() or _work(report, trials, Share(n)) for n, report in enumerate(reports)]
        ended = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers]
        assert ended == [0] * WORKERS, "a worker died"
        found = [json.loads(report.read_text()) for report in reports]
    done = sum(report["done"] for report in found)
    wrong = [line for report in found for line in report["wrong"]]
    assert done, "nothing was swept"
    assert not wrong, f"{len(wrong)} of {done}:\n" + "\n".join(wrong[:_SHOWN])
    print(f"{done} trials")
    return done


def _work(report: Path, trials: Trials, share: Share) -> int:
    done, wrong = 0, []
    try:
        gc.freeze()
        try:
            for label, found in trials(share):
                done += 1
                if found:
                    wrong.append(f"{label}: " + "; ".join(found))
        except Exception:
            wrong.append(traceback.format_exc())
        report.write_text(json.dumps({"done": done, "wrong": wrong}))
    finally:
        os._exit(0 if report.exists() else 1)
