"""The dashboard of pauses: how long guests stood still as they were updated, what of, and who was over budget."""

from grafana.board import Board, Row
from grafana.panels import (
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    YELLOW,
    Column,
    Query,
    bars,
    coloured,
    figure,
    heatmap,
    lines,
    override,
    stacks,
    table,
)

OF = 'instance=~"$instance"'
BY = f'{OF}, method=~"$method"'

_UPDATED = f'sum(increase(hostagent_guest_updates_total{{{BY}, outcome="updated"}}[$__range]))'
_LONGEST = f"max(max_over_time(hostagent_guest_last_pause_seconds{{{BY}}}[$__range]))"
_USED = (
    f"max by (instance, guest) (hostagent_guest_last_pause_seconds{{{BY}}})"
    f" / max by (instance, guest) (hostagent_guest_budget_seconds{{{OF}}})"
)

_LAST = f"max by (instance, guest, method) (hostagent_guest_last_pause_seconds{{{BY}}})"


def _beside(metric: str) -> str:
    """What is known of a guest, for each of the methods that it has a last pause of: rows of one table."""
    return f"0 * {_LAST} + on (instance, guest) group_left max by (instance, guest) ({metric})"


def _quantile(share: float, each: str) -> str:
    buckets = f"increase(hostagent_guest_pause_seconds_bucket{{{BY}}}[{each}])"
    return f"histogram_quantile({share}, sum by (le, method) ({buckets}))"


def _mean(metric: str, labels: str) -> str:
    """Of a histogram with phases, by phase, over as much time as a point stands for."""
    by = "sum by (phase) (increase(hostagent_{0}_{1}{{{2}}}[$__rate_interval]))"
    return f"{by.format(metric, 'sum', labels)} / {by.format(metric, 'count', labels)}"


FIGURES = Row(
    4,
    (
        figure(
            "Guests updated",
            "Guests that were brought onto what they were to run on, in the time shown.",
            4,
            Query(f"round({_UPDATED})", now=True),
        ),
        figure(
            "Longest pause",
            "The longest that a guest stood still. Exact where Prometheus has looked between two updates of a guest.",
            5,
            Query(_LONGEST, now=True),
            unit="s",
            steps=((1, YELLOW), (10, ORANGE), (30, RED)),
        ),
        figure(
            "95 of 100 were shorter",
            "By the buckets of the histogram, so that it may be up to two and a half times too long.",
            5,
            Query(
                "histogram_quantile(0.95, sum by (le)"
                f" (increase(hostagent_guest_pause_seconds_bucket{{{BY}}}[$__range])))",
                now=True,
            ),
            unit="s",
            steps=((1, YELLOW), (10, ORANGE), (30, RED)),
        ),
        figure(
            "Over budget",
            "Guests that stood still for longer than they were allowed.",
            5,
            Query(f"round(sum(increase(hostagent_budget_exceeded_total{{{BY}}}[$__range])))", now=True),
            steps=((1, RED),),
        ),
        figure(
            "Paused now",
            "Guests that an update has standing still at this moment.",
            5,
            Query(f"count(hostagent_guest_paused_since_timestamp_seconds{{{OF}}}) or vector(0)", now=True),
            steps=((1, ORANGE),),
        ),
    ),
)

LENGTHS = Row(
    9,
    (
        heatmap(
            "How long guests stood still",
            "Pauses by length, from the last instruction before to the first after.",
            12,
            Query(f"sum by (le) (increase(hostagent_guest_pause_seconds_bucket{{{BY}}}[$__rate_interval]))", "{{le}}"),
            unit="s",
        ),
        lines(
            "Pauses by method, and the budget",
            "Median and 95th percentile by the histogram's buckets, the longest last pause of any guest as it was "
            "measured, and the smallest budget that a guest had at its last update.",
            12,
            Query(_quantile(0.5, "$__rate_interval"), "p50 {{method}}"),
            Query(_quantile(0.95, "$__rate_interval"), "p95 {{method}}"),
            Query(f"max by (method) (hostagent_guest_last_pause_seconds{{{BY}}})", "max {{method}}"),
            Query(f"min(hostagent_guest_budget_seconds{{{OF}}})", "budget"),
            unit="s",
            log=True,
            across_gaps=True,
            overrides=(
                override("^p", {"id": "custom.drawStyle", "value": "points"}, pattern=True),
                override(
                    "budget",
                    {"id": "color", "value": {"mode": "fixed", "fixedColor": RED}},
                    {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 6]}},
                    {"id": "custom.lineWidth", "value": 2},
                    {"id": "custom.showPoints", "value": "never"},
                ),
                override(
                    "^max ",
                    {"id": "custom.showPoints", "value": "never"},
                    {"id": "custom.lineInterpolation", "value": "stepAfter"},
                    pattern=True,
                ),
            ),
        ),
    ),
)

PARTS = Row(
    9,
    (
        stacks(
            "What pauses are made of",
            "The steps that a guest stands still in, each by its mean length at that time.",
            12,
            Query(_mean("pause_phase_seconds", OF), "{{phase}}"),
            unit="s",
        ),
        bars(
            "Share of the budget that each guest's last pause took",
            "The longest of its last pauses, by any method, against what it was allowed at its last update.",
            12,
            Query(f"topk(12, {_USED})", "{{guest}}", now=True),
            unit="percentunit",
            steps=((0.5, YELLOW), (0.8, ORANGE), (1, RED)),
        ),
    ),
)

LAST_PAUSES = Row(
    9,
    (
        table(
            "Last pauses",
            "Each guest's last pause, and its clock after that: guest minus host.",
            14,
            (
                Query(_LAST, now=True),
                Query(_beside(f"hostagent_guest_budget_seconds{{{OF}}}"), now=True),
                Query(_beside(f'hostagent_guest_clock_offset_seconds{{{OF}, when="resumed"}}'), now=True),
                Query(_beside(f'hostagent_guest_clock_offset_seconds{{{OF}, when="synced"}}'), now=True),
            ),
            (
                Column("guest", "guest"),
                Column("instance", "host"),
                Column("method", "method"),
                Column("Value #A", "pause", "s", ((1, YELLOW), (10, ORANGE), (30, RED))),
                Column("Value #B", "budget", "s"),
                Column("Value #C", "clock as it resumed", "s"),
                Column("Value #D", "clock now set", "s"),
            ),
            by="pause",
            descending=True,
        ),
        lines(
            "Clocks, as the guest resumed and after they were set",
            "The furthest that any guest's clock was from its host's at its last update, either way.",
            10,
            Query(f"max by (when) (abs(hostagent_guest_clock_offset_seconds{{{OF}}}))", "{{when}}"),
            unit="s",
            log=True,
            overrides=(coloured("before", PURPLE), coloured("resumed", ORANGE), coloured("synced", GREEN)),
        ),
    ),
)

REBOOTS = Row(
    7,
    (
        stacks(
            "Reboots",
            "Guests that could not be updated but by a reboot: how long they were shut off, and then took to boot, in "
            "the mean at that time.",
            24,
            Query(_mean("guest_reboot_seconds", OF), "{{phase}}"),
            unit="s",
            overrides=(coloured("down", ORANGE), coloured("boot", PURPLE)),
        ),
    ),
)

BOARD = Board(
    name="pauses",
    title="hostagent: pauses",
    description="How long guests stood still as their host was updated under them.",
    rows=(FIGURES, LENGTHS, PARTS, LAST_PAUSES, REBOOTS),
    since="now-7d",
    by_method=True,
)
