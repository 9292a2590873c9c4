"""Metrics: a table of them, figures from the journal and from a look at the host, and their text for Prometheus."""

from hostagent.metrics.exposition import CONTENT_TYPE, Exposition, Names, exposition, names_of
from hostagent.metrics.table import METRICS, OF_JOURNAL, OF_LOOK, Declared, Kind

__all__ = [
    "CONTENT_TYPE",
    "METRICS",
    "OF_JOURNAL",
    "OF_LOOK",
    "Declared",
    "Exposition",
    "Kind",
    "Names",
    "exposition",
    "names_of",
]
