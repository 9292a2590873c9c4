"""A roll: a plan carried out as a sequence of ordinary updates, one group of guests after the other.

A guest whose update was undone goes on down its ladder, by a further update. Whatever goes wrong beyond that stops the
roll: the groups that are left stay untouched, and it is said which and why. A roll is nothing that could be resumed or
recovered: each of its updates is, by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from hostagent.errors import HostagentError, NeedsOperator
from hostagent.plan import GuestPlan, Place, Plan, Verdict
from hostagent.planning.health import Before, Health
from hostagent.planning.rolling import one_rung_lower, part_of
from hostagent.update.journal import GuestRecord, Outcome, UpdateRecord
from hostagent.update.rolled import Carried, Done, PassedOver, Rolled, Stop, last_of
from hostagent.update.saga import Teller

STEP = "roll"  # what a person is told of it by
POLL_SECONDS = 0.2


class HealthGate(Protocol):
    """Between one group and the next."""

    def has_checks_for(self, names: Sequence[str]) -> bool: ...
    def before(self, guests: Sequence[GuestPlan]) -> tuple[Before, ...]: ...
    def after(self, before: Sequence[Before], updates: Sequence[UpdateRecord]) -> Health: ...


@dataclass(frozen=True)
class Doors:
    """What a roll does, passed in."""

    carry: Callable[[Plan], UpdateRecord]  # an ordinary update
    replan: Callable[[Sequence[str]], Plan]  # for guests of these names, from what is there now
    gate: HealthGate
    note: Callable[[str, Stop, str], None]  # why a roll was stopped after that update, for those who look later
    tell: Teller
    cancelled: Callable[[], bool]
    pause: Callable[[float], None]  # sleeps for so many seconds
    monotonic: Callable[[], float]


def roll(doors: Doors, plan: Plan, *, roll_id: str, wait_seconds: float = 0.0) -> Rolled:
    """Carry the plan out, group by group. The host's lock is held by the caller.

    Raises what the first update raises before it has touched a guest; later that stops the roll.
    """
    return _Roll(doors, plan, roll_id, wait_seconds).run()


class _Stopped(Exception):
    def __init__(self, stop: Stop, reason: str, error: HostagentError | None = None) -> None:
        super().__init__(reason)
        self.stop = stop
        self.reason = reason
        self.error = error


@dataclass
class _Roll:
    doors: Doors
    plan: Plan
    id: str
    wait_seconds: float
    done: list[Done] = field(default_factory=list)
    passed_over: list[PassedOver] = field(default_factory=list)
    seen: tuple[Before, ...] = ()  # the group that went last, as it was
    carried: tuple[Done, ...] = ()  # its updates

    def __post_init__(self) -> None:
        self.groups = self.plan.groups or (tuple(guest.name for guest in self.plan.to_update),)

    def run(self) -> Rolled:
        untouched: list[str] = [name for group in self.groups for name in group]
        try:
            for number, names in enumerate(self.groups, start=1):
                if number > 1:
                    self._get_on(number)
                part = self._part(number, names)
                self._require_not_cancelled()
                self._go(number, part, untouched)
                if self._is_gated(names):
                    self._require_health(number)
        except _Stopped as stopped:
            return self._ended(stopped, untouched)
        return Rolled(self.plan, self.id, tuple(self.done), passed_over=tuple(self.passed_over))

    def _ended(self, stopped: _Stopped, untouched: Sequence[str]) -> Rolled:
        reason = stopped.reason
        rolled = Rolled(
            self.plan,
            self.id,
            tuple(self.done),
            stopped.stop,
            reason,
            stopped.error,
            tuple(untouched),
            tuple(self.passed_over),
        )
        if self.done and not rolled.is_plain:
            self.doors.note(self.done[-1].update.id, stopped.stop, reason)
        return rolled

    # -- one group ---------------------------------------------------------------------------------------------

    def _part(self, number: int, names: Sequence[str]) -> Plan:
        """Its plan; made anew for all but the first group, as time has passed since."""
        place = self._place(number)
        if number == 1:
            return part_of(self.plan, names, place)
        with self._stopping(number):
            fresh = self.doors.replan(names)
        if fresh.blockers:
            raise _Stopped(Stop.FAILED, f"{self._called(number)}: {'; '.join(map(str, fresh.blockers))}")
        for guest in fresh.blocked:
            why = "; ".join(map(str, guest.blockers))
            raise _Stopped(Stop.FAILED, f"{self._called(number)}: {guest.name} cannot be updated any more: {why}")
        return replace(fresh, groups=(), place=place)

    def _place(self, number: int) -> Place | None:
        """None for what will be one update, as far as anybody can tell."""
        alone = len(self.groups) == 1 and not any(guest.lower for guest in self.plan.to_update)
        return None if alone else Place(self.id, number, len(self.groups))

    def _go(self, number: int, part: Plan, untouched: list[str]) -> None:
        """Update its guests, each as far down its ladder as it has to; `untouched` are those that nobody has begun."""
        names = self.groups[number - 1]
        if len(self.groups) > 1:
            self._say(f"{self._called(number)}: {', '.join(names)}")
        verdicts = {guest.name: guest.verdict for guest in part.guests}
        self.passed_over += [
            PassedOver(name, verdicts.get(name, "gone")) for name in names if verdicts.get(name) is not Verdict.UPDATE
        ]
        self.seen, self.carried = (), ()
        if part.to_update:
            self._carry_first(number, part, untouched)
        _remove(untouched, names)
        while fallen := self._fallen():
            with self._stopping(number):
                fresh = self.doors.replan([one.plan.name for one in fallen])
                lower = one_rung_lower(fresh, {one.plan.uuid: one.method for one in fallen})
                if not lower.to_update or lower.blockers:
                    break
                ways = ", ".join(f"{guest.name} by {guest.method}" for guest in lower.to_update)
                self._say(f"further down the ladder: {ways}")
                self._carry(replace(lower, place=self._place(number)))
        self._require_updated(number)

    def _carry_first(self, number: int, part: Plan, untouched: list[str]) -> None:
        names = self.groups[number - 1]
        with self._stopping(number):
            if self._is_gated(names):
                self.seen = self.doors.gate.before(part.to_update)
            try:
                self._carry(part)
            except NeedsOperator:  # it may have begun
                _remove(untouched, names)
                raise

    def _carry(self, part: Plan) -> None:
        done = Done(self.doors.carry(part), part)
        self.done.append(done)
        self.carried = (*self.carried, done)

    def _fallen(self) -> list[Carried]:
        """Guests of the group that are as before, with something further down; none when anything is worse."""
        ended = last_of(self.carried)
        undone = [one for one in ended if one.record.outcome is Outcome.ROLLED_BACK]
        updated = [one for one in ended if one.record.outcome is Outcome.UPDATED]
        if self.doors.cancelled() or len(undone) + len(updated) < len(ended):
            return []
        return [one for one in undone if one.plan.lower]

    def _require_updated(self, number: int) -> None:
        records = [one.record for one in last_of(self.carried)]
        bad = [guest for guest in records if guest.outcome is not Outcome.UPDATED]
        if not bad:
            return
        ended = "; ".join(f"{guest.name}: {_words(guest)}" for guest in bad)
        harmless = {guest.outcome for guest in bad} <= {Outcome.ROLLED_BACK, Outcome.GONE}
        stop = Stop.CANCELLED if self.doors.cancelled() and harmless else Stop.FAILED
        raise _Stopped(stop, f"{self._called(number)}: {ended}" if len(self.groups) > 1 else ended)

    # -- between them ------------------------------------------------------------------------------------------

    def _get_on(self, number: int) -> None:
        """Wait, if that was asked for, and look whether the group before is well still."""
        self._require_not_cancelled()
        if not self.wait_seconds:
            return
        self._say(f"waiting for {self.wait_seconds:g} s before {self._called(number)}")
        ends = self.doors.monotonic() + self.wait_seconds
        while (left := ends - self.doors.monotonic()) > 0:
            self.doors.pause(min(POLL_SECONDS, left))
            self._require_not_cancelled()
        self._require_health(number - 1)

    def _is_gated(self, names: Sequence[str]) -> bool:
        return len(self.groups) > 1 or self.doors.gate.has_checks_for(names)

    def _require_health(self, number: int) -> None:
        if not self.seen:
            return
        self._say(f"is {self._called(number)} well?")
        with self._stopping(number):
            health = self.doors.gate.after(self.seen, [done.update for done in self.carried])
        if health.good:
            return
        if self.doors.cancelled():
            reason = f"somebody asked to stop before it was known whether {self._called(number)} is well"
            raise _Stopped(Stop.CANCELLED, reason)
        raise _Stopped(Stop.UNHEALTHY, f"{self._called(number)} is not well: {health}")

    def _require_not_cancelled(self) -> None:
        if self.done and self.doors.cancelled():
            raise _Stopped(Stop.CANCELLED, "somebody asked to stop")

    def _stopping(self, number: int) -> _StopsBy:
        return _StopsBy(self, number)

    def _called(self, number: int) -> str:
        return f"group {number} of {len(self.groups)}"

    def _say(self, words: str) -> None:
        self.doors.tell("", STEP, words)


@dataclass
class _StopsBy:
    """What goes wrong stops the roll once an update was carried out; before that it is for the caller."""

    of: _Roll
    number: int

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, HostagentError) and self.of.done:
            harmless = self.of.doors.cancelled() and not isinstance(error, NeedsOperator)
            stop = Stop.CANCELLED if harmless else Stop.FAILED
            raise _Stopped(stop, f"{self.of._called(self.number)}: {error}", error) from error


def _remove(untouched: list[str], names: Sequence[str]) -> None:
    untouched[:] = [name for name in untouched if name not in names]


def _words(guest: GuestRecord) -> str:
    ended = guest.outcome.replace("-", " ") if guest.outcome else "open"
    return f"{ended} ({guest.reason.removeprefix(f'{guest.name}: ')})" if guest.reason else ended
