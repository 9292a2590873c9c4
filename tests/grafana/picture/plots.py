"""Panels over time: lines, stacks, heatmaps, bands of states."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.grafana.picture.axes import Axes, scaled
from tests.grafana.picture.svg import DIM, FAINT, INK, PAPER, Box, Sheet, width_of
from tests.grafana.picture.words import COLOURS, PALETTE, clock, name_of, properties_of, value_in

Points = Sequence[tuple[float, float]]
ORANGES = ((255, 245, 235), (253, 174, 107), (230, 85, 13), (127, 39, 4))


@dataclass(frozen=True)
class Shown:
    """What a picture of a panel is made of: times are Unix seconds."""

    begin: float
    end: float
    step: float
    marks: Sequence[tuple[float, str]]  # when updates ended, and how
    answers: Sequence[Mapping]


@dataclass(frozen=True)
class Line:
    """A series with what it is drawn with."""

    name: str
    colour: str
    points: Points
    custom: Mapping
    dash: str


def over_time(sheet: Sheet, box: Box, panel: Mapping, shown: Shown) -> None:
    """Lines or bars, by themselves or one upon the other."""
    lines = _lines(panel, shown)
    custom = panel["fieldConfig"]["defaults"]["custom"]
    legend = _legend_lines(lines, box.width)
    plot = box.inside(54, 6, 10, 22 + 15 * len(legend))
    stacked = custom["stacking"]["mode"] == "normal"
    tops = _stacked(lines) if stacked else {}
    values = list(tops.values()) if stacked else [value for line in lines for _, value in line.points]
    axes = scaled(plot, shown.begin, shown.end, values, log="scaleDistribution" in custom)
    _frame(sheet, axes, panel["fieldConfig"]["defaults"]["unit"], shown)
    if stacked:
        _stack(sheet, axes, lines, shown.step, bars=custom["drawStyle"] == "bars")
    else:
        for line in lines:
            _line(sheet, axes, line, shown.step)
    for row, part in enumerate(legend):
        _legend(sheet, plot.x, plot.bottom + 32 + 15 * row, part)


def _lines(panel: Mapping, shown: Shown) -> list[Line]:
    found = []
    defaults = panel["fieldConfig"]["defaults"]["custom"]
    for answer in shown.answers:
        for series in answer["series"]:
            name = name_of(answer["legend"], series["labels"])
            own = properties_of(panel, name)
            colour = COLOURS[own["color"]["fixedColor"]] if "color" in own else PALETTE[len(found) % len(PALETTE)]
            custom = defaults | {key.removeprefix("custom."): value for key, value in own.items()}
            dash = " ".join(map(str, custom["lineStyle"]["dash"])) if "lineStyle" in custom else ""
            found.append(Line(name, colour, series["points"], custom, dash))
    return found


def _frame(sheet: Sheet, axes: Axes, unit: str, shown: Shown) -> None:
    for value in axes.values():
        y = axes.y(value)
        sheet.line([(axes.box.x, y), (axes.box.right, y)], FAINT)
        sheet.text(axes.box.x - 6, y + 3.5, value_in(unit, value), size=10, colour=DIM, anchor="end")
    _times(sheet, axes, shown)


def _times(sheet: Sheet, axes: Axes, shown: Shown) -> None:
    box = axes.box
    for at in axes.times():
        sheet.line([(axes.x(at), box.y), (axes.x(at), box.bottom)], FAINT)
        sheet.text(axes.x(at), box.bottom + 14, clock(at), size=10, colour=DIM, anchor="middle")
    for at, outcome in shown.marks:
        colour = COLOURS["blue" if outcome == "updated" else "orange"]
        x = axes.x(at)
        sheet.line([(x, box.y), (x, box.bottom)], colour, dash="3 3")
        sheet.area([(x - 4, box.bottom + 5), (x + 4, box.bottom + 5), (x, box.bottom)], colour, opacity=1)


def _line(sheet: Sheet, axes: Axes, line: Line, step: float) -> None:
    if line.custom["drawStyle"] == "line":
        for run in _runs(line.points, math.inf if line.custom["spanNulls"] else step * 1.5):
            corners = _corners(run) if line.custom["lineInterpolation"] == "stepAfter" else run
            pixels = [(axes.x(at), axes.y(value)) for at, value in corners]
            sheet.line(pixels, line.colour, width=line.custom["lineWidth"] + 0.5, dash=line.dash)
    if line.custom["drawStyle"] == "points" or line.custom["showPoints"] == "always":
        for at, value in line.points:
            sheet.dot(axes.x(at), axes.y(value), line.colour, line.custom["pointSize"] / 2)


def _runs(points: Points, longest: float) -> list[list[tuple[float, float]]]:
    """Cut where there was no value for longer than that, seconds."""
    runs: list[list[tuple[float, float]]] = []
    for at, value in points:
        if not runs or at - runs[-1][-1][0] > longest:
            runs.append([])
        runs[-1].append((at, value))
    return runs


def _corners(points: Points) -> list[tuple[float, float]]:
    """Each value until the next one's time."""
    corners = [points[0]]
    for at, value in points[1:]:
        corners += [(at, corners[-1][1]), (at, value)]
    return corners


def _stacked(lines: Sequence[Line]) -> dict[float, float]:
    tops: dict[float, float] = {}
    for line in lines:
        for at, value in line.points:
            tops[at] = tops.get(at, 0) + value
    return tops


def _stack(sheet: Sheet, axes: Axes, lines: Sequence[Line], step: float, *, bars: bool) -> None:
    below: dict[float, float] = {}
    width = axes.x(axes.begin + step) - axes.x(axes.begin)
    for line in lines:
        for at, value in line.points:
            low = below.get(at, 0.0)
            below[at] = low + value
            bottom, top = axes.y(low), axes.y(low + value)
            if bars:
                place = Box(axes.x(at) - width * 0.45, top, width * 0.9, bottom - top)
                sheet.rectangle(place, line.colour, opacity=0.85)
            elif bottom - top > 0.1:
                left, right = axes.x(at), min(axes.x(at) + width, axes.box.right)
                sheet.rectangle(Box(left, top, right - left, bottom - top), line.colour, opacity=0.3)
        for run in () if bars else _runs([(at, below[at]) for at, _ in line.points], step * 1.5):
            sheet.line([(axes.x(at), axes.y(value)) for at, value in _corners(run)], line.colour, width=1.5)


def _legend_lines(lines: Sequence[Line], width: float) -> list[list[Line]]:
    rows: list[list[Line]] = [[]]
    used = 0.0
    for line in lines:
        needed = 30 + width_of(line.name)
        if rows[-1] and used + needed > width - 64:
            rows.append([])
            used = 0.0
        rows[-1].append(line)
        used += needed
    return rows


def _legend(sheet: Sheet, x: float, y: float, lines: Sequence[Line]) -> None:
    for line in lines:
        sheet.line([(x, y - 4), (x + 14, y - 4)], line.colour, width=3, dash="4 3" if line.dash else "")
        sheet.text(x + 19, y, line.name, colour=DIM)
        x += 30 + width_of(line.name)


def heatmap(sheet: Sheet, box: Box, panel: Mapping, shown: Shown) -> None:
    """Cells by how much fell between one bound and the next; the bounds are cumulative, as histograms have them."""
    (answer,) = shown.answers
    rows = sorted((_bound(series["labels"]["le"]), dict(series["points"])) for series in answer["series"])
    plot = box.inside(54, 6, 10, 44)
    axes = Axes(plot, shown.begin, shown.end, 0, len(rows))
    unit = panel["fieldConfig"]["defaults"]["unit"]
    _times(sheet, axes, Shown(shown.begin, shown.end, shown.step, (), ()))
    counts = [
        [(at, value - (rows[number - 1][1].get(at, 0) if number else 0)) for at, value in points.items()]
        for number, (_, points) in enumerate(rows)
    ]
    most = max((value for row in counts for _, value in row), default=1) or 1
    width = axes.x(axes.begin + shown.step) - axes.x(axes.begin)
    for number, ((bound, _), row) in enumerate(zip(rows, counts, strict=True)):
        bottom, top = axes.y(number), axes.y(number + 1)
        label = value_in(unit, bound) if math.isfinite(bound) else "more"
        sheet.line([(plot.x, top), (plot.right, top)], FAINT)
        sheet.text(plot.x - 6, top + 3.5, label, size=10, colour=DIM, anchor="end")
        for at, value in row:
            if value > panel["options"]["filterValues"]["le"]:
                place = Box(axes.x(at) - width / 2, top + 0.5, max(width - 1, 2), bottom - top - 1)
                sheet.rectangle(place, _orange((value / most) ** panel["options"]["color"]["exponent"]))
    _times(sheet, axes, Shown(shown.begin, shown.end, shown.step, shown.marks, ()))
    _colours(sheet, Box(plot.x, plot.bottom + 24, 160, 8), most)


def _colours(sheet: Sheet, box: Box, most: float) -> None:
    for part in range(16):
        place = Box(box.x + part * box.width / 16, box.y, box.width / 16, box.height)
        sheet.rectangle(place, _orange(math.sqrt((part + 1) / 16)))
    sheet.text(box.right + 8, box.bottom, f"up to {most:.0f} pauses at a time", size=10, colour=DIM)


def _bound(le: str) -> float:
    return float(le.replace("+Inf", "inf"))


def _orange(share: float) -> str:
    at = min(max(share, 0), 1) * (len(ORANGES) - 1)
    low = min(int(at), len(ORANGES) - 2)
    mixed = (round(a + (b - a) * (at - low)) for a, b in zip(ORANGES[low], ORANGES[low + 1], strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def states(sheet: Sheet, box: Box, panel: Mapping, shown: Shown) -> None:
    """A band for each series; as long as a value lasts it is one piece, with its word."""
    (answer,) = shown.answers
    meanings = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
    plot = box.inside(54, 6, 10, 44)
    axes = Axes(plot, shown.begin, shown.end, 0, max(len(answer["series"]), 1))
    _times(sheet, axes, shown)
    for number, series in enumerate(answer["series"]):
        top = axes.y(number + 1) + 6
        height = axes.y(number) - top - 6
        sheet.text(
            plot.x - 6,
            top + height / 2 + 4,
            name_of(answer["legend"], series["labels"]),
            size=10,
            colour=DIM,
            anchor="end",
        )
        for begin, end, value in _pieces(series["points"], shown.end):
            meaning = meanings[f"{value:.0f}"]
            place = Box(axes.x(begin), top, axes.x(end) - axes.x(begin), height)
            sheet.rectangle(place, COLOURS[meaning["color"]], edge=PAPER, opacity=0.8)
            if width_of(meaning["text"]) < place.width - 8:
                sheet.text(place.x + 5, top + height / 2 + 4, meaning["text"], colour=INK)
    x = plot.x
    for meaning in meanings.values():
        sheet.rectangle(Box(x, plot.bottom + 23, 10, 10), COLOURS[meaning["color"]], opacity=0.8)
        sheet.text(x + 15, plot.bottom + 32, meaning["text"], colour=DIM)
        x += 32 + width_of(meaning["text"])


def _pieces(points: Points, end: float) -> list[tuple[float, float, float]]:
    pieces: list[tuple[float, float, float]] = []
    for at, value in points:
        if pieces and pieces[-1][2] == value:
            continue
        if pieces:
            pieces[-1] = (pieces[-1][0], at, pieces[-1][2])
        pieces.append((at, end, value))
    return pieces
