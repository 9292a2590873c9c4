"""Printing: the only module that does. A person gets tables and sentences, --json the same as one JSON document.

Names and replies come from guests: nothing is read as markup, and control characters are written as escapes.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TextIO

import click
from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hostagent.errors import HostagentError
from hostagent.front import ATTACHED, COLOURS, MOST, Front, Unanswered, digest_of
from hostagent.printable import one_line, printable

WIDTH = 100  # where there is no terminal to ask
_HUNG_UP = {errno.EPIPE, errno.EIO, errno.ENXIO}


@dataclass(frozen=True)
class Column:
    """A column's heading, and whether it holds figures."""

    heading: str
    figures: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell that is to be seen at once: "good", "bad", "dim"."""

    text: str
    look: str = ""


_PLAIN: Mapping[str, Any] = {"markup": False, "emoji": False, "highlight": False}
_COLOURS: Mapping[str, Literal["standard", "256", "truecolor"]] = {
    "standard": "standard",
    "256": "256",
    "truecolor": "truecolor",
}

Part = str | Text | Table | Padding
_LOOKS = {"good": "green", "bad": "bold red", "wait": "yellow", "dim": "dim", "": ""}


def table(columns: Sequence[Column], rows: Sequence[Sequence[str | Cell]]) -> Table:
    """A table whose cells are text and nothing else."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(Text(column.heading), justify="right" if column.figures else "left", overflow="fold")
    for row in rows:
        made.add_row(*(_cell(cell) for cell in row))
    return made


def _cell(cell: str | Cell) -> Text:
    if isinstance(cell, str):
        return Text(printable(cell))
    return Text(printable(cell.text), style=_LOOKS[cell.look])


def sentence(text: str, look: str = "") -> Text:
    """A line for a person."""
    return Text(one_line(text), style=_LOOKS[look])


def indented(text: str, by: int, look: str = "") -> Padding:
    """A line below another one; what does not fit goes on at the same indentation."""
    return Padding(sentence(text, look), (0, 0, 0, by), expand=False)


class Output:
    """Where a verb's words go: results to stdout, errors and progress to stderr."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._front = Front.of_environment(os.environ)
        self._out = _console(stderr=False, front=self._front)
        self._err = _console(stderr=True, front=self._front)
        # What somebody was shown already, if the verb is run again because he said yes to it.
        self._held_back: list[str] | None = [] if self._front is not None and self._front.asks else None

    @property
    def live(self) -> Console | None:
        """The terminal that can show something that changes; None where there is none."""
        return self._out if self._out.is_terminal and not self.as_json and not self._out.is_dumb_terminal else None

    def show(self, document: object, *parts: Part) -> None:
        """A verb's result: the document with --json, else the parts, which say the same."""
        self._let_out()
        if self.as_json:
            self.raw(json.dumps(plain(document), indent=2, allow_nan=False) + "\n")
        else:
            self._print(self._out, parts)

    def say(self, *parts: Part) -> None:
        """For a person alone, before the result."""
        if not self.as_json:
            self._print(self._out, parts)

    def note(self, text: str) -> None:
        """A line beside the result: to stderr, on one line."""
        self._print(self._err, [sentence(text)], wrap=False)

    @property
    def file_name(self) -> str | None:
        """What the file is called that somebody else wants written; None when this process writes it."""
        return self._front.saves or None if self._front is not None else None

    def attach(self, content: bytes) -> None:
        """The content of that file, after all else."""
        self.raw(ATTACHED + content.decode())

    def as_front(self, *, debug: bool) -> Front:
        """This terminal, for a verb that speaks to it from elsewhere."""
        return Front(
            width=_of_sense(self._out.width),
            err_width=_of_sense(self._err.width),
            height=_of_sense(self._out.height),
            colours=self._out.color_system if self._out.color_system in COLOURS else "",
            no_colour=self._out.no_color,
            dumb=self._out.is_dumb_terminal,
            out_is_terminal=self._out.is_terminal,
            err_is_terminal=self._err.is_terminal,
            as_json=self.as_json,
            debug=debug,
            asks=self.can_ask(),
        )

    def relay(self, text: str, *, to_stderr: bool) -> None:
        """What a verb says elsewhere, to this terminal."""
        self._write(self._err if to_stderr else self._out, text)

    def answered_yes(self) -> bool:
        """What somebody says to the question that was relayed last."""
        try:
            answer = sys.stdin.readline()
        except UnicodeDecodeError:
            return False
        return answer.strip().lower() in {"y", "yes"}

    def raw(self, text: str) -> None:
        """Text in a format of its own."""
        with _quiet_when_hung_up("stdout"):
            sys.stdout.write(text)
            sys.stdout.flush()

    def error(self, error: HostagentError, more: Mapping[str, object] | None = None) -> None:
        """An error as one line, or as JSON with `more` beside it."""
        self._let_out()
        if self.as_json:
            told = {name: getattr(error, name) for name in ("kind", "doing", "expected", "found", "hint")}
            self.show({"error": {**told, **(more or {})}})
        else:
            self._print(self._err, [sentence(f"hostagent: {error}")], wrap=False)

    def backtrace(self, error: BaseException) -> None:
        """Where an error came from."""
        lines = [line for text in traceback.format_exception(error) for line in text.splitlines()]
        self._print(self._err, [Text(printable(line)) for line in lines], wrap=False)

    def ask(self, question: str) -> bool:
        """A yes from a person; everything else is a no. Raises Unanswered when he is not at this process's terminal."""
        self._print(self._out, [Text(f"{printable(question)} [y/N] ")], end="")
        if self._front is not None:
            shown, self._held_back = "".join(self._held_back or ()), None
            if self._front.said_yes_to == digest_of(shown):
                return True
            self._write(self._out, shown)
            raise Unanswered
        return self.answered_yes()

    def can_ask(self) -> bool:
        """Whether a person sits there."""
        if self._front is not None:
            return self._front.asks and not self.as_json
        return not self.as_json and sys.stdin.isatty() and sys.stdout.isatty()

    def _print(self, console: Console, parts: Sequence[Part], *, wrap: bool = True, end: str = "\n") -> None:
        for part in parts:
            shown: RenderableType = Text(printable(part)) if isinstance(part, str) else part
            with console.capture() as captured:
                console.print(shown, soft_wrap=not wrap and not console.is_terminal, end=end)
            text = captured.get()
            text = text if console.is_terminal else re.sub(" +\n", "\n", text)  # tables fill their lines up
            if self._held_back is not None and not console.stderr:
                self._held_back.append(text)
            else:
                self._write(console, text)

    def _write(self, console: Console, text: str) -> None:
        with _quiet_when_hung_up("stderr" if console.stderr else "stdout"):
            console.file.write(text)
            console.file.flush()

    def _let_out(self) -> None:
        """Nobody will be asked."""
        shown, self._held_back = self._held_back, None
        if shown:
            self._write(self._out, "".join(shown))


def plain(value: object) -> object:
    """`value` as JSON can hold it: no half characters, no figure that is none."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(plain(str(key))): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def log_to_stderr(*, debug: bool) -> None:
    """Warnings of the modules below, as lines like our own."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("hostagent: %(message)s"))
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, handlers=[handler], force=True)


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))


def _console(*, stderr: bool, front: Front | None) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")  # a terminal that has no arrows still shows the figures
    if front is not None:
        terminal = front.err_is_terminal if stderr else front.out_is_terminal
        return _OurConsole(
            stderr=stderr,
            width=front.err_width if stderr else front.width,
            height=front.height,
            force_terminal=terminal,
            color_system=_COLOURS.get(front.colours) if terminal else None,
            no_color=front.no_colour,
            **_PLAIN,
        )
    width = None if stream.isatty() or "COLUMNS" in os.environ else WIDTH
    return _OurConsole(stderr=stderr, width=width, **_PLAIN)


def _of_sense(size: int) -> int:
    return min(max(size, 1), MOST)


class _OurConsole(Console):
    def on_broken_pipe(self) -> None:
        """rich would end the process, with an exit code of its own."""
        raise BrokenPipeError(errno.EPIPE, "nobody reads any more")


@contextmanager
def _quiet_when_hung_up(name: str) -> Iterator[None]:
    """Nobody reads any more: not an error, and no reason to end otherwise than we would have."""
    try:
        yield
    except OSError as error:
        if error.errno not in _HUNG_UP:
            raise
        silence(name)


def silence(name: str) -> None:
    """From now on nothing goes to that stream."""
    stream: TextIO = getattr(sys, name)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream.fileno())
    except (OSError, ValueError):
        setattr(sys, name, click.open_file(os.devnull, "w"))
    finally:
        os.close(nowhere)
