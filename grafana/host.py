"""The dashboard of hosts: what is outdated, who can be updated and how, and what updates did."""

from grafana.board import Board, Row
from grafana.panels import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    YELLOW,
    Column,
    Query,
    coloured,
    figure,
    lines,
    stacks,
    states,
    table,
)

OF = 'instance=~"$instance"'
OUTCOMES = (
    coloured("updated", GREEN),
    coloured("rolled-back", ORANGE),
    coloured("gone", PURPLE),
    coloured("lost", RED),
)

_STATE = " + ".join(
    f'{weight} * max by (instance) (hostagent_update_state{{{OF}, state="{state}"}})'
    for weight, state in ((1, "rehearsing"), (2, "updating"), (3, "needs-operator"))
)


def _counted(metric: str, by: str) -> str:
    """How often something happened, over as much time as a point stands for."""
    return f"sum by ({by}) (increase(hostagent_{metric}{{{OF}}}[$__rate_interval])) > 0"


FIGURES = Row(
    4,
    (
        figure(
            "Components outdated",
            "Components of which something runs that is not what is installed, of all hosts shown.",
            4,
            Query(f"sum(hostagent_component_outdated{{{OF}}})", now=True),
            steps=((1, ORANGE),),
        ),
        figure(
            "Guests outdated",
            "Guests that run on something that is not what is installed.",
            4,
            Query(f"sum(max by (instance) (hostagent_guests_outdated{{{OF}}}))", now=True),
            steps=((1, ORANGE),),
        ),
        figure(
            "Cannot go in place",
            "Running guests that would have to migrate or be rebooted, or cannot be updated at all.",
            4,
            Query(
                "count(count by (instance, guest)"
                f' (hostagent_guest_blockers{{{OF}, method=~"in-place|in-place-copy"}}))'
                " or vector(0)",
                now=True,
            ),
            steps=((1, YELLOW),),
        ),
        figure(
            "Updates open",
            "Under way, or waiting for `hostagent recover`.",
            4,
            Query(f"sum(hostagent_journal_open_updates{{{OF}}})", now=True),
            steps=((1, BLUE),),
        ),
        figure(
            "Hosts that need a person",
            "An update of theirs can go neither on nor back by itself: see the runbook.",
            4,
            Query(f'sum(hostagent_update_state{{{OF}, state="needs-operator"}})', now=True),
            steps=((1, RED),),
        ),
        figure(
            "Looked at",
            "How long ago the host was looked at that was so the longest ago: so old is what is said here of guests and"
            " components.",
            4,
            Query(f"time() - min(hostagent_last_look_timestamp_seconds{{{OF}}})", now=True),
            unit="s",
            steps=((900, ORANGE), (3600, RED)),
        ),
    ),
)

COMPONENTS = Row(
    7,
    (
        table(
            "Components",
            "What runs, and what is installed: a row for each QEMU that guests run on.",
            14,
            (Query(f"hostagent_component_info{{{OF}}}", now=True),),
            (
                Column("instance", "host"),
                Column("component", "component"),
                Column("running", "runs"),
                Column("installed", "installed"),
                Column("freshness", "is"),
            ),
            by="is",
            descending=True,
        ),
        lines(
            "Guests on something outdated, by component",
            "Guests that run on something of a component that is not what is installed.",
            10,
            Query(f"sum by (component) (hostagent_guests_outdated{{{OF}}})", "{{component}}"),
        ),
    ),
)

GUESTS = Row(
    8,
    (
        lines(
            "Guests by state",
            "As libvirt has them.",
            12,
            Query(f"sum by (state) (hostagent_guests{{{OF}}}) > 0", "{{state}}"),
            stacked=True,
            overrides=(
                coloured("running", GREEN),
                coloured("shut-off", GREY),
                coloured("paused-by-owner", YELLOW),
                coloured("paused-otherwise", BLUE),
                coloured("crashed", RED),
            ),
        ),
        states(
            "What updates do",
            "By the journal of each host.",
            12,
            Query(_STATE, "{{instance}}"),
            (("idle", GREEN), ("rehearsing", BLUE), ("updating", ORANGE), ("needs a person", RED)),
        ),
    ),
)

BLOCKERS = Row(
    9,
    (
        table(
            "What is against updating guests",
            "Each reason, by method: `hostagent inspect` says it in words, with what to do.",
            14,
            (Query(f"sum by (instance, guest, method, reason) (hostagent_guest_blockers{{{OF}}})", now=True),),
            (
                Column("guest", "guest"),
                Column("instance", "host"),
                Column("method", "method"),
                Column("reason", "reason"),
                Column("Value", "times"),
            ),
            by="method",
            descending=False,
        ),
        lines(
            "Guests that have something against a method",
            "Running guests that cannot be updated by it.",
            10,
            Query(
                f"count by (method) (count by (instance, guest, method) (hostagent_guest_blockers{{{OF}}}))",
                "{{method}}",
            ),
        ),
    ),
)

HISTORY = Row(
    8,
    (
        stacks(
            "Guests by how their updates ended",
            "Updated, rolled back, gone (ended by their owner meanwhile), or lost.",
            12,
            Query(_counted("guest_updates_total", "outcome"), "{{outcome}}"),
            overrides=OUTCOMES,
        ),
        stacks(
            "Guests rolled back, or taken further down their ladder",
            "By the kind of error.",
            12,
            Query(_counted("rollbacks_total", "reason"), "rolled back: {{reason}}"),
            Query(_counted("fallbacks_total", "from, to"), "{{from}} to {{to}}"),
        ),
    ),
)

LAST = Row(
    5,
    (
        table(
            "Last updates",
            "When the last update ended that ended so.",
            14,
            (Query(f"max by (instance, outcome) (hostagent_last_update_timestamp_seconds{{{OF}}}) * 1000", now=True),),
            (Column("instance", "host"), Column("outcome", "outcome"), Column("Value", "ended", "dateTimeAsIso")),
            by="ended",
            descending=True,
        ),
        table(
            "Hosts",
            "The name that Prometheus has for a host, its own, its update domain, its hostagent.",
            10,
            (
                Query(f"max by (instance, hostname, update_domain) (hostagent_host_info{{{OF}}})", now=True),
                Query(f"max by (instance, version) (hostagent_build_info{{{OF}}})", now=True),
            ),
            (
                Column("instance", "host"),
                Column("hostname", "hostname"),
                Column("update_domain", "update domain"),
                Column("version", "hostagent"),
            ),
            by="host",
            descending=False,
        ),
    ),
)

BOARD = Board(
    name="host",
    title="hostagent: hosts",
    description="What is outdated on hosts, which guests can be updated and how, and what updates did.",
    rows=(FIGURES, COMPONENTS, GUESTS, BLOCKERS, HISTORY, LAST),
    since="now-7d",
)
