"""Updates of several guests at once, each looked at from all sides before, after, and a moment later."""

import os
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from hostagent.facts import QemuTree
from hostagent.update.journal import GuestRecord
from tests.bench.guest_spec import GuestSpec
from tests.bench.lab import Lab
from tests.bench.proof import ProofReport
from tests.guests.watched import Look, Watched, leavings


@dataclass(frozen=True)
class Leg:
    """One guest through one update."""

    spec: GuestSpec
    paused: bool
    to: QemuTree
    before: Look
    after: Look
    later: Look
    """Some time after; a paused guest has been resumed by then, and every loop of each has gone round."""
    console: tuple[int, ...]
    """With all that it had written by then."""
    checked: ProofReport
    """When every loop has gone round once more."""
    ran_ns: int
    """By the clock of a guest that its owner has paused, from a moment before that to `later`; 0 of others."""
    could_run_ns: int
    """Of that, by the host's clock, how long it was not paused."""
    record: GuestRecord


@dataclass(frozen=True)
class Trip:
    """Both updates."""

    legs: dict[tuple[str, int], Leg]
    left: dict[str, frozenset[str]]
    closed: dict[str, bool]


def travel(
    trip: Trip, way: str, to: QemuTree, guests: Sequence[Watched], lab: Lab, paused_by_owner: Collection[int] = ()
) -> None:
    """Take all guests through one update; `paused_by_owner` are indexes of guests."""
    paused = [guest for guest in guests if guest.spec.index in paused_by_owner]
    ran, could_run = dict.fromkeys(guests, 0), dict.fromkeys(guests, 0)
    for guest in paused:
        could_run[guest] -= time.monotonic_ns()
        ran[guest] -= guest.proof.report().monotonic_ns
        guest.domain.suspend()
        could_run[guest] += time.monotonic_ns()
    for guest in guests:
        guest.forget_gaps()
    files = leavings()
    before = [guest.look() for guest in guests]
    update = lab.update(to)
    after = [guest.look() for guest in guests]
    trip.left[way] = leavings() ^ files
    trip.closed[way] = not any(update.is_open for update in lab.updates())
    for guest in paused:
        could_run[guest] -= time.monotonic_ns()
        guest.domain.resume()
    for guest, look in zip(guests, after, strict=True):
        guest.goes_on(look.report or guest.proof.report())
        guest.wait_for_ticks()
    later, consoles = [guest.look() for guest in guests], []
    for guest, look in zip(guests, later, strict=True):
        assert look.report is not None
        if guest in paused:
            could_run[guest] += time.monotonic_ns()
            ran[guest] += look.report.monotonic_ns
        consoles.append(guest.whole_console(look.report))
        guest.goes_on(look.report)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # reading 4 GiB takes a guest some seconds
        checked = pool.map(lambda guest: guest.proof.check(), guests)
    for guest, *seen in zip(
        guests, before, after, later, consoles, checked, ran.values(), could_run.values(), strict=True
    ):
        trip.legs[way, guest.spec.index] = Leg(guest.spec, guest in paused, to, *seen, update.guests[guest.spec.uuid])


def print_figures(trip: Trip) -> None:
    print(f"\n{'guest':26} way   pause ms  felt ms  longest gap ms  p99 ms  moved KiB  clock ms  lost")
    for (way, _), leg in trip.legs.items():
        felt, measured = leg.later.felt, leg.record.measured
        print(
            f"{leg.spec.name:26} {way:5}"
            + (f"{measured['pause_seconds'] * 1000:9.1f}" if not leg.paused else f"{'paused':>9}")
            + f"{felt.stood_still_ns / 1e6:9.1f} {felt.longest_ns / 1e6:15.1f} {felt.p99_ns / 1e6:7.1f}"
            + f"{measured['moved_bytes'] / 1024:11.0f} {-felt.wall_behind_ns / 1e6:9.2f} {felt.lost:5}"
        )
