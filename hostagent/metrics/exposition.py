"""Metrics in Prometheus' text format, by prometheus_client.

Names of guests and hosts are what others chose: in labels they are made visible and cut to a length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from itertools import accumulate

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from hostagent.config import Config
from hostagent.metrics.journal_figures import PAUSE_BUCKETS, Figures, Histogram, Labels, Lengths, Values
from hostagent.metrics.journal_fold import JournalFold
from hostagent.metrics.table import OF_JOURNAL, OF_LOOK, Declared, Kind, Merged
from hostagent.observed import Observed
from hostagent.printable import printable
from hostagent.update.journal import UpdateRecord
from hostagent.update.journal_tail import JournalTail

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LABEL_LIMIT = 200  # characters
_BOUNDS = (*(str(float(bound)) for bound in PAUSE_BUCKETS), "+Inf")

AnyDeclared = Declared[Figures] | Declared[Observed]
Items = tuple[tuple[Labels, float | Lengths], ...]


class Names(Enum):
    """Whether metrics of single guests say whose they are."""

    SHOWN = auto()
    HIDDEN = auto()  # there is one figure for all guests, under no name


def names_of(config: Config) -> Names:
    """What the settings say of that."""
    return Names.SHOWN if config.metrics.guest_names else Names.HIDDEN


def exposition(updates: Iterable[UpdateRecord], seen: Observed | None = None, names: Names = Names.SHOWN) -> str:
    """All metrics; without a look those that only one shows are absent."""
    fold = JournalFold()
    fold.take_records(updates)
    return _Families(names).text(fold.figures(), seen)


class Exposition:
    """The same for somebody who asks again and again: only what is new in the journal is read. Not for two threads.

    The first time takes longer, as all of the journal is new: ask once before anybody waits for an answer.
    """

    def __init__(self, journal: JournalTail, names: Names) -> None:
        self._journal = journal
        self._fold = JournalFold()
        self._families = _Families(names)
        self._last: tuple[Observed | None, str] | None = None

    def text(self, seen: Observed | None) -> str:
        """All metrics now, with what the last look showed; NeedsOperator or Refused if the journal cannot be read."""
        if self._catch_up() or self._last is None or self._last[0] is not seen:
            self._last = (seen, self._families.text(self._fold.figures(), seen))
        return self._last[1]

    def _catch_up(self) -> bool:
        """Whether anything was new."""
        changed = False
        for news in self._journal.news():
            if news.anew:
                self._fold = JournalFold()
            self._fold.take(news.rows)
            changed = True
        return changed


class _Families:
    """The text of each metric; made anew only where its figures are others: that is what takes longest."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._made: dict[str, tuple[Items, str]] = {}

    def text(self, figures: Figures, seen: Observed | None) -> str:
        """Of the whole table."""
        texts = [self._text(declared, declared.values(figures)) for declared in OF_JOURNAL]
        if seen is not None:
            texts += [self._text(of_look, of_look.values(seen)) for of_look in OF_LOOK]
        return "".join(texts)

    def _text(self, declared: AnyDeclared, values: Values | Histogram) -> str:
        items: Items = tuple(values.items())
        before = self._made.get(declared.name)
        if before is None or before[0] != items:
            before = (items, generate_latest(_One(_filled(declared, values, self._names))).decode())
            self._made[declared.name] = before
        return before[1]


@dataclass(frozen=True)
class _One(Collector):
    """A metric as prometheus_client asks for it."""

    metric: Metric

    def collect(self) -> Iterator[Metric]:
        yield self.metric


def _filled(declared: AnyDeclared, values: Values | Histogram, names: Names) -> Metric:
    family = _empty(declared)
    for labels, value in _relabelled(declared, values, names).items():
        if isinstance(value, Lengths):
            assert isinstance(family, HistogramMetricFamily)  # noqa: S101 - the table pairs them
            family.add_metric(labels, list(zip(_BOUNDS, accumulate(value.counts), strict=True)), value.seconds)
        else:
            assert not isinstance(family, HistogramMetricFamily)  # noqa: S101 - and everything else
            family.add_metric(labels, value)
    return family


def _empty(declared: AnyDeclared) -> CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily:
    match declared.kind:
        case Kind.COUNTER:
            return CounterMetricFamily(declared.name, declared.help, labels=declared.labels)
        case Kind.GAUGE:
            return GaugeMetricFamily(declared.name, declared.help, labels=declared.labels)
        case Kind.HISTOGRAM:
            return HistogramMetricFamily(declared.name, declared.help, labels=declared.labels)


def _relabelled(declared: AnyDeclared, values: Values | Histogram, names: Names) -> dict[Labels, float | Lengths]:
    """With labels that do no harm, each once: a scrape that has one twice is refused as a whole."""
    hidden = names is Names.HIDDEN
    guests = frozenset(at for at, label in enumerate(declared.labels) if label == "guest") if hidden else frozenset()
    found: dict[Labels, float | Lengths] = {}
    for raw, value in values.items():
        labels = tuple("" if at in guests else _label(text) for at, text in enumerate(raw))
        found[labels] = _merged(declared, found[labels], value) if labels in found else value
    return found


def _label(text: str) -> str:
    return printable(text[:LABEL_LIMIT])[:LABEL_LIMIT]


def _merged(declared: AnyDeclared, before: float | Lengths, value: float | Lengths) -> float | Lengths:
    if isinstance(before, Lengths) and isinstance(value, Lengths):
        return before.with_those_of(value)
    if isinstance(before, Lengths) or isinstance(value, Lengths):
        return value
    if declared.kind is Kind.COUNTER or declared.merged is Merged.SUM:
        return before + value
    return min(before, value) if declared.merged is Merged.EARLIEST else value
