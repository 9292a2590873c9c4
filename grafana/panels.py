"""The kinds of panels that the dashboards are made of. Field names and values are those of Grafana 10.4.

What newer versions call otherwise they read and change themselves as they import it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Json = Mapping[str, object]

GREEN, YELLOW, ORANGE, RED, BLUE, PURPLE, GREY = "green", "yellow", "orange", "red", "blue", "purple", "text"
DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Query:
    """One expression of PromQL. now: its last value alone; else one for each moment shown."""

    expr: str
    legend: str = ""
    now: bool = False


@dataclass(frozen=True)
class Panel:
    """A panel before it has its place; width in 24ths of the dashboard."""

    kind: str  # what Grafana calls its type
    title: str
    description: str
    width: int
    queries: tuple[Query, ...]
    form: str = "time_series"  # of the answer: time_series, table, heatmap
    unit: str = "short"
    defaults: Json = field(default_factory=dict)  # of every field, beside the unit
    options: Json = field(default_factory=dict)
    overrides: tuple[Json, ...] = ()
    transformations: tuple[Json, ...] = ()

    def to_json(self) -> dict[str, object]:
        """As Grafana has it, without id and place."""
        return {
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": DATASOURCE,
            "targets": [self._target(at, query) for at, query in enumerate(self.queries)],
            "fieldConfig": {"defaults": dict(self.defaults) | {"unit": self.unit}, "overrides": list(self.overrides)},
            "options": self.options,
            "transformations": list(self.transformations),
        }

    def _target(self, at: int, query: Query) -> Json:
        return {
            "refId": chr(ord("A") + at),
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": query.expr,
            "legendFormat": query.legend or "__auto",
            "format": self.form,
            "instant": query.now,
            "range": not query.now,
        }


# -- one figure ----------------------------------------------------------------------------------------------------


def figure(
    title: str,
    description: str,
    width: int,
    query: Query,
    *,
    unit: str = "short",
    steps: Sequence[tuple[float, str]] = (),
) -> Panel:
    """A large figure; steps: from which value on it has which colour."""
    return Panel(
        "stat",
        title,
        description,
        width,
        (query,),
        unit=unit,
        defaults={"color": {"mode": "thresholds"}, "thresholds": thresholds(steps), "noValue": "–"},
        options={
            "reduceOptions": LAST,
            "orientation": "auto",
            "textMode": "value",
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "center",
        },
    )


def bars(
    title: str, description: str, width: int, query: Query, *, unit: str, steps: Sequence[tuple[float, str]]
) -> Panel:
    """The last value of each series as a bar that lies."""
    return Panel(
        "bargauge",
        title,
        description,
        width,
        (query,),
        unit=unit,
        defaults={"color": {"mode": "thresholds"}, "thresholds": thresholds(steps), "min": 0},
        options={
            "reduceOptions": LAST,
            "orientation": "horizontal",
            "displayMode": "basic",
            "valueMode": "color",
            "showUnfilled": True,
            "minVizWidth": 8,
            "minVizHeight": 16,
        },
    )


# -- over time -----------------------------------------------------------------------------------------------------


def lines(
    title: str,
    description: str,
    width: int,
    *queries: Query,
    unit: str = "short",
    log: bool = False,
    stacked: bool = False,
    across_gaps: bool = False,
    overrides: tuple[Json, ...] = (),
) -> Panel:
    """Lines over time; across_gaps: from point to point, however long there was none between."""
    custom: dict[str, object] = {
        "drawStyle": "line",
        "lineInterpolation": "stepAfter" if stacked else "linear",
        "lineWidth": 1,
        "fillOpacity": 30 if stacked else 0,
        "showPoints": "always" if across_gaps else "never",
        "pointSize": 6,
        "spanNulls": across_gaps,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
    }
    if log:
        custom["scaleDistribution"] = {"type": "log", "log": 10}
    return _over_time(title, description, width, queries, unit=unit, custom=custom, overrides=overrides)


def stacks(
    title: str, description: str, width: int, *queries: Query, unit: str = "short", overrides: tuple[Json, ...] = ()
) -> Panel:
    """A bar for each moment at which there was something, made of all series."""
    custom = {
        "drawStyle": "bars",
        "lineWidth": 0,
        "fillOpacity": 80,
        "barMaxWidth": 30,
        "barWidthFactor": 0.6,
        "showPoints": "never",
        "stacking": {"mode": "normal", "group": "A"},
    }
    return _over_time(title, description, width, queries, unit=unit, custom=custom, overrides=overrides)


def _over_time(
    title: str,
    description: str,
    width: int,
    queries: tuple[Query, ...],
    *,
    unit: str,
    custom: Json,
    overrides: tuple[Json, ...],
) -> Panel:
    return Panel(
        "timeseries",
        title,
        description,
        width,
        queries,
        unit=unit,
        defaults={"min": 0, "custom": custom},
        options={
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        overrides=overrides,
    )


def heatmap(title: str, description: str, width: int, query: Query, *, unit: str) -> Panel:
    """Buckets of a histogram over time; the legend is to be `{{le}}`."""
    return Panel(
        "heatmap",
        title,
        description,
        width,
        (query,),
        form="heatmap",
        unit=unit,
        options={
            "calculate": False,
            "cellGap": 1,
            "showValue": "never",
            "color": {
                "mode": "scheme",
                "scheme": "Oranges",
                "fill": "dark-orange",
                "scale": "exponential",
                "exponent": 0.5,
                "steps": 64,
                "reverse": False,
            },
            "filterValues": {"le": 0.001},  # what nothing fell into is not drawn
            "rowsFrame": {"layout": "auto"},
            "yAxis": {"axisPlacement": "left", "reverse": False, "unit": unit},
            "legend": {"show": True},
            "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": False},
            "exemplars": {"color": "rgba(255,0,255,0.7)"},
        },
    )


def states(title: str, description: str, width: int, query: Query, words: Sequence[tuple[str, str]]) -> Panel:
    """A band for each series; words: what its values 0, 1, 2 ... mean, each with a colour."""
    meaning = {str(at): {"index": at, "text": text, "color": colour} for at, (text, colour) in enumerate(words)}
    return Panel(
        "state-timeline",
        title,
        description,
        width,
        (query,),
        defaults={
            "color": {"mode": "thresholds"},
            "thresholds": thresholds(()),
            "mappings": [{"type": "value", "options": meaning}],
            "custom": {"lineWidth": 0, "fillOpacity": 80},
        },
        options={
            "mergeValues": True,
            "showValue": "auto",
            "alignValue": "left",
            "rowHeight": 0.8,
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "single", "sort": "none"},
        },
    )


# -- tables --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A label, or a query's values (`Value` where there is one query, else `Value #A`), as a column of a table."""

    field: str
    title: str
    unit: str = ""
    steps: tuple[tuple[float, str], ...] = ()  # from which value on it has which colour


def table(
    title: str,
    description: str,
    width: int,
    queries: Sequence[Query],
    columns: Sequence[Column],
    *,
    by: str,
    descending: bool,
) -> Panel:
    """The last values of all queries, a row for each set of labels; what is no column is left out."""
    return Panel(
        "table",
        title,
        description,
        width,
        tuple(queries),
        form="table",
        defaults={"custom": {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False}},
        options={
            "showHeader": True,
            "cellHeight": "sm",
            "sortBy": [{"displayName": by, "desc": descending}],
        },
        overrides=tuple(_column(column) for column in columns if column.unit or column.steps),
        transformations=(
            {"id": "merge", "options": {}},
            {
                "id": "filterFieldsByName",
                "options": {"include": {"names": [column.field for column in columns]}},
            },
            {
                "id": "organize",
                "options": {
                    "excludeByName": {},
                    "indexByName": {column.field: at for at, column in enumerate(columns)},
                    "renameByName": {column.field: column.title for column in columns},
                },
            },
        ),
    )


def _column(column: Column) -> Json:
    properties: list[Json] = [{"id": "unit", "value": column.unit}] if column.unit else []
    if column.steps:
        properties += [
            {"id": "thresholds", "value": thresholds(column.steps)},
            {"id": "custom.cellOptions", "value": {"type": "color-text"}},
        ]
    return override(column.title, *properties)


# -- parts ---------------------------------------------------------------------------------------------------------

LAST: Json = {"calcs": ["lastNotNull"], "fields": "", "values": False}


def thresholds(steps: Sequence[tuple[float, str]]) -> Json:
    """Green below the first."""
    above: list[Json] = [{"color": colour, "value": at} for at, colour in steps]
    return {"mode": "absolute", "steps": [{"color": GREEN, "value": None}, *above]}


def override(name: str, *properties: Json, pattern: bool = False) -> Json:
    """For the series or columns of that name; pattern: whose names match that regular expression."""
    return {
        "matcher": {"id": "byRegexp" if pattern else "byName", "options": f"/{name}/" if pattern else name},
        "properties": list(properties),
    }


def coloured(name: str, colour: str, *, pattern: bool = False) -> Json:
    """That colour for the series of that name."""
    return override(name, {"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}, pattern=pattern)
