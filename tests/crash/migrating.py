"""Guests that migrate on the fake, whatever goes wrong: what is looked for, and the sweeps that look everywhere."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import Protocol

from hostagent.hypervisor import RunState
from hostagent.hypervisor.fake_world import FaultKind
from hostagent.update.journal import Outcome, UpdateRecord
from hostagent.update.report import GuestReport, report_of
from tests.crash import shapes
from tests.crash.rig import FILE, JOURNAL, PEER, UPDATE_ID, WORLD, Points, Rig, Scenario, kill_me, rig
from tests.crash.sweep import Share, sweep

ANYWHERE = (JOURNAL, FILE, WORLD)

Found = Iterator[tuple[str, Sequence[str]]]


class Wrong(Protocol):
    """Everything that is not as promised. restarted: guests of this host have ended with it."""

    def __call__(self, host: Rig, *, restarted: bool = False) -> list[str]: ...


def reports(host: Rig) -> dict[str, GuestReport]:
    """What became of each guest, as it is told."""
    found = next((update for update in host.updates() if update.id == UPDATE_ID), None)
    return {guest.name: guest for guest in report_of(found).guests} if found else {}


def wrong_of_guests(host: Rig, *, restarted: bool = False) -> list[str]:
    """Everything that is not as promised. restarted: guests of this host have ended with it."""
    return list(_wrong(host, restarted))


def _wrong(host: Rig, restarted: bool) -> Iterator[str]:
    yield from host.host.violations()
    told = reports(host)
    for update in host.updates():
        yield from _open_for_a_reason(update)
    with host.host.world.look() as state:
        peer = state.peers[PEER]
        for name, uuid in host.uuids.items():
            guest, living = state.guests[uuid], state.living(uuid)
            outcome = told[name].outcome if name in told else Outcome.ROLLED_BACK
            runs = [one for one in living if one.state is RunState.RUNNING]
            where = runs[0].host if runs else None
            if restarted and not runs and (outcome is not Outcome.UPDATED or told[name].runs_on == ""):
                pass
            elif outcome in (Outcome.UPDATED, Outcome.ROLLED_BACK):
                if len(runs) != 1:
                    yield f"{name} is {outcome}, and runs in {[one.pid for one in runs]}"
                    continue
                stays = outcome is Outcome.UPDATED and (not host.scenario.comes_back or bool(told[name].reason))
                if where not in ((PEER,) if stays and told[name].runs_on else ("",)):
                    yield f"{name} is {outcome} ({told[name].reason}), and runs on {where!r}"
                emulator = shapes.NEW.emulator if outcome is Outcome.UPDATED and not where else shapes.OLD.emulator
                if host.host.world.argv(runs[0])[0] != emulator:
                    yield f"{name} is {outcome}, and run by {host.host.world.argv(runs[0])[0]}"
                if told and outcome is Outcome.UPDATED and told[name].runs_on != where:
                    yield f"{name} is said to run on {told[name].runs_on!r}, and runs on {where!r}"
                left = len(living) - 1
                if left and "could not be asked" not in told[name].reason:
                    yield f"{name} is {outcome}, and {left} copies of it are left"
                if where == "" and (not guest.persistent or not guest.autostart):
                    yield f"{name} runs here, and is defined {guest.persistent}, starts {guest.autostart}"
                if where and not (uuid in peer.defined and (peer.views[uuid].autostart or told[name].reason)):
                    yield f"{name} runs on the peer as {peer.views[uuid]}"
            elif outcome is Outcome.LOST:
                yield from (f"{name} is lost, and {one.pid} is there" for one in living)
            elif outcome is Outcome.NEEDS_OPERATOR:
                if "hostagent recover" not in told[name].reason:
                    yield f"{name} waits for a person who is told nothing: {told[name].reason}"
            elif runs:
                yield f"{name} is {outcome}, and runs"
    if left_files := [path.name for path in (host.root / "images").iterdir()]:
        yield f"left over: {left_files}"


def _open_for_a_reason(update: UpdateRecord) -> Iterator[str]:
    waiting = any(guest.outcome is Outcome.NEEDS_OPERATOR for guest in update.guests.values())
    if update.is_open != waiting:
        yield f"update {update.id} is {'open' if update.is_open else 'closed'}, and somebody waits: {waiting}"


def fault_at_each_moment(scenario: Scenario, fault: FaultKind, times: int, wrong: Wrong) -> None:
    """It comes up at every change of the world, and is over when recovery comes."""

    def trials(share: Share) -> Found:
        for number in range(1, 400):
            if not share.has(number):
                continue
            with rig(scenario) as host:
                points = Points(lambda host=host: host.host.fault(fault, times=times), number, (WORLD,))
                raised = host.update(points)
                if len(points.labels) < number:
                    return
                told = reports(host).get("web1")
                armed = ["the guard waits for it still"] * (host.guard.until is not None)
                yield f"at {number}", [raised] * bool(raised) + armed + wrong(host)
                if told and told.outcome is Outcome.NEEDS_OPERATOR:
                    host.host.no_more_faults()
                    with host.host.world.change() as state:
                        state.peers[PEER].alive = True
                    raised = host.recover()
                    after = reports(host)["web1"].outcome
                    ends = [f"still {after}"] * (after is Outcome.NEEDS_OPERATOR)
                    yield f"recovered after {number}", [raised] * bool(raised) + wrong(host) + ends

    sweep(trials)


def killed_for_real_at_every_journal_write(scenario: Scenario, wrong: Wrong) -> None:
    """A process of its own, by SIGKILL, and the next one recovers."""

    def trials(share: Share) -> Found:
        with rig(scenario) as host:
            counted = Points(only=(JOURNAL,))
            host.update(counted)
        for number, label in share.of(list(enumerate(counted.labels, start=1))):
            with rig(scenario) as host:
                if host.update_killed(Points(kill_me, number, (JOURNAL,))) != -signal.SIGKILL:
                    yield label, ["it was not killed"]
                    continue
                ended = host.recover_killed(Points(only=()))
                yield label, [*([f"exit {ended}"] if ended else []), *wrong(host)]

    sweep(trials)


def killed_anywhere(scenario: Scenario, fault: FaultKind | None, wrong: Wrong) -> None:
    """Around every journal write, before every file operation, after every change of the world."""

    def trials(share: Share) -> Found:
        with rig(scenario) as host:
            if fault is not None:
                host.host.fault(fault)
            for moment in share.of(host.moments(host.update, ANYWHERE)):
                host.go_back(moment)
                raised = host.recover()
                yield moment.label, [*([raised] if raised else []), *wrong(host)]

    sweep(trials)


def recovery_killed_as_well(scenario: Scenario, wrong: Wrong, second: tuple[str, ...]) -> None:
    """Dies at every journal write, and what recovers that does at each of its own points."""

    def trials(share: Share) -> Found:
        with rig(scenario) as host:
            for moment in share.of(host.moments(host.update, (JOURNAL,))):
                host.go_back(moment)
                for again in host.moments(host.recover, second):
                    host.go_back(again)
                    raised = host.recover()
                    yield f"{moment.label}, {again.label}", [*([raised] if raised else []), *wrong(host)]

    sweep(trials)


def started_anew_at_each_moment(scenario: Scenario, wrong: Wrong) -> None:
    """The host: its own guests are gone then; one that has left goes on, or waits for this host to have it go on."""

    def trials(share: Share) -> Found:
        with rig(scenario) as host:
            for moment in share.of(host.moments(host.update, (JOURNAL, WORLD))):
                host.go_back(moment)
                with host.host.world.change() as state:
                    host.host.world.end_kernel(state, leaps=False)
                raised = host.boot()
                host.host.somebody_starts_daemon()
                raised = raised or host.recover()
                yield moment.label, [*([raised] if raised else []), *wrong(host, restarted=True)]

    sweep(trials)
