"""The journal's rows as they come, each with its sequence number, from which whoever was cut off goes on.

Rows are for recovery, and some hold what is nobody else's: only what is named here leaves the host.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from hostagent.errors import NeedsOperator, UsageError
from hostagent.operations import Parameters
from hostagent.update.journal import Json, Kind, Row
from hostagent.update.journal_reader import read_rows, stamp

EVENT_STREAM = "text/event-stream"
_BATCH = 500
_TEXT_LIMIT = 1000
_LOOK_SECONDS = 0.25
_STILL_THERE_SECONDS = 15.0
_DIGITS = 15
_TRIES = 8

_SHOWN: Mapping[Kind, frozenset[str]] = {
    Kind.UPDATE_BEGUN: frozenset({"component", "kind", "swaps", "undoes", "roll", "group", "groups"}),
    Kind.GUEST_BEGUN: frozenset({"name"}),
    Kind.STEP_FAILED: frozenset({"error", "kind"}),
    Kind.GUEST_ENDED: frozenset({"outcome", "reason", "kind"}),
    Kind.UPDATE_ENDED: frozenset({"outcome", "reason"}),
}


class Events(Parameters):
    """From where on, and whether to go on."""

    after: Annotated[int, Field(ge=0, le=2**53, description="Only rows of a higher sequence number.")] = 0
    follow: Annotated[bool, Field(description="Go on with rows as they come.")] = True

    def going_on_after(self, last: str) -> Events:
        """The same for who was cut off after that row; UsageError when it is none."""
        if not last.isascii() or not last.isdigit() or len(last) > _DIGITS:
            raise UsageError("reading Last-Event-ID", expected="a sequence number", found=repr(last[:80]))
        return self.model_copy(update={"after": int(last)})


@dataclass(frozen=True)
class Pace:
    """How often the journal is looked at, and how often somebody is told that it still is; seconds."""

    look: float = _LOOK_SECONDS
    still_there: float = _STILL_THERE_SECONDS


async def rows(journal: Path, asked: Events, pace: Pace = Pace()) -> AsyncIterator[Row | None]:
    """Rows in their order; None now and then while there is none, so that who listens sees that we do."""
    after, quiet, failed = asked.after, 0.0, 0
    while True:
        seen = stamp(journal)
        try:
            found: Sequence[Row] = await asyncio.to_thread(read_rows, journal, since=after + 1, limit=_BATCH)
        except NeedsOperator:  # one that is just being made has no rows for a moment
            failed += 1
            if failed > _TRIES:
                raise
            await asyncio.sleep(pace.look)
            continue
        failed = 0
        for row in found:
            yield row
            after = row.seq
        if found:
            quiet = 0.0
            continue
        if not asked.follow:
            return
        while stamp(journal) == seen:
            await asyncio.sleep(pace.look)
            quiet += pace.look
            if quiet >= pace.still_there:
                quiet = 0.0
                yield None


def as_event(row: Row | None) -> str:
    """A row as a server-sent event; a comment that we are still there for none."""
    return ": still there\n\n" if row is None else f"id: {row.seq}\nevent: {row.entry.kind}\ndata: {as_json(row)}\n\n"


def as_json(row: Row | None) -> str:
    """A row for a program, on one line; {} for none."""
    if row is None:
        return "{}"
    entry = row.entry
    document = {
        "seq": row.seq,
        "at": row.at,
        "boot_id": row.boot_id,
        "update": row.update,
        "kind": entry.kind,
        "guest": entry.guest or None,
        "step": entry.step or None,
        "body": dict(_shown(entry.kind, entry.body)),
    }
    return json.dumps(document, allow_nan=False)


def _shown(kind: Kind, body: Json) -> Iterator[tuple[str, object]]:
    """Plain values alone; of measurements all, of notes none: those are between an update and its recovery."""
    for name, value in body.items():
        if kind is not Kind.MEASURED and name not in _SHOWN.get(kind, ()):
            continue
        if isinstance(value, str):
            yield name, value[:_TEXT_LIMIT]
        elif value is None or isinstance(value, bool | int | float):
            yield name, value if not isinstance(value, float) or abs(value) < float("inf") else None
        elif isinstance(value, list) and all(isinstance(one, str) for one in value) and kind is Kind.UPDATE_BEGUN:
            yield name, value
    to = body.get("to") if kind is Kind.UPDATE_BEGUN else None
    if isinstance(to, dict):
        yield "to", {name: to.get(name) for name in ("name", "package")}
