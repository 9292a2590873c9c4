"""Two availability sets with three update domains each, on one host: an update rolls over them.

When a guest stood still is known from its own ticks, as they arrived (peer.py). Each is made to stand still for a while
longer than it would, so that nothing else of an emulated guest on a busy machine can be taken for it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import pytest

from hostagent import wiring
from hostagent.config import HealthSettings
from hostagent.plan import Method
from hostagent.policy import Allowed, PolicyPart
from hostagent.update.journal import Outcome
from hostagent.update.rolled import Rolled, Stop
from tests.bench.guest_spec import GuestSpec
from tests.bench.host import Host
from tests.bench.lab import Lab
from tests.bench.peer import Absence, Peer
from tests.guests.watched import LIMIT, Watched, is_of

SETS, DOMAINS = ("db", "web"), ("1", "2", "10")
GUESTS = {
    f"{name}{domain}": GuestSpec(f"{name}{domain}", number, 160, disk=False, fill_mib=16, seed=number, pace=2)
    for number, (name, domain) in enumerate(((name, domain) for name in SETS for domain in DOMAINS), start=1)
}
GROUPS = tuple(tuple(f"{name}{domain}" for name in SETS) for domain in DOMAINS)
LONGER_SECONDS = 0.4
AT_LEAST_NS = 300_000_000
CHECK_SECONDS = 10.0
HOSTAGENT = Path(sys.executable).with_name("hostagent")


@dataclass(frozen=True)
class Way:
    """A method, and the step during which a guest does not run."""

    method: Method
    step: str
    at_least_ns: int


HANDED_OVER = Way(Method.IN_PLACE, "record", AT_LEAST_NS)
REBOOTED = Way(Method.REBOOT, "", 2_000_000_000)  # an emulated guest boots for longer


@dataclass
class World:
    """The host, its guests, and what became of them."""

    host: Host
    peer: Peer
    lab: Lab
    guests: dict[str, Watched]
    said: list[str] = field(default_factory=list)

    def roll(self, way: Way, to: str, **more: object) -> Rolled:
        """A roll to that QEMU, with every guest standing still for a while longer."""
        self.said.clear()
        for guest in self.guests.values():
            guest.forget_gaps()

        def tell(key: str, step: str, doing: str) -> None:
            if step == "roll":
                self.said.append(doing)
            if step == way.step and doing == "begun":
                time.sleep(LONGER_SECONDS)

        tree = self.lab.newer if to == "newer" else self.lab.system
        rolled = Lab(self.lab.config.model_copy(update=more)).roll(tree, methods=[way.method], tell=tell)
        for guest in self.guests.values():
            guest.wait_for_ticks()
        return rolled

    def absences(self, way: Way) -> dict[str, tuple[Absence, ...]]:
        return {name: self.peer.absences(guest.spec.address, way.at_least_ns) for name, guest in self.guests.items()}

    def on(self, names: tuple[str, ...], emulator: str) -> bool:
        """Whether all of these run on that QEMU, and nobody else does."""
        looks = {name: guest.look().exe for name, guest in self.guests.items()}
        return {name for name, exe in looks.items() if is_of(exe, emulator)} == set(names)

    def check(self) -> None:
        """Nothing of any guest was lost."""
        for guest in self.guests.values():
            assert guest.proof.check().good
        assert not any(update.is_open for update in self.lab.updates())


@pytest.fixture(scope="module")
def world(host: Host, peer: Peer, lab: Lab) -> Iterator[World]:
    with ExitStack() as stack:
        guests = {name: Watched(host, peer, spec) for name, spec in GUESTS.items()}
        for spec in GUESTS.values():
            stack.enter_context(host.guest(spec))
        for guest in guests.values():
            guest.proof.wait_booted()
        put_policies(lab)
        yield World(host, peer, lab, guests)


def put_policies(lab: Lab, *allow: Allowed) -> None:
    api = wiring.libvirt_of(lab.config)
    try:
        for name in SETS:
            for domain in DOMAINS:
                own = PolicyPart(allow=frozenset(allow) or None, availability_set=name, update_domain=domain)
                api.put_policy(GUESTS[f"{name}{domain}"].uuid, own)
    finally:
        api.disconnect()


def test_no_two_update_domains_of_a_set_are_disturbed_at_the_same_time(world: World) -> None:
    rolled = world.roll(HANDED_OVER, "newer")
    assert (rolled.stop, rolled.reason) == (None, "")
    assert rolled.plan.groups == GROUPS
    assert world.on(tuple(GUESTS), world.lab.newer.emulator)
    world.check()
    absences = world.absences(HANDED_OVER)
    for name, found in absences.items():
        assert len(found) == 1, (name, found)  # each once, and no other guest's turn was felt
    only = {name: found for name, (found,) in absences.items()}
    for earlier, later in combinations(GROUPS, 2):
        assert max(only[name].ended_ns for name in earlier) < min(only[name].begun_ns for name in later)
    for set_of in SETS:
        for one, other in combinations([only[f"{set_of}{domain}"] for domain in DOMAINS], 2):
            assert not one.overlaps(other)


def test_guests_that_are_not_well_leave_later_update_domains_untouched(world: World) -> None:
    """Back again, with a check that fails once the first update domain is done."""
    before = {name: guest.look() for name, guest in world.guests.items()}
    check = HealthSettings(availability_set="db", command=("/bin/false",), within_seconds=CHECK_SECONDS)
    rolled = world.roll(HANDED_OVER, "system", health=(check,))
    assert rolled.stop is Stop.UNHEALTHY
    assert rolled.reason == (
        "group 1 of 3 is not well: availability set db: expected /bin/false to end with exit status 0 within"
        f" {CHECK_SECONDS:g} s,"
        " found exit status 1"
    )
    assert rolled.untouched == (*GROUPS[1], *GROUPS[2])
    assert world.on(GROUPS[0], world.lab.system.emulator)
    for name in rolled.untouched:
        world.guests[name].check_that_it_ran_on(before[name])
    world.check()


def test_cancelled_while_it_waits_for_the_next_update_domain(world: World) -> None:
    """By `hostagent cancel`, with the command line on both ends."""
    words = [str(HOSTAGENT), "update", "qemu", "--wait", "10m", "--yes", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as update:
        try:
            assert update.stderr is not None
            said = _until(update.stderr.readline, "waiting for 600 s before group 2 of 2")
            cancel = subprocess.run([str(HOSTAGENT), "cancel", "--json"], capture_output=True, text=True, check=True)
            stdout, rest = update.communicate(timeout=LIMIT)
        finally:
            update.kill()
    document, asked = json.loads(stdout), json.loads(cancel.stdout)
    assert update.returncode == 128 + signal.SIGINT, said + rest
    assert (asked["at_work"]["pid"], asked["asked"], asked["ended"]) == (update.pid, True, True)
    assert (document["stopped"], document["untouched"]) == ("cancelled", list(GROUPS[2]))
    assert [guest["outcome"] for guest in document["updates"][0]["guests"]] == [Outcome.UPDATED] * 2
    assert world.on((*GROUPS[0], *GROUPS[1]), world.lab.system.emulator)
    world.check()


def test_by_reboots_an_update_domain_is_up_again_before_the_next_one_goes_down(world: World) -> None:
    """The two that are on the old QEMU still; the third one is not touched."""
    put_policies(world.lab, Allowed.REBOOT)
    rolled = world.roll(REBOOTED, "newer")
    assert (rolled.stop, rolled.reason) == (None, "")
    assert rolled.plan.groups == GROUPS[:2]
    assert world.on(tuple(GUESTS), world.lab.newer.emulator)
    world.check()
    absences = world.absences(REBOOTED)
    assert {name for name, found in absences.items() if found} == {*GROUPS[0], *GROUPS[1]}
    first, second = ([one for name in group for one in absences[name]] for group in GROUPS[:2])
    assert max(one.ended_ns for one in first) < min(one.begun_ns for one in second)


def _until(readline: Callable[[], str], words: str) -> str:
    said = ""
    while words not in said:
        line = readline()
        assert line, said
        said += line
    return said
