"""A guest that goes by a method whose steps concern no other guest; what the batch asks of it."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from hostagent.errors import HostagentError
from hostagent.update.journal import Outcome
from hostagent.update.saga import Step
from hostagent.update.subject import GuestOfUpdate, N


@dataclass(frozen=True)
class Ended:
    """How it ended for a guest, and why."""

    outcome: Outcome
    why: HostagentError | str


@dataclass
class GuestAlone(GuestOfUpdate[N], ABC):
    """The subject of such steps. Each question is asked of the world, in this process or a later one."""

    cancelled: Callable[[], bool] = field(default=lambda: False, kw_only=True)  # for a step that takes long
    tell: Callable[[str], None] = field(default=lambda doing: None, kw_only=True)  # and its progress, to who watches
    undone: str = field(default="", kw_only=True)  # what its owner has to know of how it was brought back; a sentence

    keeps_memory: ClassVar[bool] = True  # then its clock is measured before, to be compared with

    def note_if_possible(self, **changes: object) -> None:
        """Write down what decides nothing: a full disk does not keep a guest from going on, or being started."""
        try:
            self.note(**changes)
        except HostagentError:
            self.saved = dataclasses.replace(self.notes, **changes)  # type: ignore[type-var]

    @property
    def leaves_for_good(self) -> bool:
        """Whether it is to stay on another host."""
        return False

    @abstractmethod
    def settle(self) -> None:
        """Wait, with a limit, until what was asked for it is done or is given up; raises nothing for the latter."""

    @abstractmethod
    def ended_by_others(self, opened: Sequence[str]) -> Ended | None:
        """How it ended by somebody else before the commit, so that it is left alone; None for all others.

        opened: the steps that may have effects. There may be no notes yet.
        """

    @abstractmethod
    def went_forward(self) -> bool:
        """Whether it runs where it is to be, whoever saw to that; asked once there are notes."""

    @abstractmethod
    def fell_late(self, error: HostagentError) -> Ended:
        """How it ended for one that did not get through after the commit."""

    @abstractmethod
    def comes_first(self) -> bool:
        """Whether it may not run because of us: recovery sees to it before others."""

    def told_of_undoing(self) -> str:
        """What its owner has to know of how it was brought back, by this process or an earlier one; "" for nothing."""
        return self.undone

    def let_go(self) -> None:
        """Clear up what is ours of a guest that is left alone. Any number of times."""


A = TypeVar("A", bound=GuestAlone[Any])


@dataclass(frozen=True)
class Tables(Generic[A]):
    """The step tables of such a method, in their order."""

    prepare: Sequence[Step[A]]  # it runs as before: a cancelled update stops here
    carry: Sequence[Step[A]]  # the commit is one of these
    after: Sequence[Step[A]] = ()  # looks at it where it is to be, and clears up
    left_by: str = ""  # the step that is the last of those by which it leaves this host's components

    @property
    def leave(self) -> Sequence[Step[A]]:
        """Up to where nothing of it runs on this host."""
        rows = (*self.prepare, *self.carry, *self.after)
        names = [step.name for step in rows]
        return rows[: names.index(self.left_by) + 1]

    @property
    def undone(self) -> Sequence[Step[A]]:
        """What is undone, newest first, where it has begun."""
        return (*self.prepare, *self.carry)
