"""The dashboards as they are committed: made by the Python beside them, of what Grafana knows, by metrics there are."""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.__main__ import BOARDS
from grafana.board import Board, text_of
from hostagent.metrics import METRICS, Kind

FOLDER = Path(__file__).parents[2] / "grafana"
OF_THE_SCRAPE = {"job", "instance"}
SUFFIXES = ("_bucket", "_sum", "_count")
# Sets of its own that Grafana's Prometheus data source keeps in annotations; its types for dashboards leave them out.
OF_THE_DATASOURCE = {f".annotations.list[0].{name}" for name in ("step", "tagKeys", "textFormat", "titleFormat")} | {
    ".annotations.list[0].useValueForTime"
}


@pytest.fixture(params=BOARDS, ids=lambda board: board.name)
def board(request: pytest.FixtureRequest) -> Board:
    return request.param


@pytest.fixture
def dashboard(board: Board) -> dict:
    return json.loads((FOLDER / f"{board.name}.json").read_text())


def test_it_is_what_its_python_makes(board: Board) -> None:
    """Else: python -m grafana"""
    assert (FOLDER / f"{board.name}.json").read_text() == text_of(board)


def lost(ours: object, theirs: object, path: str = "") -> Iterator[str]:
    """Where the second lacks what the first has, or has something else."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name, value in ours.items():
            yield from lost(value, theirs.get(name, "absent"), f"{path}.{name}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for at, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from lost(*pair, f"{path}[{at}]")
    elif ours != theirs:
        yield path


def read_and_written_by_grafanas_types(dashboard: dict) -> dict:
    register_default_plugins()
    return json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))


def test_grafanas_types_know_all_of_it(dashboard: dict) -> None:
    assert set(lost(dashboard, read_and_written_by_grafanas_types(dashboard))) == OF_THE_DATASOURCE


@pytest.mark.parametrize("place", ["gridPos", "options", "fieldConfig"])
def test_grafanas_types_do_not_know_what_is_no_field(dashboard: dict, place: str) -> None:
    dashboard["panels"][0][place]["hight"] = 4
    assert f".panels[0].{place}.hight" in set(lost(dashboard, read_and_written_by_grafanas_types(dashboard)))


def test_it_is_imported_without_edits(dashboard: dict) -> None:
    assert not {"id", "uid", "__inputs", "__requires"} & set(dashboard)
    assert dashboard["schemaVersion"] == 39
    (source,) = (one for one in dashboard["templating"]["list"] if one["type"] == "datasource")
    asked = re.findall(r'"uid": "([^"]*)"', json.dumps(dashboard))
    assert set(asked) == {f"${{{source['name']}}}"}
    asking = [*dashboard["panels"], *dashboard["annotations"]["list"]]
    assert all("datasource" in one for one in asking)


def test_panels_have_ids_and_places_of_their_own(dashboard: dict) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["title"] for panel in panels)
    places = [panel["gridPos"] for panel in panels]
    for place in places:
        assert place["x"] + place["w"] <= 24
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below
    assert sum(place["w"] * place["h"] for place in places) == 24 * max(place["y"] + place["h"] for place in places)


def test_every_variable_is_used_and_there(dashboard: dict) -> None:
    names = {one["name"] for one in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard["panels"])))
    assert used - {"__rate_interval", "__range"} == names


def test_every_expression_is_of_the_hosts_that_were_chosen(dashboard: dict) -> None:
    for expr, _ in expressions(dashboard):
        selectors = re.findall(r"hostagent_\w+(\{[^}]*\})?", expr)
        assert selectors
        assert all('instance=~"$instance"' in selector for selector in selectors)


def expressions(dashboard: dict) -> Iterator[tuple[str, str]]:
    """Each with the words that its answers are shown by."""
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"], target["legendFormat"]
    for annotation in dashboard["annotations"]["list"]:
        yield annotation["expr"], annotation["textFormat"] + annotation["titleFormat"]


def test_every_metric_and_label_is_one_of_ours(dashboard: dict) -> None:
    for expr, legend in expressions(dashboard):
        check_names(expr, legend)


def test_every_metric_and_label_of_the_alerts_is_one_of_ours() -> None:
    rules = (FOLDER / "alerts.yml").read_text().split("- alert:")[1:]
    assert len(rules) == 9
    for rule in rules:
        expr = rule.partition("expr:")[2].partition("labels:")[0]
        assert "hostagent_" in expr
        check_names(expr, "")


def check_names(expr: str, legend: str) -> None:
    labels: set[str] = set(OF_THE_SCRAPE)
    for name, matchers in re.findall(r"(hostagent_\w+)(?:\{([^}]*)\})?", expr):
        own = labels_of(name)
        labels |= own
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) <= own, expr
    for names in re.findall(r"\b(?:by|on) \(([^)]*)\)", expr):
        assert set(names.split(", ")) <= labels, expr
    assert set(re.findall(r"{{(\w+)}}", legend)) <= labels


def labels_of(name: str) -> set[str]:
    """Of a metric, or of a part of a histogram."""
    for declared in METRICS:
        own = {*declared.labels, *OF_THE_SCRAPE}
        if declared.name == name and declared.kind is not Kind.HISTOGRAM:
            return own
        if declared.kind is Kind.HISTOGRAM and name in (declared.name + suffix for suffix in SUFFIXES):
            return own | {"le"}
    raise AssertionError(f"no such metric: {name}")


def test_every_metric_is_shown_or_watched_somewhere() -> None:
    """But for rehearsals, and how well clocks can be read."""
    text = "".join((FOLDER / name).read_text() for name in ("pauses.json", "host.json", "alerts.yml"))
    unseen = {declared.name for declared in METRICS if declared.name not in text}
    assert unseen == {"hostagent_rehearsals_total", "hostagent_guest_clock_bound_seconds"}
