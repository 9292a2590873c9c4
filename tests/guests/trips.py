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

SETTLE_SECONDS = 1.5
"""Enough for every loop of the guest to have gone round, and for a second of ticks."""


@dataclass(frozen=True)
class Leg:
    """One guest through one update."""

    spec: GuestSpec
    paused: bool
    to: QemuTree
    before: Look
    after: Look
    later: Look
    """Some time after; a paused guest has been resumed by then."""
    checked: ProofReport
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
    for guest in paused:
        guest.domain.suspend()
    for guest in guests:
        guest.forget_gaps()
    files = leavings()
    before = [guest.look() for guest in guests]
    update = lab.update(to)
    after = [guest.look() for guest in guests]
    trip.left[way] = leavings() ^ files
    trip.closed[way] = not any(update.is_open for update in lab.updates())
    for guest in paused:
        guest.domain.resume()
    time.sleep(SETTLE_SECONDS)
    later = [guest.look() for guest in guests]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # reading 4 GiB takes a guest some seconds
        checked = pool.map(lambda guest: guest.proof.check(), guests)
    for guest, *looks in zip(guests, before, after, later, checked, strict=True):
        trip.legs[way, guest.spec.index] = Leg(guest.spec, guest in paused, to, *looks, update.guests[guest.spec.uuid])


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
