"""What updates of this host have measured, for somebody who asks again and again: only what is new is read."""

from __future__ import annotations

from hostagent.planning.prediction import Past
from hostagent.update.journal import Kind, UpdateRecord, folded
from hostagent.update.journal_tail import JournalTail
from hostagent.update.report import past_of


class JournalPast:
    """A journal's, as far as predictions look back: of updates that have ended nothing else is kept. For one thread."""

    def __init__(self, journal: JournalTail) -> None:
        self._journal = journal
        self._ended = Past()
        self._open: dict[str, UpdateRecord] = {}

    def past(self) -> Past:
        """Until now; NeedsOperator or Refused if the journal cannot be read."""
        for news in self._journal.news():
            if news.anew:
                self._ended, self._open = Past(), {}
            for row in news.rows:
                folded(self._open, row)
                if row.entry.kind is Kind.UPDATE_ENDED and row.update in self._open:
                    self._ended = self._ended.followed_by(past_of([self._open.pop(row.update)]))
        return self._ended.followed_by(past_of(tuple(self._open.values())))
