"""What was to be reached, and what was, of one run; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.series import Series, single

AIMS = ("aim", "at most", "found", "reached")


@dataclass(frozen=True)
class Reached:
    """One aim: what was found, and what it should not exceed."""

    name: str
    found: float
    at_most: float
    unit: str = ""  # a ratio has none

    def to_json(self) -> dict[str, object]:
        return {"name": self.name, "found": round(self.found, 4), "at_most": self.at_most, "unit": self.unit}

    def row(self) -> tuple[str, str, str, str]:
        """As AIMS names its columns."""
        words = [f"{value:.3g} {self.unit}".strip() for value in (self.at_most, self.found)]
        return self.name, words[0], words[1], "yes" if self.found <= self.at_most else "no"


def reached(found: Sequence[Series], away: Mapping[int, float], cores: int) -> tuple[Reached, ...]:
    """As far as it was measured; away: for how long libvirt was, by the number of guests, seconds."""
    alone = single(found)
    sizes = sorted({ram for method, ram in alone if method == "raw_hold"})  # of the axis of sizes
    return (*_of_single(alone, sizes), *_of_many(found, alone, cores), *_away(away))


def _of_single(alone: Mapping[tuple[str, int], Series], sizes: Sequence[int]) -> Iterator[Reached]:
    for size in sizes:
        of = {method: one for (method, ram), one in alone.items() if ram == size}
        for one, other, at_most in (
            ("handover_kept", "limit", 1.3),
            ("handover_copied", "live_migration", 1.0),
            ("hold", "raw_hold", 4.0),
        ):
            if one in of and other in of:
                yield Reached(f"{one}/{other} at {size} MiB", of[one].median / of[other].median, at_most)
        kept, hold = of.get("handover_kept"), of.get("hold")
        if kept:
            yield Reached(f"handover_kept p95/median at {size} MiB", kept.p95 / kept.median, 2.0)
            own = kept.median - of["limit"].median
            yield Reached(f"handover_kept - limit at {size} MiB", own * 1000, 5.0, "ms")
        if hold and hold.phases:
            own = hold.median - hold.phases["save"] - hold.phases["restore"]
            yield Reached(f"hold outside of libvirt's save and restore at {size} MiB", own * 1000, 15.0, "ms")
    kept_of = {ram: alone[method, ram] for method, ram in alone if method == "handover_kept" and ram in sizes}
    if len(kept_of) > 1:
        small, large = min(kept_of), max(kept_of)
        ratio = kept_of[large].median / kept_of[small].median
        yield Reached(f"handover_kept at {large} MiB/at {small} MiB", ratio, 1.1)
        if saved := alone.get(("save_restore", large)):
            yield Reached(f"handover_kept/save_restore at {large} MiB", kept_of[large].median / saved.median, 1 / 200)


def _of_many(found: Sequence[Series], alone: Mapping[tuple[str, int], Series], cores: int) -> Iterator[Reached]:
    for many in (one for one in found if one.of.guests > 1):
        count, one = many.of.guests, alone.get((many.of.method, many.of.ram_mib))
        if not one:
            continue
        if many.of.method == "handover_kept":
            ratio = sum(many.felt) / len(many.felt) / one.median
            yield Reached(f"handover_kept of {count} guests, sum/{count} single ones", ratio, 1.2)
        if many.of.method == "held_together":
            ratio = max(many.felt) / (count * one.median / cores)
            yield Reached(f"longest of {count} held together/({count} single holds/{cores} cores)", ratio, 1.0)


def _away(away: Mapping[int, float]) -> Iterator[Reached]:
    for count, seconds in away.items():
        yield Reached(f"libvirt away for {count} guests", seconds, 1 + 0.05 * count, "s")
