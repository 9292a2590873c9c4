"""What is done in a host of the lab by hostagent's own Python there: python -m tests.lab.inside

undone N                 handovers undone once the new QEMU has loaded the state, until N guests were; a line each
dies STEP before|after   a swap of COMPONENT whose updater is killed at that row of its journal
"""

from __future__ import annotations

import json
import sys
import time

import libvirt

from hostagent.update.journal import Outcome
from tests.bench.lab import Lab
from tests.bench.proof import NotReadyError, Proof, ProofReport
from tests.bench.soak import REASON, turning_back

BUDGET_SECONDS = 300.0
ALIVE_LIMIT = 30.0
"""Seconds in which disk, network and agent of a guest that was undone must show that they go on."""


def undone(wanted: int) -> None:
    """One batch of all guests after another."""
    lab, connection = Lab.load(), libvirt.open("qemu:///system")
    done = 0
    while done < wanted:
        proofs = {domain.name(): Proof(domain) for domain in connection.listAllDomains()}
        before = {name: proof.report() for name, proof in proofs.items()}
        with turning_back():
            update = lab.update(lab.newer, budget_seconds=BUDGET_SECONDS)
        # The daemon was away: the connection is another one.
        connection = libvirt.open("qemu:///system")
        for guest in update.guests.values():
            done += 1
            trouble = "" if guest.outcome is Outcome.ROLLED_BACK and REASON in guest.reason else guest.reason
            trouble = trouble or what_is_dead(Proof(connection.lookupByName(guest.name)), before[guest.name])
            print(
                json.dumps({"guest": guest.name, "pause": guest.measured.get("pause_seconds"), "trouble": trouble}),
                flush=True,
            )


def what_is_dead(proof: Proof, before: ProofReport) -> str:
    """What of a guest did not go on; "" if all of it did."""
    ends = time.monotonic() + ALIVE_LIMIT
    while True:
        try:
            now = proof.report()
        except (libvirt.libvirtError, NotReadyError) as error:
            dead = f"its agent: {error}"
        else:
            if now.boot_id != before.boot_id:
                return "it was rebooted"
            goes_on = {
                "disk": now.disk.last > before.disk.last,
                "connection": now.tcp.acked > before.tcp.acked and now.tcp.reconnects == 0,
            }
            dead = ", ".join(name for name, on in goes_on.items() if not on)
        if not dead or time.monotonic() > ends:
            return dead
        time.sleep(0.5)


if __name__ == "__main__":
    undone(int(sys.argv[1]))
