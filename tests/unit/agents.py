"""What the service's parts are given in tests: a log that is kept, a libvirt that tells, verbs that are made up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from hostagent.agent.log import Log, Value
from hostagent.agent.work import Chunk, Stream
from hostagent.hypervisor.events import Event

Fields = dict[str, Value]


class KeptLog(Log):
    """Keeps each event's fields; without the empty ones, and without when it was."""

    def __init__(self) -> None:
        super().__init__(lambda _: None)
        object.__setattr__(self, "events", [])

    def tell(self, event: str, guest: str, update: str, level: object, more: object) -> None:
        super().tell(event, guest, update, level, list(more))  # type: ignore[arg-type, call-overload]
        named = {"event": event, "guest": guest, "update": update, "level": str(level), **dict(more)}  # type: ignore[call-overload]
        self.events.append({key: value for key, value in named.items() if value not in ("", None)})

    def names(self) -> list[str]:
        return [event["event"] for event in self.events]

    def of(self, name: str) -> list[Fields]:
        return [event for event in self.events if event["event"] == name]


@dataclass
class ToldEvents:
    """Says what a test has it say."""

    tell: Callable[[Event], None] = lambda _: None
    fault: str = ""
    ended: bool = False

    def start(self, tell: Callable[[Event], None]) -> None:
        self.tell = tell

    def stuck(self) -> str:
        return self.fault

    def end(self, _within_seconds: float) -> None:
        self.ended = True


@dataclass
class MadeUpWork:
    """A verb that has said that and ended with that code."""

    words: Sequence[str]
    err: str = ""
    code: int = 0

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        yield Chunk(Stream.OUT, "{}")
        if self.err:
            yield Chunk(Stream.ERR, self.err)

    async def exit_code(self) -> int:
        return self.code

    async def __aenter__(self) -> MadeUpWork:
        return self

    async def __aexit__(self, *_: object) -> None: ...


@dataclass
class MadeUpWorks:
    """`does` is what running a verb does; its result is the verb."""

    does: Callable[[Sequence[str]], MadeUpWork] = MadeUpWork
    changing: MadeUpWork | None = None
    started: list[Sequence[str]] = field(default_factory=list)

    async def start(self, words: Sequence[str], *, changes: bool) -> MadeUpWork:
        assert changes
        self.started.append(tuple(words))
        return self.does(words)
