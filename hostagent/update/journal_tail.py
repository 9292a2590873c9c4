"""The journal for somebody who reads on in it: only what is new, and all of it where it is another one by now."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hostagent.update.journal import Row
from hostagent.update.journal_reader import read_rows, stamp

ROWS_AT_ONCE = 250  # in memory at a time, some hundred kilobytes
_SETTLED_NS = 1_000_000_000  # of two writes so close a file's times tell one only, where they count that coarsely


@dataclass(frozen=True)
class News:
    """Rows that nobody has read yet; `anew`: they are the first ones, of a journal that is not the one from before."""

    rows: Sequence[Row]
    anew: bool


class JournalTail:
    """A journal, and how far it was read. For one thread."""

    def __init__(self, path: Path, rows_at_once: int = ROWS_AT_ONCE) -> None:
        self._path = path
        self._rows_at_once = rows_at_once
        self._last: Row | None = None  # that was read
        self._stamp: tuple[int, ...] | None = None  # of the files, when all was read and they had settled

    def news(self) -> Iterator[News]:
        """What is new since; nothing when nothing is. Raises NeedsOperator or Refused as the reader does.

        Journals are only ever appended to, so that the last row that was read tells whether it is the same one. While
        the files' own times stay as they were, nobody has written.
        """
        seen = stamp(self._path)
        if seen is not None and seen == self._stamp:
            return
        self._stamp = None
        yield from self._unread()
        # From before it was read: what came meanwhile is found the next time.
        settled = seen is not None and time.time_ns() - max(seen[2::3]) > _SETTLED_NS
        self._stamp = seen if settled else None

    def _unread(self) -> Iterator[News]:
        while True:
            last = self._last
            if last is None:
                rows = read_rows(self._path, limit=self._rows_at_once)
            else:
                known, *more = read_rows(self._path, since=last.seq, limit=self._rows_at_once + 1) or (None,)
                if known != last:  # removed, moved aside or replaced
                    self._last = None
                    yield News((), anew=True)
                    continue
                rows = tuple(more)
            if not rows:
                return
            self._last = rows[-1]
            yield News(rows, anew=False)
            if len(rows) < self._rows_at_once:
                return
