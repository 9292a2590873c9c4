"""When the service recovers what stands open and nobody sees to. Pure.

At once when something is found open, and again after a while for as long as it stays so: what kept it from being closed
may have ended, and recovering once more does no harm.
"""

from __future__ import annotations

from dataclasses import dataclass

AGAIN_SECONDS = 30.0
AGAIN_LIMIT = 3600.0


@dataclass
class Healing:
    """What was tried, and when it is tried again; `now` is monotonic."""

    _tried: frozenset[str] = frozenset()  # updates that the last recovery has left open
    _again_at: float = 0.0
    _seconds: float = AGAIN_SECONDS

    def is_due(self, open_updates: frozenset[str], now: float) -> bool:
        """Whether to recover now; nobody is at work on the host."""
        if not open_updates:
            self._tried, self._seconds = frozenset(), AGAIN_SECONDS
            return False
        return bool(open_updates - self._tried) or now >= self._again_at

    def tried(self, left_open: frozenset[str], now: float) -> None:
        """A recovery has ended, and these updates are open still."""
        self._seconds = min(self._seconds * 2, AGAIN_LIMIT) if left_open and left_open <= self._tried else AGAIN_SECONDS
        self._tried, self._again_at = left_open, now + self._seconds

    def try_soon(self) -> None:
        """Something has changed for the better: libvirt is back."""
        self._again_at = 0.0
