"""The bench's two hosts: a guest goes from one to the other and back by libvirt alone, and what disturbs them does."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import libvirt
import pytest

from tests.bench.link import A, B, Side
from tests.bench.peer import Peer
from tests.bench.proof import Proof, ProofReport
from tests.bench.two_hosts import PLAIN_URIS, URIS, TwoHosts
from tests.hosts.guests import LIVE, TRAVELLER, Standing

ANSWER_LIMIT = 10
"""Seconds."""


def goes_on(proof: Proof, before: ProofReport) -> bool:
    """It writes, and is heard."""
    now = proof.report()
    return now.disk.last > before.disk.last and now.tcp.acked > before.tcp.acked


@pytest.mark.parametrize("flags", [LIVE | libvirt.VIR_MIGRATE_TLS, LIVE], ids=["tls", "plain"])
def test_a_guest_goes_there_and_back(hosts: TwoHosts, standing: Standing, peer: Peer, flags: int) -> None:
    with standing.guest(TRAVELLER) as travelling:
        connected = peer.connections(TRAVELLER.address)
        with travelling.proof(A) as proof:
            was = proof.report()
        for source, target in ((A, B), (B, A)):
            peer.reset(TRAVELLER.address)
            travelling.migrate(source, target, flags)
            assert travelling.runs_on() == [target]
            assert not travelling.is_known_on(source)
            with travelling.proof(target) as proof:
                travelling.wait_until(partial(goes_on, proof, proof.report()))
                now = proof.check()
            assert now.good
            assert (now.boot_id, now.ram.pages) == (was.boot_id, TRAVELLER.fill_mib * 256)
            assert now.disk.last > was.disk.last
            assert peer.connections(TRAVELLER.address) == connected
            felt = peer.felt(TRAVELLER.address)
            print(f"{source.name} to {target.name}: stood still {felt.stood_still_ns / 1e6:.0f} ms, lost {felt.lost}")
            was = now


@pytest.mark.parametrize("uris", [URIS, PLAIN_URIS], ids=["tls", "plain"])
def test_each_reaches_the_other(hosts: TwoHosts, uris: dict[Side, str]) -> None:
    names = {A: "hostagent-bench", B: B.name}
    for side in (A, B):
        ask = ["virsh", "--connect", uris[side], "hostname"]
        asked = hosts.b.run(ask) if side is A else subprocess.run(ask, check=False, capture_output=True, text=True)
        assert asked.stdout.strip() == names[side], asked.stderr


def test_what_is_cut_is_dropped_and_nobody_is_told(hosts: TwoHosts) -> None:
    """A connection that was open before it goes on after it, as if nothing had been."""
    opened = libvirt.open(URIS[B])
    with ThreadPoolExecutor() as pool:
        hosts.link.cut()
        answer = pool.submit(opened.getHostname)
        with pytest.raises(TimeoutError):
            answer.result(2)
        hosts.link.mend()
        assert answer.result(ANSWER_LIMIT) == B.name
    opened.close()


def test_a_power_cut_ends_all_that_runs_there(hosts: TwoHosts, standing: Standing) -> None:
    """What was written on its disk is there once it is on again; its guests are not."""
    with standing.guest(TRAVELLER) as travelling:
        travelling.migrate(A, B)
        ended = hosts.b.pids()
        assert len(ended) > 3
        hosts.b.kill()
        assert not [pid for pid in ended if Path(f"/proc/{pid}").exists()]
        hosts.b.power_on()
        assert travelling.is_known_on(B)
        assert travelling.runs_on() == []
