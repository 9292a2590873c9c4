"""What guests go through on a host of the lab: asked before and after, and written down."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.demo import machine
from tests.bench.guest_spec import GuestSpec
from tests.bench.paths import BUILD
from tests.bench.peer import Felt, Peer
from tests.bench.proof import ProofReport
from tests.lab.nested import NestedHost

RESULT = BUILD / "lab.json"
PACE = 20
WARM_UP_SECONDS = 4.0  # some twenty ticks on either side of the gap
GUESTS = (
    GuestSpec(name="web", index=1, memory_mib=256, fill_mib=64, seed=11, pace=PACE),
    GuestSpec(name="database", index=2, memory_mib=384, fill_mib=128, seed=22, pace=PACE),
    GuestSpec(name="old", index=3, memory_mib=256, machine="pc", fill_mib=64, seed=33, pace=PACE),
)


@dataclass(frozen=True)
class Trip:
    """One update of the host, as a guest saw it."""

    component: str
    guest: str
    reported_seconds: float | None  # None: it was not paused
    felt_seconds: float
    silence_seconds: float
    boot_seconds: float | None = None  # of a pause, what the host's own boot took until hostagent ran


@dataclass
class Trips:
    """Takes guests through updates; keeps what they say."""

    host: NestedHost
    peer: Peer
    done: list[Trip] = field(default_factory=list)

    def take(self, component: str, update: Callable[[], dict[str, Any]], *, paused: bool = True) -> dict[str, Any]:
        """Do the update; every guest is asked before and after, and has kept what it had."""
        before = {spec.name: self.host.proof(spec).report() for spec in GUESTS}
        self.host.disconnect()
        for spec in GUESTS:
            self.peer.reset(spec.address)
        time.sleep(WARM_UP_SECONDS)
        report = update()
        time.sleep(WARM_UP_SECONDS)
        felt = {spec.name: self.peer.felt(spec.address) for spec in GUESTS}
        guests = {guest["name"]: guest for guest in report["guests"]}
        for spec in GUESTS:
            after = self.host.proof(spec).check()
            prove(spec.name, before[spec.name], after)
            self.done.append(_trip(component, spec.name, guests.get(spec.name), felt[spec.name], report))
        assert bool(guests) == paused, guests
        return report

    def show(self) -> None:
        """A table, and the same for programs, of what there was."""
        if not self.done:
            return
        table = Table(title="What the guests went through")
        for column in ("component", "guest", "pause reported", "felt", "silence", "of it the host's boot"):
            table.add_column(column, justify="left" if column in ("component", "guest") else "right")
        for trip in self.done:
            table.add_row(
                trip.component,
                trip.guest,
                _seconds(trip.reported_seconds),
                _seconds(trip.felt_seconds),
                _seconds(trip.silence_seconds),
                _seconds(trip.boot_seconds),
            )
        console = Console(width=110, highlight=False)
        console.print(table)
        console.print(f"The lab's host runs on {machine()}.", style="dim")
        RESULT.write_text(json.dumps({"machine": machine(), "trips": [vars(trip) for trip in self.done]}, indent=1))


def _trip(component: str, name: str, guest: dict[str, Any] | None, felt: Felt, report: dict[str, Any]) -> Trip:
    return Trip(
        component,
        name,
        guest["pause_seconds"] if guest else None,
        felt.stood_still_ns / 1e9,
        felt.longest_ns / 1e9,
        report.get("boot_seconds"),
    )


def prove(name: str, before: ProofReport, after: ProofReport) -> None:
    """It is the same guest, with all that it had."""
    assert after.boot_id == before.boot_id, f"{name}: its kernel booted anew"
    assert after.ram.good and after.ram.pages > 0, f"{name}: {after.ram}"
    assert after.disk.good and after.disk.last > before.disk.last, f"{name}: {after.disk}"
    assert after.tcp.good and after.tcp.reconnects == 0, f"{name}: {after.tcp}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
