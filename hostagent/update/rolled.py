"""What became of a roll: its updates, where it stopped, and whom it left untouched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from hostagent.errors import HostagentError
from hostagent.plan import GuestPlan, Method, Plan
from hostagent.update.journal import GuestRecord, Outcome, UpdateRecord


class Stop(StrEnum):
    """Why a roll has ended before all of its guests were updated, or with something that is not well."""

    FAILED = "failed"  # a guest was not updated
    UNHEALTHY = "unhealthy"  # after its update, or what stands behind it
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Done:
    """One update of a roll, and the plan that it carried out."""

    update: UpdateRecord
    plan: Plan


@dataclass(frozen=True)
class PassedOver:
    """A guest for which nothing was to be done any more as its turn came."""

    name: str
    why: str


@dataclass(frozen=True)
class Carried:
    """A guest in an update: what was planned, and what became of it."""

    plan: GuestPlan
    record: GuestRecord

    @property
    def method(self) -> Method:
        """By which it went."""
        return self.plan.method or Method.IN_PLACE


def last_of(updates: Iterable[Done]) -> tuple[Carried, ...]:
    """Of each guest the last of these updates that carried it."""
    found = {
        guest.uuid: Carried(guest, done.update.guests[guest.uuid])
        for done in updates
        for guest in done.plan.to_update
        if guest.uuid in done.update.guests
    }
    return tuple(found.values())


@dataclass(frozen=True)
class Rolled:
    """What became of a roll."""

    plan: Plan
    id: str
    updates: tuple[Done, ...]
    stop: Stop | None = None
    reason: str = ""
    error: HostagentError | None = None  # that broke an update off before it began, or at its end
    untouched: tuple[str, ...] = ()  # guests of groups that were not begun
    passed_over: tuple[PassedOver, ...] = ()

    @property
    def last(self) -> tuple[Carried, ...]:
        """The last update of each guest."""
        return last_of(self.updates)

    @property
    def is_plain(self) -> bool:
        """Whether it was one update of one group, so that its own report says all."""
        return len(self.updates) == 1 and len(self.plan.groups) <= 1 and self.stop is not Stop.UNHEALTHY

    @property
    def left_some_away(self) -> bool:
        """Whether a guest was updated, but did not come back from where it had migrated to."""
        return any(one.record.outcome is Outcome.UPDATED and one.record.reason for one in self.last)

    @property
    def lower_rungs(self) -> tuple[tuple[Carried, Method], ...]:
        """The guests that were updated by a method which disturbs them more than the one planned, and that one."""
        planned = {guest.uuid: guest.method or Method.IN_PLACE for guest in self.plan.to_update}
        rungs = list(Method)
        return tuple(
            (one, planned[one.plan.uuid])
            for one in self.last
            if one.record.outcome is Outcome.UPDATED
            and one.plan.uuid in planned
            and rungs.index(one.method) > rungs.index(planned[one.plan.uuid])
        )

    @property
    def used_lower_rung(self) -> bool:
        """Whether there is any such guest."""
        return bool(self.lower_rungs)
