"""What a program has said and nobody has read yet: bounded, so that a slow reader costs no memory and blocks nobody."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from dataclasses import dataclass
from enum import StrEnum


class Stream(StrEnum):
    """Where a program said something."""

    OUT = "stdout"  # its result
    ERR = "stderr"  # what it says beside that, line by line


@dataclass(frozen=True)
class Chunk:
    """A piece of what it said, in the order it came."""

    stream: Stream
    text: str


class Backlog:
    """One writer for each stream, one reader. Sizes are characters."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._chunks: deque[Chunk] = deque()
        self._size = 0
        self._left_out = 0
        self._ended = False
        self._changed = asyncio.Event()

    @property
    def is_full(self) -> bool:
        """Whether the reader is far behind."""
        return self._size >= self._limit

    def put(self, chunk: Chunk) -> None:
        """Keep it, or leave it out when there is no room; the reader is told so in its place."""
        if self._ended:
            return
        if self.is_full:
            self._left_out += len(chunk.text)
        else:
            self._mark_gap()
            self._append(chunk)

    async def wait_for_room(self) -> None:
        """Until the reader has caught up a little."""
        while self.is_full and not self._ended:
            await self._wait()

    async def get(self) -> Chunk | None:
        """What comes next; None at the end."""
        while not self._chunks:
            if self._ended:
                return None
            await self._wait()
        chunk = self._chunks.popleft()
        self._size -= len(chunk.text)
        self._changed.set()
        return chunk

    def take_all(self) -> None:
        """There is room for everything from now on: little is yet to come."""
        self._limit = sys.maxsize
        self._changed.set()

    def end(self) -> None:
        """Nothing more will come."""
        self._mark_gap()
        self._ended = True
        self._changed.set()

    def forget(self) -> None:
        """Nobody will read any of it."""
        self._left_out = 0
        self._chunks.clear()
        self._size = 0
        self.end()

    def _mark_gap(self) -> None:
        if self._left_out:
            self._append(Chunk(Stream.ERR, f"({self._left_out} characters are left out: nobody read them in time)\n"))
            self._left_out = 0

    def _append(self, chunk: Chunk) -> None:
        self._chunks.append(chunk)
        self._size += len(chunk.text)
        self._changed.set()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()
