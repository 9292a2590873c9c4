"""Scales: from values and times to pixels, with ticks at round ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tests.grafana.picture.svg import Box

STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)


@dataclass(frozen=True)
class Axes:
    """A plot's place, the time it shows, and its values from the least to the greatest; log: by powers of ten."""

    box: Box
    begin: float
    end: float
    least: float
    greatest: float
    log: bool = False

    def x(self, at: float) -> float:
        return self.box.x + (at - self.begin) / (self.end - self.begin) * self.box.width

    def y(self, value: float) -> float:
        if self.log:
            low, high = math.log10(self.least), math.log10(self.greatest)
            share = (math.log10(max(value, self.least)) - low) / (high - low)
        else:
            share = (value - self.least) / (self.greatest - self.least)
        return self.box.bottom - share * self.box.height

    def times(self) -> list[float]:
        """Where the time has ticks, at most eight of them."""
        step = next((step for step in STEPS if (self.end - self.begin) / step <= 8), STEPS[-1])
        first = math.ceil(self.begin / step)
        return [at * step for at in range(first, int(self.end // step) + 1)]

    def values(self) -> list[float]:
        """Where the values have ticks."""
        if self.log:
            return [10.0**power for power in range(round(math.log10(self.least)), round(math.log10(self.greatest)) + 1)]
        step = round_up((self.greatest - self.least) / 5)
        return [self.least + step * at for at in range(int((self.greatest - self.least) / step + 1e-9) + 1)]


def scaled(box: Box, begin: float, end: float, values: list[float], *, log: bool) -> Axes:
    """For these values; from 0 on where it is not by powers of ten."""
    if log:
        above = [value for value in values if value > 0] or [1.0]
        low, high = math.floor(math.log10(min(above))), math.ceil(math.log10(max(above)))
        return Axes(box, begin, end, 10.0**low, 10.0 ** max(high, low + 1), log=True)
    top = max(values, default=0) or 1.0
    return Axes(box, begin, end, 0.0, round_up(top / 5) * 5 if top > 5 else top * 1.15)


def round_up(value: float) -> float:
    """The next 1, 2 or 5 with zeros."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))
