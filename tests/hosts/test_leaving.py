"""Something is swapped for the whole host while guests run: one is held, and those that cannot be leave meanwhile.

Two of one availability set, in different update domains; one whose RAM is in no file that a restore could be given; one
whose owner allows nothing but reboots.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

import pytest

from hostagent import wiring
from hostagent.libvirt_files.hook import HOOK
from hostagent.policy import Allowed, PolicyPart
from tests.bench.command import HOSTAGENT, hostagent
from tests.bench.guest_spec import GuestSpec, Ram
from tests.bench.host import RAM
from tests.bench.lab import CONFIG, Lab
from tests.bench.link import A, B, Side
from tests.bench.peer import Peer
from tests.bench.proof import ProofReport
from tests.bench.two_hosts import TwoHosts
from tests.crash.real_world import LIMIT, guards, wait_for
from tests.hosts.census import Census
from tests.hosts.guests import BOOT_LIMIT, Standing, Travelling, guests, is_well
from tests.hosts.peers import putting

HELD = GuestSpec("held", 1, 192, fill_mib=16, seed=61)
SAME_SET = GuestSpec("same set", 2, 192, fill_mib=16, seed=62)
PRIVATE = GuestSpec("private", 3, 192, ram=Ram.MEMFD, fill_mib=16, seed=63)
RESTARTED = GuestSpec("restarted", 4, 192, fill_mib=16, seed=64)
POLICIES = {
    HELD: PolicyPart(availability_set="db", update_domain="1"),
    SAME_SET: PolicyPart(availability_set="db", update_domain="2"),
    PRIVATE: PolicyPart(),
    RESTARTED: PolicyPart(allow=frozenset((Allowed.REBOOT,))),
}
LEAVES = (SAME_SET, PRIVATE)
KEEPS = (HELD, *LEAVES)
WAYS = {HELD.name: "in-place", SAME_SET.name: "live-migrate", PRIVATE.name: "live-migrate", RESTARTED.name: "reboot"}
AWAY = {HELD: [], SAME_SET: [B], PRIVATE: [B], RESTARTED: []}
UPDATE = ("update", "firmware", "--budget", "2m", "--yes", "--json")

FOLDER = Path("/var/lib/firmware")
NO_QEMU = "! pgrep --ns $$ --nslist pid -x qemu-system-x86 >/dev/null || { echo 'a guest runs' >&2; exit 1; }"
SCRIPTS = {
    "apply": f"""\
{NO_QEMU}
[ ! -e {FOLDER}/hangs ] || {{ touch {FOLDER}/applying; sleep 60; }}
[ ! -e {FOLDER}/broken ] || {{ echo 'does not load' >&2; exit 1; }}
echo new >{FOLDER}/build""",
    "verify": f"grep -q new {FOLDER}/build",
    "roll_back": f"{NO_QEMU}\necho old >{FOLDER}/build",
}
DROP_IN = Path(f"{CONFIG}.d/firmware.toml")
SETTINGS = '[[component]]\nname = "firmware"\n' + "".join(f'{name} = ["{FOLDER / name}"]\n' for name in SCRIPTS)


@dataclass(frozen=True)
class Trip:
    """What a swap has made of the guests."""

    code: int
    guests: dict[str, dict[str, object]]  # of its report, by name
    reason: str


@dataclass
class World:
    """Both hosts, and the guests of the first one."""

    hosts: TwoHosts
    peer: Peer
    guests: dict[GuestSpec, Travelling]

    @property
    def build(self) -> str:
        return (FOLDER / "build").read_text().strip()

    def reset(self, *how: str) -> None:
        """The old build is in place, and what is swapped in has these faults."""
        for name in ("broken", "hangs", "applying"):
            (FOLDER / name).unlink(missing_ok=True)
        for name in how:
            (FOLDER / name).touch()
        (FOLDER / "build").write_text("old\n")

    def look(self) -> dict[GuestSpec, tuple[ProofReport, int]]:
        """Each as it says itself, and how often it has connected."""
        found = {}
        for spec, guest in self.guests.items():
            with guest.proof(A) as proof:
                found[spec] = (proof.wait_booted(BOOT_LIMIT), self.peer.connections(spec.address))
            self.peer.reset(spec.address)
        return found

    def check(self, before: dict[GuestSpec, tuple[ProofReport, int]], census: Census) -> None:
        """All are at home, whole, alone; those that kept their memory have lost nothing, not even a connection."""
        assert census.twice == set()
        assert census.looks > 20
        away = {spec.uuid for spec in LEAVES}
        assert census.seen[B] == away
        for spec, guest in self.guests.items():
            with guest.proof(A) as proof:
                proof.wait_booted(BOOT_LIMIT)
            is_well(guest, A)
            with guest.proof(A) as proof:
                now, (was, connected) = proof.report(), before[spec]
            kept = spec in KEEPS
            assert (now.boot_id == was.boot_id) is kept, spec.name
            assert self.peer.connections(spec.address) == connected + (not kept)
            assert now.disk.last > was.disk.last
        assert not list(Path("/var/lib/hostagent/held").glob("*"))


@pytest.fixture(scope="module")
def world(both: TwoHosts, peer: Peer, lab: Lab, standing: Standing) -> Iterator[World]:
    standing.end()  # its address is one of theirs
    FOLDER.mkdir()
    for name, words in SCRIPTS.items():
        (FOLDER / name).write_text(f"#!/bin/sh\n{words}\n")
        (FOLDER / name).chmod(0o755)
    lab.install_hook()
    both.a.restart_libvirtd()
    try:
        with putting() as put, guests(both, *POLICIES) as booted:
            put()
            DROP_IN.write_text(SETTINGS)
            api = wiring.libvirt_of(lab.config)
            for spec, own in POLICIES.items():
                api.put_policy(spec.uuid, own)
            api.disconnect()
            yield World(both, peer, {guest.spec: guest for guest in booted})
    finally:
        DROP_IN.unlink(missing_ok=True)
        rmtree(FOLDER)
        rmtree(HOOK.parent)
        both.a.restart_libvirtd()


def trip_of(code: int, said: str) -> Trip:
    (update,) = json.loads(said)["updates"]
    for guest in update["guests"]:
        print(guest["name"], guest["method"], guest["outcome"], guest["pause_seconds"], guest["reason"])
    return Trip(code, {guest["name"]: guest for guest in update["guests"]}, update["reason"])


def swap(world: World) -> Trip:
    run = hostagent(*UPDATE)
    print(run.stderr)
    return trip_of(run.returncode, run.stdout)


def outcomes(trip: Trip) -> set[object]:
    return {guest["outcome"] for guest in trip.guests.values()}


def test_the_plan_names_who_leaves_and_why(world: World) -> None:
    world.reset()
    plan = hostagent("plan", "firmware", "--budget", "2m")
    print(plan.stdout)
    assert plan.returncode == 0
    said = " ".join(plan.stdout.split())
    leaves = "cannot be held with the others, and leaves meanwhile by"
    assert (
        f"{SAME_SET.name} {leaves} live-migrate to host-b: expected only guests that may be disturbed together, for a"
        f" swap that holds all of them, found {HELD.name}, of availability set db and another update domain" in said
    )
    assert f"{PRIVATE.name} {leaves} live-migrate to host-b: expected RAM in shared files" in said
    assert f"{RESTARTED.name} {leaves} reboot: expected a policy that allows in-place" in said


def test_it_is_swapped_with_one_held_two_away_and_one_shut_down(world: World, lab: Lab) -> None:
    world.reset()
    before = world.look()
    with Census(world.hosts) as census:
        trip = swap(world)
    assert (trip.code, trip.reason, outcomes(trip), world.build) == (0, "", {"updated"}, "new")
    assert {name: guest["method"] for name, guest in trip.guests.items()} == WAYS
    world.check(before, census)
    for spec in KEEPS:
        measured = lab.updates()[-1].guests[spec.uuid].measured
        pauses = measured.get("pauses", [measured["pause_seconds"]])  # there and back
        assert trip.guests[spec.name]["pause_seconds"] == max(pauses)
        felt = world.peer.felt(spec.address).stood_still_ns / 1e9
        print(f"{spec.name} stood still {felt:.2f} s by the guest's clock, {pauses} s by ours")
        assert felt <= sum(pauses) + 0.5  # on a busy machine the largest step may hold both


def test_one_that_does_not_load_brings_everybody_home(world: World) -> None:
    world.reset("broken")
    before = world.look()
    with Census(world.hosts) as census:
        trip = swap(world)
    assert (trip.code, outcomes(trip), world.build) == (4, {"rolled-back"}, "old")
    assert "does not load" in trip.reason
    world.check(before, census)


def test_the_updater_is_killed_with_its_guard_while_they_are_away(world: World) -> None:
    """They stay where they are until somebody has it recovered."""
    world.reset("hangs")
    before = world.look()
    with Census(world.hosts) as census:
        with subprocess.Popen([str(HOSTAGENT), *UPDATE], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as updater:
            applying = FOLDER / "applying"
            wait_for(
                lambda: applying.exists() or updater.poll() is not None, "what is swapped to be applied", 2 * LIMIT
            )
            assert updater.poll() is None, updater.communicate()
            assert where(world) == AWAY
            for guard in guards():
                guard.kill()
            os.kill(updater.pid, signal.SIGKILL)
            updater.communicate()
        (FOLDER / "hangs").unlink()
        assert where(world) == AWAY
        assert hostagent("recover").returncode == 0
    last = json.loads(hostagent("history", "--json").stdout)["updates"][-1]
    print(last["outcome"], last["reason"])
    assert (last["outcome"], world.build) == ("rolled-back", "old")
    assert {guest["outcome"] for guest in last["guests"]} == {"rolled-back"}
    world.check(before, census)


def where(world: World) -> dict[GuestSpec, list[Side]]:
    return {spec: guest.runs_on() for spec, guest in world.guests.items()}


@contextmanager
def hardly_any_room_for_ram() -> Iterator[None]:
    """Beside the RAM files that there are."""
    used = sum(path.stat().st_size for path in RAM.rglob("*") if path.is_file())
    was = os.statvfs(RAM)
    subprocess.run(["mount", "-o", f"remount,size={used + (64 << 20)}", str(RAM)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", f"remount,size={was.f_blocks * was.f_frsize}", str(RAM)], check=True)


def test_one_too_large_for_a_copy_migrates(world: World, lab: Lab) -> None:
    """It runs on the new QEMU then, which the other host has not: it cannot leave again."""
    with world.guests[PRIVATE].proof(A) as proof:
        was = proof.report()
    with hardly_any_room_for_ram():
        run = hostagent("update", "qemu", "--to", "10.0", "--guest", PRIVATE.name, "--yes")
    print(run.stdout)
    assert run.returncode == 0
    assert "live-migrate to host-b" in run.stdout
    assert "1 guest updated to QEMU 10.0.2 by live-migrate." in run.stdout
    is_well(world.guests[PRIVATE], A, emulator=lab.newer.emulator)
    with world.guests[PRIVATE].proof(A) as proof:
        assert proof.report().boot_id == was.boot_id
