"""Makes docs/pauses.svg and docs/host.svg: python -m tests.grafana.picture"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

from tests.bench.paths import PROJECT
from tests.grafana.picture.figures import bars, figure, table
from tests.grafana.picture.plots import Shown, heatmap, over_time, states
from tests.grafana.picture.svg import DESK, DIM, EDGE, PAPER, Box, Sheet, fitted
from tests.grafana.picture.words import clock
from tests.grafana.shown import BOARDS, dashboard, panels
from tests.grafana.take import TAKEN

COLUMN, LINE, GAP, HEAD = 50, 30, 8, 44
"""Grafana's 24 columns and its unit of height, the space between panels, the dashboard's own title: pixels."""
DRAWN = {
    "stat": figure,
    "bargauge": bars,
    "table": table,
    "timeseries": over_time,
    "heatmap": heatmap,
    "state-timeline": states,
}


def main() -> None:
    taken = json.loads(TAKEN.read_text())
    for board in BOARDS:
        (PROJECT / f"docs/{board}.svg").write_text(str(picture(board, taken[board])))


def picture(board: str, taken: Mapping) -> Sheet:
    """A dashboard with all its panels where Grafana has them."""
    window = taken["window"]
    marks = sorted(
        {
            (value / 1000, series["labels"]["outcome"])
            for series in taken["marks"]
            for _, value in series["points"]
            if value / 1000 >= window["begin"]
        }
    )
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels(board))
    sheet = Sheet(24 * COLUMN + 2 * GAP, height * LINE + HEAD + GAP)
    sheet.rectangle(Box(0, 0, sheet.width, sheet.height), DESK)
    sheet.text(2 * GAP, 29, dashboard(board)["title"], size=17, bold=True)
    times = f"{clock(window['begin'])} to {clock(window['end'])} UTC"
    sheet.text(sheet.width - 2 * GAP, 29, times, size=12, colour=DIM, anchor="end")
    for panel in panels(board):
        place = panel["gridPos"]
        box = Box(GAP + place["x"] * COLUMN, HEAD + place["y"] * LINE, place["w"] * COLUMN, place["h"] * LINE)
        box = box.inside(GAP / 2, GAP / 2, GAP / 2, GAP / 2)
        shown = Shown(**window, marks=marks, answers=taken["panels"][panel["title"]])
        with sheet.titled(panel["title"]):
            sheet.rectangle(box, PAPER, edge=EDGE, rounded=3)
            sheet.text(box.x + 12, box.y + 20, fitted(panel["title"], box.width - 20, 12.5), size=12.5, bold=True)
            DRAWN[panel["type"]](sheet, box.inside(0, 30, 0, 0), panel, shown)
    return sheet


if __name__ == "__main__":
    sys.exit(main())
