"""What a dashboard shows: its committed JSON, each expression asked of Prometheus as Grafana would ask it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tests.bench.paths import PROJECT
from tests.grafana.prometheus import EVERY, Prometheus, Series

FOLDER = PROJECT / "grafana"
BOARDS = ("pauses", "host")


@dataclass(frozen=True)
class Window:
    """The time that is shown, Unix time, with a point every so many seconds."""

    begin: float
    end: float
    step: float

    def filled_in(self, expr: str) -> str:
        """With what Grafana puts in the place of its variables; all hosts and methods are chosen."""
        values = {
            "__rate_interval": f"{max(self.step + EVERY, 4 * EVERY) * 1000:.0f}ms",  # as Grafana makes it
            "__range": f"{self.end - self.begin:.0f}s",
            "instance": ".*",
            "method": ".*",
        }
        return re.sub(r"\$(\w+)", lambda found: values[found[1]], expr)


@dataclass(frozen=True)
class Answer:
    """To one query of a panel."""

    expr: str
    legend: str
    now: bool
    series: tuple[Series, ...]


def dashboard(name: str) -> dict:
    """As it is committed."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def panels(name: str) -> Iterator[dict]:
    """Those that ask something."""
    yield from (panel for panel in dashboard(name)["panels"] if panel["type"] != "row")


def answers(panel: Mapping, prometheus: Prometheus, window: Window) -> tuple[Answer, ...]:
    """What Prometheus says to each query of a panel."""
    return tuple(_answer(target, prometheus, window) for target in panel["targets"])


def _answer(target: Mapping, prometheus: Prometheus, window: Window) -> Answer:
    expr = window.filled_in(target["expr"])
    if target["instant"]:
        series = prometheus.now(expr, window.end)
    else:
        series = prometheus.over_time(expr, window.begin, window.end, window.step)
    return Answer(target["expr"], target["legendFormat"], target["instant"], series)


def marks(name: str, prometheus: Prometheus, window: Window) -> tuple[Series, ...]:
    """Annotations: their times, ms, are the values."""
    (annotation,) = dashboard(name)["annotations"]["list"]
    expr = window.filled_in(annotation["expr"])
    return prometheus.over_time(expr, window.begin, window.end, window.step)
