"""Every metric with its help text, folded from the journal: it does not matter who ran an update, or when.

A scrape reads the journal and asks nobody else. Rehearsals count in `hostagent_rehearsals_total` alone. A guest that
waits for a person is counted once it has ended for good; until then its update is among the open ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from hostagent import journal_figures as figures
from hostagent.journal_figures import Fold, Labels, Lengths, Values, fold_of
from hostagent.printable import printable
from hostagent.update.journal import UpdateRecord

PAUSE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60)


class Kind(Enum):
    """What Prometheus calls its types."""

    COUNTER = auto()
    GAUGE = auto()
    HISTOGRAM = auto()


@dataclass(frozen=True)
class Declared:
    """One metric, and where its values come from."""

    name: str
    kind: Kind
    labels: Labels
    help: str
    values: Callable[[Fold], Values | Lengths]


# -- the table -----------------------------------------------------------------------------------------------------

METRICS = (
    Declared("hostagent_build_info", Kind.GAUGE, ("version",), "Version of hostagent; always 1.", figures.build_info),
    Declared(
        "hostagent_guest_pause_seconds",
        Kind.HISTOGRAM,
        ("method", "technique", "component"),
        "How long updated guests stood still, from the last instruction before to the first after.",
        figures.pauses,
    ),
    Declared(
        "hostagent_pause_phase_seconds",
        Kind.HISTOGRAM,
        ("phase",),
        "How long the steps took that updated guests stood still in.",
        figures.phases,
    ),
    Declared(
        "hostagent_guest_reboot_seconds",
        Kind.HISTOGRAM,
        ("phase",),
        "How long guests that were updated by a reboot were shut off (down), and then took to boot (boot).",
        figures.reboots,
    ),
    Declared(
        "hostagent_guest_clock_offset_seconds",
        Kind.GAUGE,
        ("guest", "when"),
        "Guest clock minus host clock at the guest's last update: before the pause, as it resumed, after setting.",
        figures.clock_offsets,
    ),
    Declared(
        "hostagent_guest_clock_bound_seconds",
        Kind.GAUGE,
        ("guest",),
        "How far the true clock offset may be from the last one measured, either way.",
        figures.clock_bounds,
    ),
    Declared(
        "hostagent_guest_updates_total",
        Kind.COUNTER,
        ("method", "component", "outcome"),
        "Guests that went through an update, by how it ended for them.",
        figures.guest_updates,
    ),
    Declared(
        "hostagent_budget_exceeded_total",
        Kind.COUNTER,
        ("method",),
        "Guests that stood still for longer than their budget.",
        figures.over_budget,
    ),
    Declared(
        "hostagent_rollbacks_total",
        Kind.COUNTER,
        ("reason",),
        "Guests that were brought back to run as before, by the kind of error.",
        figures.rollbacks,
    ),
    Declared(
        "hostagent_guest_last_pause_seconds",
        Kind.GAUGE,
        ("guest", "method"),
        "How long a guest stood still when it was last updated.",
        figures.last_pauses,
    ),
    Declared(
        "hostagent_journal_open_updates",
        Kind.GAUGE,
        (),
        "Updates and rehearsals that are under way, or wait for hostagent recover.",
        figures.open_updates,
    ),
    Declared(
        "hostagent_last_update_timestamp_seconds",
        Kind.GAUGE,
        ("outcome",),
        "When the last update with this outcome ended, Unix time.",
        figures.last_updates,
    ),
    Declared(
        "hostagent_rehearsals_total",
        Kind.COUNTER,
        ("outcome",),
        "Rehearsals with throw-away guests, by how they ended.",
        figures.rehearsals,
    ),
)


def exposition(updates: Iterable[UpdateRecord]) -> str:
    """All metrics in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(JournalCollector(lambda: updates))
    return generate_latest(registry).decode()


class JournalCollector(Collector):
    """Folds the journal anew at each scrape."""

    def __init__(self, read: Callable[[], Iterable[UpdateRecord]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Names alone, so that registering does not read the journal."""
        return [_empty(declared) for declared in METRICS]

    def collect(self) -> Iterator[Metric]:
        """Every metric of the table."""
        fold = fold_of(self._read())
        for declared in METRICS:
            yield _filled(declared, declared.values(fold))


def _empty(declared: Declared) -> CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily:
    match declared.kind:
        case Kind.COUNTER:
            return CounterMetricFamily(declared.name, declared.help, labels=declared.labels)
        case Kind.GAUGE:
            return GaugeMetricFamily(declared.name, declared.help, labels=declared.labels)
        case Kind.HISTOGRAM:
            return HistogramMetricFamily(declared.name, declared.help, labels=declared.labels)


def _filled(declared: Declared, values: Values | Lengths) -> Metric:
    family = _empty(declared)
    # Two names that look alike are one: a scrape with the same labels twice would be refused as a whole.
    for labels, value in {tuple(map(printable, raw)): value for raw, value in values.items()}.items():
        if isinstance(family, HistogramMetricFamily):
            assert isinstance(value, Sequence)  # noqa: S101 - the table pairs histograms with lengths
            family.add_metric(labels, buckets=_buckets(value), sum_value=sum(value))
        else:
            assert isinstance(value, int | float)  # noqa: S101 - and everything else with values
            family.add_metric(labels, value)
    return family


def _buckets(lengths: Sequence[float]) -> list[tuple[str, float]]:
    upper = [*PAUSE_BUCKETS, float("inf")]
    return [
        ("+Inf" if bound == float("inf") else str(float(bound)), sum(length <= bound for length in lengths))
        for bound in upper
    ]
