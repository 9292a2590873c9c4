"""A swap for the whole host for which some guests leave: shut down, or on another host, until it is done.

The others are held. First everybody leaves who has to; then the others are held, and the swap is done; then those that
left come back. If the swap is not done all of them are brought back to what they ran on. Where it is neither done nor
undone they stay away: what was before can only be put back while no guest runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hostagent.errors import HostagentError, NeedsOperator
from hostagent.update.alone_batch import AloneBatch
from hostagent.update.hold_batch import HoldBatch
from hostagent.update.member import CUT_OFF, MemberOf


@dataclass
class ClearedBatch:
    """One run over both."""

    leaving: AloneBatch
    held: HoldBatch

    @property
    def members(self) -> tuple[MemberOf[Any], ...]:
        """The guests of both."""
        return (*self.leaving.members, *self.held.members)

    @property
    def failure(self) -> HostagentError | None:
        """Why nothing was swapped for the host."""
        return self.held.failure

    def run(self) -> None:
        """Everybody leaves, the swap, everybody comes back."""
        stays = self.leaving.leave()
        with self._nobody_stays_away():
            if stays is not None:
                self.held.give_up(stays)
            else:
                self.held.run()

    def recover(self) -> None:
        """Finish or undo what a crash left: those that are held first, they stand still."""
        with self._nobody_stays_away(recovers=True):
            self.held.recover()

    @contextmanager
    def _nobody_stays_away(self, *, recovers: bool = False) -> Iterator[None]:
        """Those that left come back also when it cannot be written down how it ended for the others."""
        unwritten: NeedsOperator | None = None
        try:
            yield
        except NeedsOperator as error:
            unwritten = error
        if not self.held.swapped and self.held.failure is None:
            self.held.failure = unwritten or CUT_OFF
        if isinstance(self.held.failure, NeedsOperator):
            self.leaving.stay_away(self.held.failure)
        elif recovers:
            self.leaving.recover(swapped=self.held.failure is None, undone=self.held.failure)
        elif self.held.failure is None:
            self.leaving.come_back()
        else:
            self.leaving.turn_back(self.held.failure)
        if unwritten is not None:
            raise unwritten
