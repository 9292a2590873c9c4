"""The components of the host: what runs of each, what is installed, and how that is put in its place."""

from __future__ import annotations

from typing import Protocol

from hostagent.facts import Component


class HostComponent(Protocol):
    """A component that is swapped for the whole host at once."""

    @property
    def name(self) -> str: ...

    @property
    def holds(self) -> bool:
        """Whether no guest may run meanwhile: all are held."""
        ...

    @property
    def first_seconds(self) -> float:
        """How long the swap takes, where it was never measured."""
        ...

    def look(self) -> Component:
        """What runs of it, and what would run after a swap."""
        ...

    def stage(self) -> None:
        """Get ready while guests run, and make sure of the way back. Failed when the swap cannot be done."""
        ...

    def apply(self) -> None:
        """Put what is installed in the place of what runs."""
        ...

    def is_applied(self) -> bool:
        """Asked of the world: whether what is installed runs, and works."""
        ...

    def is_for_good(self) -> bool:
        """Asked of the world: whether what ran before is gone, so that there is only the way forward."""
        ...

    def roll_back(self) -> None:
        """Put what ran before back in its place; done when it is there. Any number of times."""
        ...

    def forget(self) -> None:
        """What staging kept for the way back is not needed any more."""
        ...
