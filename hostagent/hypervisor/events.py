"""What libvirt tells without being asked: what becomes of guests, and whether it is there at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Happened(StrEnum):
    """What became of a guest (virDomainEventType, and its detail where that matters)."""

    DEFINED = "defined"
    UNDEFINED = "undefined"
    STARTED = "started"
    RESTORED = "restored"
    CAME_IN = "came in by migration"
    WOKEN = "woken up"
    PAUSED = "paused"
    RESUMED = "resumed"
    SHUTTING_DOWN = "shut itself down"
    SHUT_OFF = "shut off"
    DESTROYED = "destroyed"
    SAVED = "saved"
    LEFT = "left by migration"
    FAILED = "failed to start"
    CRASHED = "crashed"
    SUSPENDED = "suspended itself"
    OTHER = "something else"


@dataclass(frozen=True)
class GuestEvent:
    """Something became of a guest."""

    name: str  # hostile
    uuid: str
    what: Happened


@dataclass(frozen=True)
class LineEvent:
    """libvirt answers, or does no more; `why` in words."""

    up: bool
    why: str = ""


Event = GuestEvent | LineEvent


class Events(Protocol):
    """A connection that listens, and is made anew for as long as it takes."""

    def start(self, tell: Callable[[Event], None]) -> None:
        """Begin to listen; `tell` is called on a thread of its own and must return at once."""
        ...

    def stuck(self) -> str:
        """What should have come back by now, and has not; "" when all is well, or known to be only waiting."""
        ...

    def end(self, within_seconds: float) -> None:
        """Listen no more."""
        ...


_OTHERS_HAND = frozenset(
    {
        Happened.DEFINED,
        Happened.UNDEFINED,
        Happened.STARTED,
        Happened.CAME_IN,
        Happened.SHUT_OFF,
        Happened.DESTROYED,
        Happened.FAILED,
        Happened.CRASHED,
    }
)


def touches_held(what: Happened) -> bool:
    """Whether that, of a guest that is held, was done by somebody else: ours is saved, restored and resumed alone.

    What fails to start has been kept from it by libvirt's hook.
    """
    return what in _OTHERS_HAND
