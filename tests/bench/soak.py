"""The undo after a completed load, over and over, under disk and network load: python -m tests.bench.soak [N]

A loaded new QEMU shares the rings in the guest's RAM with the old one; this shows whether the old one goes on whole
when the new one is ended. Half of the repetitions turn back from the newer QEMU, half from the older. Prints a table,
leaves build/soak.json, and exits 1 if a guest did not come back right.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest import mock

import libvirt

from hostagent.errors import Failed
from hostagent.facts import QemuTree
from hostagent.update import batch
from hostagent.update.handover import SWAP
from hostagent.update.journal import Outcome
from hostagent.update.swap import GuestSwap
from tests.bench.guest_spec import HOST_ADDRESS, GuestSpec
from tests.bench.host import Host
from tests.bench.lab import Lab
from tests.bench.paths import BUILD
from tests.bench.peer import Peer
from tests.bench.proof import NotReadyError, Proof, ProofReport

REPORT = BUILD / "soak.json"
GUEST = GuestSpec(name="soak", vcpus=2, fill_mib=128)
ALIVE_LIMIT = 120.0
"""Seconds in which disk, network and agent of a guest that was undone must show that they go on."""
FLOOD_INTERVAL = 0.001
FLOOD_PORT = 7009
"""Nobody listens there: each datagram makes an interrupt, and an answer."""
REASON = "turned back by the soak"
MILLISECOND = 1_000_000


@dataclass(frozen=True)
class Spread:
    median: float
    p95: float
    max: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        ordered = sorted(values)
        at = min(len(ordered) - 1, int(len(ordered) * 0.95))
        return cls(*(round(value, 1) for value in (statistics.median(ordered), ordered[at], ordered[-1])))


@contextmanager
def turning_back() -> Iterator[None]:
    """Handovers that fail once the new QEMU has loaded the state."""

    def fail(swap: GuestSwap) -> None:
        raise Failed(f"{swap.name}: {REASON}")

    table = tuple(replace(step, do=fail) if step.name == "record" else step for step in SWAP)
    with mock.patch.object(batch, "SWAP", table):
        yield


@contextmanager
def flood(address: str, interval: float = FLOOD_INTERVAL) -> Iterator[None]:
    """A datagram for the guest every so many seconds: a thousand a second."""
    done = threading.Event()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
            while not done.wait(interval):
                channel.sendto(bytes(1000), (address, FLOOD_PORT))

    thread = threading.Thread(target=send, name="flood", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@dataclass
class Soak:
    """One guest, undone until it breaks or the count is reached."""

    host: Host
    peer: Peer
    lab: Lab
    boot_id: str = ""
    bad: int = 0
    done: int = 0

    def boot(self) -> None:
        self.boot_id = Proof(self.host.boot(GUEST)).wait_booted().boot_id

    def proof(self) -> Proof:
        return Proof(self.host.connection.lookupByUUIDString(GUEST.uuid))

    def undo_once(self, to: QemuTree) -> float:
        """How long the guest stood still, ms; counts it if the guest is not right after it."""
        self.peer.reset(GUEST.address)
        update = self.lab.update(to, [GUEST.name])
        record = update.guests[GUEST.uuid]
        trouble = ""
        if record.outcome is not Outcome.ROLLED_BACK or REASON not in record.reason:
            trouble = f"{record.outcome}: {record.reason}"
        trouble = trouble or self.what_is_dead()
        if not trouble:
            self.peer.wait_for_ticks(GUEST.address)
        felt = self.peer.felt(GUEST.address).stood_still_ns / MILLISECOND
        self.done += 1
        if trouble:
            self.bad += 1
            print(f"repetition {self.done}: {trouble}", flush=True)
            self.host.remove_guest(GUEST)
            self.boot()
        return felt

    def what_is_dead(self) -> str:
        """Requests complete on every device, all pages and records are right; "" if so."""
        ends = time.monotonic() + ALIVE_LIMIT
        try:
            proof = self.proof()
            before, ticks = proof.report(), self.peer.felt(GUEST.address).ticks
            while True:
                dead = self._dead(before, proof.report(), ticks)
                if not dead or time.monotonic() > ends:
                    break
            checked = proof.check()
        except (libvirt.libvirtError, NotReadyError) as error:
            return f"its agent: {error}"
        if dead:
            return f"no progress: {', '.join(dead)}"
        if checked.boot_id != self.boot_id:
            return "it was rebooted"
        return "" if checked.good else f"damaged: {checked}"

    def _dead(self, before: ProofReport, now: ProofReport, ticks: int) -> list[str]:
        alive = {
            "disk": now.disk.last > before.disk.last,
            "connection": now.tcp.acked > before.tcp.acked,
            "ticks": self.peer.felt(GUEST.address).ticks > ticks,
            "console": now.console_lines > before.console_lines,
        }
        return [name for name, goes_on in alive.items() if not goes_on]


def machine() -> dict[str, object]:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return {
        "processor": model,
        "processors": os.cpu_count(),
        "kernel": platform.release(),
        "kvm": Path("/dev/kvm").exists(),
        "vhost_net": Path("/dev/vhost-net").exists(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak", description=__doc__)
    parser.add_argument("repetitions", type=int, nargs="?", default=200)
    repetitions = parser.parse_args().repetitions
    felt: list[float] = []
    with Host() as host, Peer(HOST_ADDRESS) as peer, flood(GUEST.address):
        soak = Soak(host, peer, Lab.set_up())
        soak.boot()
        halves = ((soak.lab.newer, repetitions // 2), (soak.lab.system, repetitions - repetitions // 2))
        for number, (to, count) in enumerate(halves):
            if number:
                soak.lab.update(soak.lab.newer, [GUEST.name])
            with turning_back():
                for _ in range(count):
                    felt.append(soak.undo_once(to))
                    print(f"{soak.done}/{repetitions} to {to.version}: {felt[-1]:.1f} ms, bad {soak.bad}", flush=True)
        host.remove_guest(GUEST)
    spread = Spread.of(felt)
    report = {
        "repetitions": repetitions,
        "bad": soak.bad,
        "stood_still_ms": asdict(spread),
        "machine": machine(),
    }
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nundone after a completed load: {repetitions} times, bad: {soak.bad}")
    print(f"{'ms':<24}{'median':>10}{'p95':>10}{'max':>10}")
    print(f"{'guest stood still':<24}{spread.median:>10}{spread.p95:>10}{spread.max:>10}")
    return int(soak.bad > 0)


if __name__ == "__main__":
    sys.exit(main())
