"""Whom a verb speaks to that the agent runs for somebody: the terminal that he sits at.

It is in the environment of the process that the agent starts; without one a verb speaks to its own terminal. So what is
said is the same with the agent and without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Self

from hostagent.errors import UsageError

VARIABLE = "HOSTAGENT_FRONT"
AGENT_VARIABLE, OFF = "HOSTAGENT_AGENT", "off"
"""In the environment of whoever must not ask the agent: the agent runs it, or somebody wants it so."""

UNANSWERED = 75  # EX_TEMPFAIL of sysexits.h: what a verb ends with that has asked somebody who is not in its process
ATTACHED = "\0"  # on stdout, between what a verb says and the content of a file that it was to write
COLOURS = ("", "standard", "256", "truecolor")  # as rich names them
MOST = 10_000  # columns, or rows
_SIZE_LIMIT = 6000
_NAME_LIMIT = 4096


@dataclass(frozen=True)
class Front:
    """What of somebody's terminal, and of what he wants, decides how a verb says things."""

    width: int = 100
    err_width: int = 100
    height: int = 25
    colours: str = ""  # "" none
    no_colour: bool = False  # as NO_COLOR asks for: bold is left
    dumb: bool = False  # a terminal that cannot move its cursor
    out_is_terminal: bool = False
    err_is_terminal: bool = False
    as_json: bool = False
    debug: bool = False
    asks: bool = False  # somebody is there to answer
    said_yes_to: str = ""  # the digest of what he was shown
    saves: str = ""  # the name of the file that he wants a plan in; its content follows what is said

    @classmethod
    def read(cls, text: str) -> Self:
        """What somebody says of himself; UsageError when that makes no sense."""
        try:
            found = json.loads(text) if len(text) <= _SIZE_LIMIT else None
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or not all(_is_right(name, value) for name, value in found.items()):
            raise UsageError("reading whom to speak to", expected="a terminal's width and colours", found=text[:80])
        return cls(**found)

    def common_words(self) -> tuple[str, ...]:
        """What every verb can be told."""
        return (*(["--json"] if self.as_json else []), *(["--debug"] if self.debug else []))

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> Self | None:
        """Whom this process speaks to; None: its own terminal."""
        text = environment.get(VARIABLE)
        return None if text is None else cls.read(text)

    def written(self) -> str:
        """On one line, for `read`."""
        return json.dumps(asdict(self))

    def environment(self) -> Mapping[str, str]:
        """For the process that speaks to him; it does not come back to the agent."""
        term = "dumb" if self.dumb else "xterm-256color"
        return {VARIABLE: self.written(), AGENT_VARIABLE: OFF, "TERM": term, "PYTHONIOENCODING": "utf-8"}


class Unanswered(Exception):
    """Somebody was asked who is not in this process; if he says yes, the verb is run again and told so."""


def digest_of(shown: str) -> str:
    """Of all that somebody was shown before he said yes."""
    import hashlib  # noqa: PLC0415 - every verb reads this module

    return hashlib.sha256(shown.encode("utf-8", "backslashreplace")).hexdigest()


def _is_right(name: str, value: object) -> bool:
    kind = {field.name: field.type for field in fields(Front)}.get(name)
    match kind, value:
        case "bool", bool():
            return True
        case "int", int() if not isinstance(value, bool):
            return 1 <= value <= MOST
        case "str", str():
            return value in COLOURS if name == "colours" else len(value) <= _NAME_LIMIT and value.isprintable()
    return False
