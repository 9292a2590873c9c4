"""The service's log: a line for each event, as key=value or as JSON, with the guest and the update on each.

Names and reasons come from guests and others: no line can be broken, none coloured, none made very long. No definition
and no argument list is ever put here. A thread of its own writes: a journald that takes nothing holds up nobody.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from hostagent.agent_settings import LogFormat
from hostagent.printable import printable

VALUE_LIMIT = 400  # characters of one value
_LINES_LIMIT = 10_000  # that wait to be written
_BARE = re.compile(r"[A-Za-z0-9_./:@%+-]+")

Value = str | int | float | bool | None


class Level(StrEnum):
    """How bad it is."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


_PRIORITIES = {Level.INFO: 6, Level.WARNING: 4, Level.ERROR: 3}  # sd-daemon(3)


@dataclass(frozen=True)
class Log:
    """Makes lines of events."""

    write: Callable[[str], None]
    format: LogFormat = LogFormat.LOGFMT
    wall: Callable[[], float] = time.time
    priorities: bool = False  # journald takes them off again

    def __call__(
        self, event: str, *, guest: str = "", update: str = "", level: Level = Level.INFO, **more: Value
    ) -> None:
        """One event; None in `more` is left out."""
        self.tell(event, guest, update, level, more.items())

    def tell(self, event: str, guest: str, update: str, level: Level, more: Iterable[tuple[str, Value]]) -> None:
        """The same, of what somebody else has put together."""
        at = datetime.fromtimestamp(self.wall(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        values: dict[str, Value] = {"at": at, "level": level, "event": event, "guest": guest, "update": update}
        values |= {key: value for key, value in more if value is not None}
        line = _as_json(values) if self.format is LogFormat.JSON else _as_logfmt(values)
        self.write(f"<{_PRIORITIES[level]}>{line}\n" if self.priorities else f"{line}\n")


def _as_json(values: Mapping[str, Value]) -> str:
    return json.dumps({key: _cut(value) if isinstance(value, str) else value for key, value in values.items()})


def _as_logfmt(values: Mapping[str, Value]) -> str:
    return " ".join(f"{key}={_word(value)}" for key, value in values.items())


def _word(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    text = _cut(value or "")
    if not text:
        return "-"
    if _BARE.fullmatch(text):
        return text if text != "-" else '"-"'
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{printable(escaped)}"'


def _cut(text: str) -> str:
    return text if len(text) <= VALUE_LIMIT else f"{text[: VALUE_LIMIT - 3]}..."


class Writer:
    """Writes lines to standard output as fast as that takes them; what does not fit is left out, and said."""

    def __init__(self) -> None:
        self._lines: queue.Queue[str | None] = queue.Queue(_LINES_LIMIT)
        self._left_out = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def __call__(self, line: str) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._left_out += 1

    def end(self, within_seconds: float) -> None:
        """Write what is left, if that is possible in so long."""
        with suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(within_seconds)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            with suppress(OSError, ValueError):  # nobody reads it: no reason to stop
                if self._left_out:
                    line, self._left_out = f"{line}({self._left_out} lines are left out)\n", 0
                sys.stdout.write(line)
                if self._lines.empty():
                    sys.stdout.flush()
        with suppress(OSError, ValueError):
            sys.stdout.flush()


def log_to_stdout(format: LogFormat, writer: Writer) -> Log:
    """The service's log; with priorities where journald reads it (systemd.exec(5), JOURNAL_STREAM)."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    return Log(writer, format, priorities=_is_journal(os.environ.get("JOURNAL_STREAM", "")))


class _AsEvents(logging.Handler):
    """What modules below say in words."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """One line, also of an error with a traceback: that one's last line."""
        level = Level.INFO if record.levelno < logging.WARNING else Level.WARNING
        if record.levelno >= logging.ERROR:
            level = Level.ERROR
        error = repr(record.exc_info[1]) if record.exc_info and record.exc_info[1] else None
        self._log("said", level=level, by=record.name, words=record.getMessage(), error=error)


def tell_warnings(log: Log) -> None:
    """Have what Python's logging gets in the log too; of our own modules also what is no warning."""
    logging.basicConfig(level=logging.WARNING, handlers=[_AsEvents(log)], force=True)
    logging.getLogger("hostagent").setLevel(logging.INFO)


def _is_journal(stream: str) -> bool:
    with suppress(OSError, ValueError):
        device, inode = (int(part) for part in stream.split(":"))
        seen = os.fstat(sys.stdout.fileno())
        return (seen.st_dev, seen.st_ino) == (device, inode)
    return False
