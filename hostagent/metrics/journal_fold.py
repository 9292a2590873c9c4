"""The journal folded into figures row by row, so that what is known need not be read again. Pure.

Of updates that have ended only figures are left, so that memory does not grow with the journal.
"""

from __future__ import annotations

from collections.abc import Iterable

from hostagent.metrics.journal_figures import Figures
from hostagent.update.journal import Kind, Row, UpdateRecord, folded
from hostagent.update.paused import paused_in
from hostagent.update.report import report_of


class JournalFold:
    """What all rows so far amount to."""

    def __init__(self) -> None:
        self._ended = Figures()
        self._open: dict[str, UpdateRecord] = {}

    def take(self, rows: Iterable[Row]) -> None:
        """The rows that follow. What is noted on an update that has ended changes no figure."""
        for row in rows:
            folded(self._open, row)
            if row.entry.kind is Kind.UPDATE_ENDED and row.update in self._open:
                self._ended.add(report_of(self._open.pop(row.update)))

    def take_records(self, updates: Iterable[UpdateRecord]) -> None:
        """The same for updates that were folded elsewhere."""
        for update in updates:
            if update.is_open:
                self._open[update.id] = update
            else:
                self._ended.add(report_of(update))

    def figures(self) -> Figures:
        """Those of now."""
        figures = self._ended.copy()
        for update in self._open.values():
            figures.add(report_of(update))
            figures.paused |= {(name,): since for name, since in paused_in(update).items()}
        return figures
