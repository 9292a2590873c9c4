"""Values in units, names of series, and colours, as Grafana has them in its light theme."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

COLOURS = {
    "green": "#56a64b",
    "yellow": "#d9a400",
    "orange": "#f2721b",
    "red": "#d62d43",
    "blue": "#3274d9",
    "purple": "#a352cc",
    "text": "#8a9099",
}
PALETTE = ("#56a64b", "#d9a400", "#3274d9", "#f2721b", "#8f3bb8", "#37872d", "#1f60c4", "#c4162a", "#b877d9", "#6a6f76")


def value_in(unit: str, value: float) -> str:
    """KeyError for a unit that no panel has."""
    return {"s": _seconds, "short": _number, "": _number, "percentunit": _share, "dateTimeAsIso": _moment}[unit](value)


def _seconds(value: float) -> str:
    size = abs(value)
    if size == 0:
        return "0 s"
    for limit, factor, name in ((0.001, 1e6, "µs"), (1, 1e3, "ms")):
        if size < limit:
            return f"{value * factor:.3g} {name}"
    return f"{value:.3g} s" if size < 60 else f"{value / 60:.3g} min"


def _number(value: float) -> str:
    return f"{value:.0f}" if value == round(value) else f"{value:.3g}"


def _share(value: float) -> str:
    return f"{value * 100:.3g} %"


def _moment(value: float) -> str:
    return datetime.fromtimestamp(value / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def clock(at: float) -> str:
    """A time of the day, UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S")


def name_of(legend: str, labels: Mapping[str, str]) -> str:
    """A series' name, by the pattern of its query."""
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), legend)


def colour_at(steps: Sequence[Mapping], value: float) -> str:
    """By thresholds."""
    reached = [step for step in steps if step["value"] is None or value >= step["value"]]
    return COLOURS[reached[-1]["color"]]


def properties_of(panel: Mapping, name: str) -> dict:
    """What the panel's overrides say of a series or column."""
    found: dict = {}
    for override in panel["fieldConfig"]["overrides"]:
        kind, wanted = override["matcher"]["id"], override["matcher"]["options"]
        if wanted == name if kind == "byName" else re.search(wanted.strip("/"), name):
            found |= {one["id"]: one["value"] for one in override["properties"]}
    return found
