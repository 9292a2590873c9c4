"""Carrying out plans by groups of their guests, and telling what became of them. For every verb that updates guests."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from hostagent import wiring
from hostagent.cli.common import Call, Change, new_update_id
from hostagent.cli.progress import Progress
from hostagent.errors import ExitCode, Failed, HostagentError
from hostagent.facts import Host
from hostagent.plan import Plan
from hostagent.planning.guest_policy import Policies
from hostagent.planning.rolling import place_of
from hostagent.update.health import Gate
from hostagent.update.host import update_qemu
from hostagent.update.journal import Entry, Kind, UpdateRecord
from hostagent.update.report import ROLL_STOPPED
from hostagent.update.roll import Doors, roll
from hostagent.update.rolled import Rolled, Stop
from hostagent.update.saga import Teller


@dataclass(frozen=True)
class Course:
    """How a roll goes on from one group to the next."""

    policies: Policies
    replan: Callable[[Host, Sequence[str]], Sequence[Plan]]  # for guests of these names, all of which the host has
    wait: float | None = None  # seconds; None: what the settings say


def carry_out(call: Call, work: Change, host: Host, plan: Plan, course: Course) -> Rolled | int:
    """The whole plan; an exit code when a signal ended its first rehearsal."""
    names = {guest.uuid: guest.name for guest in plan.to_update}
    try:
        with Progress(call.out, names, stopping=work.signals.cancelled, live=True) as tell:
            going = _Going(call, work, plan, course, host, tell)
            wait = call.config.roll.wait_seconds if course.wait is None else course.wait
            return roll(going.doors(gate_of(call, work, host, plan, course)), plan, roll_id=going.id, wait_seconds=wait)
    except Failed as failed:  # in the rehearsal: no guest was touched
        if work.signals.first is None:
            raise
        call.out.error(failed)
        return ExitCode.SIGNAL + work.signals.first


def carry_out_all(call: Call, work: Change, host: Host, plans: Sequence[Plan], course: Course) -> list[Rolled] | int:
    """Each plan that has something to do, up to one that was stopped; an exit code when a signal ended a rehearsal."""
    done: list[Rolled] = []
    for plan in plans:
        if plan.to_update and not work.signals.cancelled():
            rolled = carry_out(call, work, host, plan, course)
            if isinstance(rolled, int):
                return rolled
            done.append(rolled)
            if any(one.update.is_open for one in rolled.updates) or (rolled.stop and not rolled.is_plain):
                break
    return done


def gate_of(call: Call, work: Change, host: Host, plan: Plan, course: Course) -> Gate:
    """The health gate between its groups."""
    chosen = {guest.uuid for guest in plan.to_update}
    return Gate(
        wiring.ports_of(call.config, work.session.journal),
        {guest.name: place_of(guest, course.policies) for guest in host.guests if guest.uuid in chosen},
        call.config.health,
        call.config.roll.settle_seconds,
        work.signals.cancelled,
        time.sleep,
    )


@dataclass
class _Going:
    """A roll on this host."""

    call: Call
    work: Change
    plan: Plan
    course: Course
    host: Host  # as it was when something was last planned
    tell: Teller
    id: str = field(default_factory=new_update_id)

    def doors(self, gate: Gate) -> Doors:
        return Doors(
            carry=self._carry,
            replan=self._replan,
            gate=gate,
            note=self._note,
            tell=self.tell,
            cancelled=self.work.signals.cancelled,
            pause=time.sleep,
            monotonic=time.monotonic,
        )

    def _carry(self, part: Plan) -> UpdateRecord:
        with self.work.session.guarded() as ports:
            return update_qemu(
                *(ports, self.host, part),
                update_id=new_update_id(),
                tell=self.tell,
                cancelled=self.work.signals.cancelled,
            )

    def _replan(self, names: Sequence[str]) -> Plan:
        self.host = self.call.host_and_peers()
        there = {guest.name for guest in self.host.guests}
        known = [name for name in names if name in there]
        made = self.course.replan(self.host, known) if known else ()
        nothing = replace(self.plan, guests=(), blockers=(), groups=())
        return next((plan for plan in made if plan.to == self.plan.to), nothing)

    def _note(self, update: str, _stop: Stop, reason: str) -> None:
        with suppress(HostagentError):  # it decides nothing
            self.work.session.journal.append(update, Entry(Kind.NOTED, body={ROLL_STOPPED: reason}))
