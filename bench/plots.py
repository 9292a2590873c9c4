"""Pictures of the benchmark for docs/, from build/bench.json: python -m bench.plots."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from math import ceil, floor, log2, log10
from pathlib import Path
from typing import Any

from tests.bench.paths import BUILD, PROJECT
from tests.grafana.picture.svg import DIM, FAINT, INK, PAPER, Box, Sheet, width_of

DOCS = PROJECT / "docs"
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760.0, 400.0, 66.0, 54.0, 190.0, 46.0
NAMES = {
    "handover_kept": "handover, RAM kept",
    "handover_copied": "handover, RAM copied",
    "hold": "hold",
    "held_together": "hold of all together",
    "save_restore": "virsh save and restore",
    "save_restore_disk": "the same, by disk",
    "managed_save": "managed save",
    "live_migration": "live migration",
    "reboot": "reboot",
    "limit": "QEMU alone, handed over",
    "cpr_transfer": "QEMU alone, cpr-transfer",
    "raw_hold": "QEMU alone, saved and loaded",
}
COLOURS = {
    "handover_kept": "#1f77b4",
    "handover_copied": "#17a2b8",
    "hold": "#8e5bb5",
    "held_together": "#c0392b",
    "save_restore": "#d95f02",
    "limit": "#8a9099",
}
OF_CROWDS = ("handover_kept", "handover_copied", "hold", "held_together", "limit")
_BAR = 500.0  # the length of each bar
PHASES = ("#1f77b4", "#7fb2dd", "#8e5bb5", "#c3a5da", "#d95f02", "#e9a96b")

Row = Mapping[str, Any]
Point = tuple[float, float]


def by_size(series: Sequence[Row]) -> Sheet:
    """The median pause against the RAM that is filled."""
    sizes = {row["ram_mib"] for row in series if row["method"] == "raw_hold"}
    rows = [row for row in series if (row["guests"], row["load"]) == (1, "idle") and row["ram_mib"] in sizes]
    lines = {method: _points(rows, method, "ram_mib") for method in COLOURS}
    ticks = sorted(sizes)
    title = "How long a guest stands still, by how much RAM it fills"
    return _lines(title, {method: points for method, points in lines.items() if len(points) > 1}, ticks, "MiB")


def by_crowd(series: Sequence[Row]) -> Sheet:
    """The median pause of one of many that are updated at once."""
    crowds = [row for row in series if row["ram_mib"] == min(one["ram_mib"] for one in series)]
    lines = {method: _points(crowds, method, "guests") for method in OF_CROWDS}
    ticks = sorted({row["guests"] for row in crowds})
    title = "How long each guest stands still, by how many are updated at once"
    return _lines(title, {method: points for method, points in lines.items() if len(points) > 1}, ticks, "guests")


def by_step(series: Sequence[Row], ram_mib: int) -> Sheet:
    """What the steps of each technique take, from the one that stops the guest to the one that has it go on."""
    found = {
        row["method"]: row["phases_seconds"]
        for row in series
        if row["phases_seconds"] and (row["ram_mib"], row["guests"], row["load"]) == (ram_mib, 1, "idle")
    }
    shown = {method: _until_resumed(steps) for method, steps in found.items() if method != "reboot"}
    height = TOP + 46 * len(shown) + BOTTOM
    sheet, box = _sheet("The steps that the pause is in (each bar to its own scale)", height)
    for place, (method, steps) in enumerate(shown.items()):
        y, total, x = box.y + 46 * place, sum(steps.values()), box.x + 90
        sheet.text(14, y + 15, NAMES[method], size=11)
        for number, (step, seconds) in enumerate(steps.items()):
            width = _BAR * seconds / total
            sheet.rectangle(Box(x, y, width, 22), PHASES[number % len(PHASES)])
            words = f"{step} {_time(seconds * 1000)}"
            if width_of(words, 10) < width - 6:
                sheet.text(x + 4, y + 15, words, size=10, colour=PAPER)
            x += width
        sheet.text(x + 6, y + 15, _time(total * 1000), size=11, colour=DIM)
    return sheet


def _until_resumed(steps: Mapping[str, float]) -> dict[str, float]:
    """From the first one in which the guest stands still from the beginning; it begins to near the end of `pause`."""
    names = [name for name in steps if name != "pause"]
    return {name: steps[name] for name in names[: names.index("resume") + 1]}


def _points(rows: Sequence[Row], method: str, along: str) -> list[Point]:
    return sorted((row[along], row["median_seconds"] * 1000) for row in rows if row["method"] == method)


def _sheet(title: str, height: float = HEIGHT) -> tuple[Sheet, Box]:
    sheet = Sheet(WIDTH, height)
    sheet.rectangle(Box(0, 0, WIDTH, height), PAPER)
    sheet.text(14, 26, title, size=14, bold=True)
    return sheet, Box(LEFT, TOP, WIDTH - LEFT - RIGHT, height - TOP - BOTTOM)


def _lines(title: str, lines: Mapping[str, Sequence[Point]], ticks: Sequence[float], unit: str) -> Sheet:
    """Both axes by powers: of two along, of ten up."""
    sheet, box = _sheet(title)
    values = [value for points in lines.values() for _, value in points]
    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    x = _scale(log2(ticks[0]), log2(ticks[-1]), box.x + 16, box.right - 10)
    y = _scale(low, high, box.bottom, box.y)
    for power in range(low, high + 1):
        at = y(power)
        sheet.line([(box.x, at), (box.right, at)], FAINT)
        sheet.text(box.x - 8, at + 4, _time(10**power), anchor="end")
    for tick in ticks:
        sheet.text(x(log2(tick)), box.bottom + 20, f"{tick:g}", anchor="middle", colour=DIM)
    sheet.text(box.right, box.bottom + 38, unit, anchor="end", colour=DIM)
    labels: list[float] = []
    for method, points in sorted(lines.items(), key=lambda one: -one[1][-1][1]):
        colour = COLOURS[method]
        places = [(x(log2(at)), y(log10(value))) for at, value in points]
        sheet.line(places, colour, width=2)
        for place in places:
            sheet.dot(*place, colour)
        label = max([places[-1][1] + 4, *(one + 15 for one in labels[-1:])])
        labels.append(label)
        sheet.text(box.right + 4, label, f"{NAMES[method]}, {_time(points[-1][1])}", size=10.5, colour=INK)
    return sheet


def _time(milliseconds: float) -> str:
    return f"{milliseconds:.3g} ms" if milliseconds < 999.5 else f"{milliseconds / 1000:.3g} s"


def _scale(least: float, greatest: float, begin: float, end: float) -> Callable[[float], float]:
    return lambda value: begin + (value - least) / ((greatest - least) or 1) * (end - begin)


def main() -> int:
    told = json.loads((BUILD / "bench.json").read_text())
    series: list[Row] = told["series"]
    middle = next(row["ram_mib"] for row in series if row["method"] == "reboot")
    for name, sheet in (
        ("bench-sizes", by_size(series)),
        ("bench-steps", by_step(series, middle)),
        ("bench-crowds", by_crowd(series)),
    ):
        Path(DOCS / f"{name}.svg").write_text(str(sheet))
    return 0


if __name__ == "__main__":
    sys.exit(main())
