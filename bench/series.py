"""Pauses that were measured, and what they come to: medians, the slowest of twenty, ratios; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import median

IDLE = "idle"
"""The load of a guest that does no more than is needed to see that it lives."""


@dataclass(frozen=True)
class Of:
    """What a series of pauses is of."""

    method: str
    ram_mib: int
    guests: int = 1
    load: str = IDLE


@dataclass(frozen=True)
class Sample:
    """One pause, in seconds."""

    of: Of
    felt: float  # what the guest's clock lost
    reported: float | None  # by whoever made it; None where nobody says
    slowest: float | None = None  # of the ticks that are due in a second, the share that came in the slowest one after
    phases: Mapping[str, float] = field(default_factory=dict)  # its steps, each with what it took


@dataclass(frozen=True)
class Series:
    """All pauses of one kind, in seconds."""

    of: Of
    felt: tuple[float, ...]
    reported: tuple[float, ...]
    slowest: tuple[float, ...] = ()  # shares, not seconds
    phases: Mapping[str, float] = field(default_factory=dict)  # medians

    @property
    def median(self) -> float:
        return median(self.felt)

    @property
    def p95(self) -> float:
        """What 95 of 100 do not exceed: the nearest rank, which of fewer than 20 is the longest."""
        return sorted(self.felt)[ceil(0.95 * len(self.felt)) - 1]

    def to_json(self) -> dict[str, object]:
        return {
            "method": self.of.method,
            "ram_mib": self.of.ram_mib,
            "guests": self.of.guests,
            "load": self.of.load,
            "n": len(self.felt),
            "median_seconds": round(self.median, 6),
            "p95_seconds": round(self.p95, 6),
            "felt_seconds": [round(one, 6) for one in self.felt],
            "reported_seconds": [round(one, 6) for one in self.reported],
            "slowest_second": round(median(self.slowest), 3) if self.slowest else None,
            "phases_seconds": {name: round(seconds, 6) for name, seconds in self.phases.items()},
        }


def series(samples: Iterable[Sample]) -> tuple[Series, ...]:
    """In the order in which each kind came first."""
    kinds: dict[Of, list[Sample]] = {}
    for sample in samples:
        kinds.setdefault(sample.of, []).append(sample)
    return tuple(
        Series(
            of,
            tuple(one.felt for one in found),
            tuple(one.reported for one in found if one.reported is not None),
            tuple(one.slowest for one in found if one.slowest is not None),
            {name: median(one.phases[name] for one in found if name in one.phases) for name in found[0].phases},
        )
        for of, found in kinds.items()
    )


def single(found: Iterable[Series]) -> Mapping[tuple[str, int], Series]:
    """Those of one idle guest, by method and MiB filled."""
    return {(one.of.method, one.of.ram_mib): one for one in found if (one.of.guests, one.of.load) == (1, IDLE)}


def ratios(found: Sequence[Series], wanted: Iterable[tuple[str, str]], plainly_at: int) -> Mapping[str, float]:
    """Of medians, as `one/other` of guests that fill so many MiB, and `one/other at N MiB` of others.

    Left out where either is missing.
    """
    medians = {of: one.median for of, one in single(found).items()}
    sizes = sorted({ram for _, ram in medians})
    told = {}
    for one, other in wanted:
        for ram in sizes:
            above, below = medians.get((one, ram)), medians.get((other, ram))
            if above is not None and below:
                told[f"{one}/{other}" + (f" at {ram} MiB" if ram != plainly_at else "")] = round(above / below, 4)
    return told
