"""A dashboard: rows of panels one below the other, with its variables and annotations."""

from __future__ import annotations

import json
from dataclasses import dataclass

from grafana.panels import BLUE, DATASOURCE, Json, Panel

SCHEMA_VERSION = 39  # Grafana 10.4's


@dataclass(frozen=True)
class Row:
    """Panels side by side; height in Grafana's units of 30 pixels."""

    height: int
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Board:
    """A dashboard. name: of its file; by_method: whether one can choose the methods that are shown."""

    name: str
    title: str
    description: str
    rows: tuple[Row, ...]
    since: str
    by_method: bool = False

    def to_json(self) -> Json:
        """As Grafana imports it: which Prometheus it asks is chosen there, and it has no id that could be taken."""
        return {
            "title": self.title,
            "description": self.description,
            "tags": ["hostagent"],
            "schemaVersion": SCHEMA_VERSION,
            "editable": True,
            "graphTooltip": 1,  # one line through all panels
            "timezone": "browser",
            "time": {"from": self.since, "to": "now"},
            "timepicker": {},
            "refresh": "1m",
            "fiscalYearStartMonth": 0,
            "templating": {"list": [*self._variables()]},
            "annotations": {"list": [UPDATES]},
            "links": [OTHERS],
            "panels": self._panels(),
        }

    def _variables(self) -> list[Json]:
        found = [DATASOURCES, _labels("instance", "Host", "label_values(hostagent_build_info, instance)")]
        if self.by_method:
            found.append(_labels("method", "Method", "label_values(hostagent_guest_updates_total, method)"))
        return found

    def _panels(self) -> list[Json]:
        placed: list[Json] = []
        y = 0
        for row in self.rows:
            x = 0
            for panel in row.panels:
                place = {"x": x, "y": y, "w": panel.width, "h": row.height}
                placed.append({"id": len(placed) + 1, "gridPos": place, **panel.to_json()})
                x += panel.width
            y += row.height
        return placed


def text_of(board: Board) -> str:
    """The file's text."""
    return json.dumps(board.to_json(), indent=2, ensure_ascii=False) + "\n"


DATASOURCES: Json = {
    "type": "datasource",
    "name": "datasource",
    "label": "Prometheus",
    "query": "prometheus",
    "refresh": 1,
    "regex": "",
    "hide": 0,
    "multi": False,
    "includeAll": False,
    "options": [],
}

# At each update's own end, by its time in the value, however rarely Prometheus looks.
UPDATES: Json = {
    "name": "Updates",
    "enable": True,
    "hide": False,
    "iconColor": BLUE,
    "datasource": DATASOURCE,
    "expr": 'hostagent_last_update_timestamp_seconds{instance=~"$instance"} * 1000',
    "step": "60s",
    "titleFormat": "Update {{outcome}}",
    "textFormat": "{{instance}}",
    "tagKeys": "outcome",
    "useValueForTime": True,
}

OTHERS: Json = {
    "title": "hostagent",
    "type": "dashboards",
    "icon": "external link",
    "tooltip": "",
    "url": "",
    "tags": ["hostagent"],
    "asDropdown": False,
    "targetBlank": False,
    "includeVars": True,
    "keepTime": True,
}


def _labels(name: str, label: str, query: str) -> Json:
    """A variable: any or all of a label's values."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": "StandardVariableQuery"},
        "refresh": 2,  # whenever the time range changes
        "sort": 1,
        "regex": "",
        "hide": 0,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "options": [],
        "current": {"text": ["All"], "value": ["$__all"]},
    }
