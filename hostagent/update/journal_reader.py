"""The journal for those who only look: nothing is made, changed or left behind."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from urllib.parse import quote

from hostagent.errors import NeedsOperator, Refused
from hostagent.update.journal import SCHEMA_VERSION, Row, SqliteJournal, UpdateRecord, fold

_TRIES = 3


def read_updates(path: Path) -> tuple[UpdateRecord, ...]:
    """Every update in the journal, oldest first; none when there is no journal yet."""
    return fold(read_rows(path))


def read_rows(path: Path, *, since: int = 0, limit: int = -1) -> tuple[Row, ...]:
    """Its rows from that number on, and not more than so many if the limit is not negative."""
    for last in (*(False,) * (_TRIES - 1), True):
        before = stamp(path)
        if before is None:
            return ()
        try:
            with _Reader(path) as journal:
                rows = tuple(journal.rows(since, limit))
        except NeedsOperator:
            if last or stamp(path) == before:
                raise
            continue  # somebody wrote meanwhile
        if last or stamp(path) == before:
            return rows
    raise AssertionError("the last try returns or raises")


def stamp(path: Path) -> tuple[int, ...] | None:
    """Inode, size and time (ns) of each of its files: others once somebody has written; None without a journal."""
    try:
        seen = [path.stat(), *(log.stat() for log in [_log(path)] if log.exists())]
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise Refused(f"reading the journal {path}", expected="to be allowed to", found=str(error.strerror)) from error
    return tuple(value for stat in seen for value in (stat.st_ino, stat.st_size, stat.st_mtime_ns))


def _log(path: Path) -> Path:
    """sqlite's write-ahead log: there while a journal is open, or after a crash."""
    return path.with_name(f"{path.name}-wal")


class _Reader(SqliteJournal):
    """A journal that cannot be written.

    sqlite's "ro" makes the log's files when they are missing, and leaves them behind. Without a log all is in the
    one file, which can then be read as "immutable".
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        mode = "mode=ro" if _log(path).exists() else "immutable=1"
        try:
            self._db = sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True, timeout=5.0)
            (version,) = self._db.execute("pragma user_version").fetchone()
        except sqlite3.Error as error:
            raise NeedsOperator(f"opening the journal {path}", found=str(error)) from error
        if version > SCHEMA_VERSION:
            raise NeedsOperator(
                f"opening the journal {path}",
                expected=f"format {SCHEMA_VERSION}",
                found=f"format {version}",
                hint="a newer hostagent wrote it; use that one",
            )

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
