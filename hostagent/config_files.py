"""Settings files, a main one and its drop-ins: reading and merging them, and finding who set a key.

``FILE.d/*.toml`` are the drop-ins of ``FILE``. They are laid over it in the order of their names: tables merge key by
key, and everything else, lists too, replaces what came before.
"""

import stat
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostagent.errors import UsageError

_SIZE_LIMIT = 64 * 1024


@dataclass(frozen=True)
class SettingsFile:
    """A file that is TOML, whatever its keys."""

    path: Path
    text: str
    document: dict[str, Any]


def read(source: Path) -> tuple[SettingsFile, ...]:
    """The file, if there is one, then its drop-ins; UsageError names the one that cannot be read, or is no TOML."""
    return (*_main(source), *map(_drop_in, _drop_ins(Path(f"{source}.d"))))


def merge(files: Sequence[SettingsFile]) -> dict[str, Any]:
    """What the files say together."""
    merged: dict[str, Any] = {}
    for file in files:
        left = [(merged, file.document)]
        while left:  # no recursion: dotted keys nest tables deeper than Python calls itself
            below, above = left.pop()
            for key, value in above.items():
                if not isinstance(value, dict):
                    below[key] = value
                    continue
                if not isinstance(below.get(key), dict):
                    below[key] = {}
                left.append((below[key], value))
    return merged


def blame(files: Sequence[SettingsFile], keys: Sequence[str], earlier: int = 0) -> tuple[int, int]:
    """Who set a key that the merged files have: the last file that does, by its number from 0, and its line from 1.

    earlier: of a list of tables, how many of them come before the one that is meant.
    """
    number = max(number for number, file in enumerate(files) if _has(file.document, keys))
    return number, _line_of(files[number].text, keys, earlier)


def _main(source: Path) -> Iterator[SettingsFile]:
    with _refusing(source):
        try:
            raw = source.read_bytes()
        except FileNotFoundError:
            return
    yield _parsed(source, raw)


def _drop_ins(folder: Path) -> list[Path]:
    """In the order of their names; what editors and package managers leave beside them is none."""
    with _refusing(folder):
        try:
            return sorted(
                path for path in folder.iterdir() if path.name.endswith(".toml") and not path.name.startswith(".")
            )
        except FileNotFoundError:
            return []


def _drop_in(path: Path) -> SettingsFile:
    with _refusing(path):
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise UsageError(f"reading {path}", expected="a regular file", found="something else")
        raw = path.read_bytes()
    return _parsed(path, raw)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"reading {path}", found=error.strerror or str(error)) from error


def _parsed(path: Path, raw: bytes) -> SettingsFile:
    doing, expected = f"reading {path}", "TOML in UTF-8"
    if len(raw) > _SIZE_LIMIT:
        raise UsageError(doing, expected=f"at most {_SIZE_LIMIT} bytes", found=str(len(raw)))
    try:
        text = raw.decode("utf-8")
        return SettingsFile(path, text, tomllib.loads(text))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{doing}, line {line}", expected=expected, found=str(error)) from error
    except ValueError as error:  # of tomllib, which tells the line, or of int() for a number of 4,300 digits
        raise UsageError(doing, expected=expected, found=str(error)) from error
    except RecursionError as error:
        raise UsageError(doing, expected=expected, found="values nested too deeply") from error


def _line_of(text: str, keys: Sequence[str], earlier: int) -> int:
    """The line, from 1, on which a key is written; of tables with that header, the one after so many others.

    tomllib keeps no positions, but it tells: the key is in the first statement that has it when read below the header
    of its table. A statement ends with the first line up to which it parses; some have several.
    """
    lines = text.split("\n")  # splitlines() would also split at characters that TOML has inside texts
    header = ""
    begin = 0  # of the statement that is being read
    headers: list[int] = []
    for end in range(1, len(lines) + 1):
        statement = "\n".join(lines[begin:end]) + "\n"
        is_header = statement.lstrip().startswith("[")
        try:
            document = tomllib.loads(statement if is_header else header + statement)
        except tomllib.TOMLDecodeError:
            continue
        if _has(document, keys):
            headers += [begin + 1] if is_header else []
            if not is_header and not headers:
                return begin + 1  # an ordinary key, or tables that are written in one statement
            if len(headers) > earlier:
                return headers[earlier]
        if is_header:
            header = statement
        begin = end
    return headers[0] if headers else 1


def _has(document: Any, keys: Sequence[str]) -> bool:
    if not keys:
        return True
    if isinstance(document, list):  # of tables
        return any(_has(one, keys) for one in document)
    return isinstance(document, dict) and keys[0] in document and _has(document[keys[0]], keys[1:])
