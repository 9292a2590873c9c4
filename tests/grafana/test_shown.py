"""Every expression of the dashboards and the alerts gives data, of updates of real guests; and it is what happened."""

import re

import pytest

from hostagent.update.journal import Outcome
from hostagent.update.report import GuestReport
from tests.grafana.prometheus import JOB
from tests.grafana.scene import COPIED, HELD, INSTANCE, KEPT, REBOOTED, Scene
from tests.grafana.shown import BOARDS, Window, answers, dashboard, marks, panels
from tests.grafana.test_alerts import rules

TICK_SECONDS = 0.020
"""A guest's ticks are 10 ms apart: so well it feels its own pause, besides what they are late by when it is idle."""


WITH_A_PAUSE = 5
"""Three guests there, and two of them back."""


@pytest.fixture
def window(updated: Scene) -> Window:
    return Window(updated.begun, updated.ended, 1.0)


def guests(updated: Scene) -> list[GuestReport]:
    """Of all updates, as the journal has them."""
    return [guest for report in updated.reports() for guest in report.guests]


def pauses(updated: Scene) -> list[float]:
    return [
        guest.pause_seconds
        for guest in guests(updated)
        if guest.outcome is Outcome.UPDATED and guest.pause_seconds is not None
    ]


def test_the_updates_were_what_they_were_meant_to_be(updated: Scene) -> None:
    there, vain, back = updated.reports()
    assert [one.outcome for one in (there, vain, back)] == [Outcome.UPDATED, Outcome.ROLLED_BACK, Outcome.UPDATED]
    ways = {guest.name: (guest.method, guest.technique) for guest in there.guests}
    assert ways == {
        KEPT.name: ("in-place", "handover"),
        COPIED.name: ("in-place-copy", "handover"),
        HELD.name: ("in-place", "hold"),
        REBOOTED.name: ("reboot", None),
    }


@pytest.mark.parametrize(("board", "title"), [(board, panel["title"]) for board in BOARDS for panel in panels(board)])
def test_every_expression_of_a_panel_gives_data(board: str, title: str, updated: Scene, window: Window) -> None:
    (panel,) = (panel for panel in panels(board) if panel["title"] == title)
    for answer in answers(unfiltered(panel), updated.prometheus, window):
        assert answer.series, answer.expr


def unfiltered(panel: dict) -> dict:
    """Where nothing is shown because nothing fell back to another method: that there is something to leave out."""
    targets = [target | {"expr": target["expr"].removesuffix(" > 0")} for target in panel["targets"]]
    return panel | {"targets": targets} if "ladder" in panel["title"] else panel


@pytest.mark.parametrize("board", BOARDS)
def test_variables_have_values_to_choose_from(board: str, updated: Scene, window: Window) -> None:
    for variable in dashboard(board)["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()
            found = {series.labels[label] for series in updated.prometheus.now(metric)}
            assert found == {INSTANCE} if label == "instance" else {"in-place", "reboot"} < found


@pytest.mark.parametrize("board", BOARDS)
def test_annotations_are_where_updates_ended(board: str, updated: Scene, window: Window) -> None:
    found = {
        (series.labels["outcome"], round(value / 1000, 1))
        for series in marks(board, updated.prometheus, window)
        for _, value in series.points
    }
    assert found == {(report.outcome, round(report.ended or 0, 1)) for report in updated.reports()}


@pytest.mark.parametrize("alert", rules())
def test_every_expression_of_an_alert_has_data(alert: str, updated: Scene) -> None:
    (rule,) = (rule for rule in updated.prometheus.rules() if rule["name"] == alert)
    assert rule["health"] == "ok", rule
    selectors = re.findall(r"hostagent_\w+(?:\{[^}]*\})?", rule["query"])
    assert selectors
    for selector in selectors:
        assert updated.prometheus.now(f"last_over_time({selector}[1h])"), selector


def test_alerts_were_raised_for_what_went_wrong_and_for_nothing_else(updated: Scene, window: Window) -> None:
    found = updated.prometheus.over_time("ALERTS", window.begin, window.end, window.step)
    fired = {series.labels["alertname"] for series in found if series.labels["alertstate"] == "firing"}
    assert fired == {"UpdateFailed", "ClockUncorrected"}
    of_clocks = {
        (series.labels["guest"], series.labels["reason"])
        for series in found
        if series.labels["alertname"] == "ClockUncorrected"
    }
    assert of_clocks == {
        (guest.name, guest.clock_reason)
        for guest in guests(updated)
        if guest.clock_outcome == "uncorrected" and guest.clock_reason != "ahead"
    }
    assert (REBOOTED.name, "no-agent") in of_clocks
    (failed,) = (series for series in found if series.labels["alertname"] == "UpdateFailed")
    assert failed.points[-1][0] < window.end  # the next one went well
    pending = {series.labels["alertname"] for series in found if series.labels["alertstate"] == "pending"}
    assert pending >= {"HostOutdated", "GuestCannotBeUpdatedInPlace", "JournalOpenTooLong"}


def test_pauses_are_those_of_the_journal(updated: Scene) -> None:
    (count,) = updated.prometheus.now(f'sum(hostagent_guest_pause_seconds_count{{job="{JOB}"}})')
    (total,) = updated.prometheus.now("sum(hostagent_guest_pause_seconds_sum)")
    assert count.points[0][1] == len(pauses(updated)) == WITH_A_PAUSE
    assert total.points[0][1] == pytest.approx(sum(pauses(updated)))


def test_the_longest_pause_is_the_longest(updated: Scene, window: Window) -> None:
    (panel,) = (panel for panel in panels("pauses") if panel["title"] == "Longest pause")
    (answer,) = answers(panel, updated.prometheus, window)
    assert answer.series[0].points[0][1] == pytest.approx(max(pauses(updated)))


def test_a_guest_is_seen_while_it_stands_still(updated: Scene) -> None:
    found = updated.prometheus.now("last_over_time(hostagent_guest_paused_since_timestamp_seconds[1h])")
    assert HELD.name in {series.labels["guest"] for series in found}
    assert not updated.prometheus.now("hostagent_guest_paused_since_timestamp_seconds")


def test_the_pause_is_what_the_guest_felt(updated: Scene) -> None:
    """QEMU says that it has stopped once all of it has, which a busy machine may delay, but not past the step's end."""
    (told,) = updated.prometheus.now(f'hostagent_guest_last_pause_seconds{{guest="{KEPT.name}"}}')
    assert updated.felt is not None
    pause, felt, (least, most) = told.points[0][1], updated.felt.stood_still_ns / 1e9, updated.by_journal
    allowed = TICK_SECONDS + updated.felt.p99_ns / 1e9
    assert least <= pause <= most
    assert pause - allowed <= felt <= most + allowed
