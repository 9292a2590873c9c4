"""The health gate: whether guests are as well after their update as before it, and what stands behind them answers.

It changes nothing. What is not well at once is given time; whoever asks to stop is heeded meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from hostagent.clock import AgentError, AgentFault
from hostagent.config import HealthSettings
from hostagent.errors import HostagentError
from hostagent.facts import GuestState
from hostagent.plan import GuestPlan, Method
from hostagent.planning.health import Before, Check, Complaint, Health, Now, checks_of, complaints_of
from hostagent.planning.update_domains import Placed
from hostagent.update.journal import GuestRecord, Outcome, UpdateRecord
from hostagent.update.order import UpdateOrder
from hostagent.update.probes import Probe, ask
from hostagent.update.subject import Ports

_T = TypeVar("_T")
_R = TypeVar("_R")

POLL_SECONDS = 0.5
_HEED_SECONDS = 0.1  # within which a wish to stop is heeded while something outside is asked
_LATE_SECONDS = 2.0  # that whoever asks the outside may be late
# An agent that says no has answered.
_ANSWERS = frozenset((AgentFault.COMMAND_DISABLED, AgentFault.COMMAND_FAILED, AgentFault.BAD_REPLY))


@dataclass(frozen=True)
class Gate:
    """Looks at the guests of a group before and after their update."""

    ports: Ports
    placed: Mapping[str, Placed]  # by name: all guests of the roll
    checks: Sequence[HealthSettings]
    settle_seconds: float
    cancelled: Callable[[], bool]
    pause: Callable[[float], None]  # sleeps for so many seconds
    probe: Probe = ask
    side_by_side: int = 16  # guests that are looked at; each look mostly waits

    def has_checks_for(self, names: Iterable[str]) -> bool:
        """Whether the settings ask for something that concerns one of these."""
        return bool(self._checks(names))

    def before(self, guests: Sequence[GuestPlan]) -> tuple[Before, ...]:
        """How guests are that are about to be updated."""
        return tuple(self._side_by_side(self._before, guests))

    def after(self, before: Sequence[Before], updates: Sequence[UpdateRecord]) -> Health:
        """How they are now; `updates` are those that carried them, the last one of each guest counts.

        What is said when somebody asked to stop meanwhile means nothing.
        """
        ended = {uuid: (update, guest) for update in updates for uuid, guest in update.guests.items()}
        monotonic = self.ports.monotonic
        ends = monotonic() + self.settle_seconds
        while (found := self._complaints(before, ended)) and not self.cancelled() and monotonic() < ends:
            self.pause(POLL_SECONDS)
        asked = [self._asked(check) for check in self._checks(one.name for one in before)]
        return Health((*found, *(complaint for complaint in asked if complaint is not None)))

    # -- guests ------------------------------------------------------------------------------------------------

    def _before(self, guest: GuestPlan) -> Before:
        seen = self.ports.libvirt.standing(guest.uuid)
        state = seen.state if seen is not None else GuestState.UNKNOWN
        answered = state is GuestState.RUNNING and self._silence(guest.uuid) is None
        return Before(guest.name, guest.uuid, state, answered)

    def _complaints(
        self, before: Sequence[Before], ended: Mapping[str, tuple[UpdateRecord, GuestRecord]]
    ) -> list[Complaint]:
        def look(one: Before) -> tuple[Complaint, ...]:
            return tuple(complaints_of(one, self._now(one, *ended[one.uuid])))

        known = [one for one in before if one.uuid in ended]
        return [complaint for found in self._side_by_side(look, known) for complaint in found]

    def _now(self, before: Before, update: UpdateRecord, record: GuestRecord) -> Now:
        try:
            seen = self.ports.libvirt.standing(before.uuid)
        except HostagentError as error:
            return Now(GuestState.UNKNOWN, str(error), None)
        there = seen is not None and seen.state.active
        measured = record.measured
        outcome, reason = measured.get("clock_outcome"), measured.get("clock_reason")
        return Now(
            state=seen.state if seen is not None else None,
            state_reason=seen.reason if seen is not None else "",
            silent=self._silence(before.uuid) if there and before.answered else None,
            clock_was_read="clock_before_seconds" in measured,
            clock_outcome=None if outcome is None else str(outcome),
            clock_reason=None if reason is None else str(reason),
            left=not there and record.outcome is Outcome.UPDATED and _went_away(update, before.uuid),
        )

    def _silence(self, uuid: str) -> str | None:
        """Why its agent does not answer; None when it does."""
        seconds = self.ports.config.clock.agent_seconds
        try:
            with self.ports.libvirt.agent(uuid) as agent:
                agent.ask("guest-ping", None, seconds)
        except AgentError as error:
            return None if error.kind in _ANSWERS else str(error.kind)
        except HostagentError as error:
            return str(error)
        return None

    def _side_by_side(self, look: Callable[[_T], _R], guests: Sequence[_T]) -> Iterator[_R]:
        def look_and_leave(one: _T) -> _R:
            try:
                return look(one)
            finally:
                self.ports.libvirt.disconnect()  # each thread has a connection of its own

        with ThreadPoolExecutor(self.side_by_side, thread_name_prefix="health") as pool:
            yield from pool.map(look_and_leave, guests)

    # -- what stands behind them -------------------------------------------------------------------------------

    def _checks(self, names: Iterable[str]) -> tuple[Check, ...]:
        return checks_of(self.checks, [self.placed[name] for name in names if name in self.placed])

    def _asked(self, check: Check) -> Complaint | None:
        """Ask until the answer is the right one, or time is up."""
        ends = self.ports.monotonic() + check.within_seconds
        while True:
            found = self._once(check, max(POLL_SECONDS, ends - self.ports.monotonic()))
            if not found:
                return None
            if self.cancelled() or self.ports.monotonic() >= ends:
                return Complaint(check.of, check.sign, check.expected, found)
            self.pause(POLL_SECONDS)

    def _once(self, check: Check, within_seconds: float) -> str:
        """In a thread of its own: a name that is looked up, or a command, is not waited for by whoever is cancelled."""
        answer = ["no answer"]
        worker = threading.Thread(
            target=lambda: answer.insert(0, self.probe(check, within_seconds)), name="health", daemon=True
        )
        late = self.ports.monotonic() + within_seconds + _LATE_SECONDS
        worker.start()
        worker.join(_HEED_SECONDS)
        while worker.is_alive() and not self.cancelled() and self.ports.monotonic() < late:
            worker.join(_HEED_SECONDS)
        return answer[0]


def _went_away(update: UpdateRecord, uuid: str) -> bool:
    """Whether it was to go to another host; it may stay there."""
    return any(one.uuid == uuid and one.method is Method.LIVE_MIGRATE for one in UpdateOrder.of(update).guests)
