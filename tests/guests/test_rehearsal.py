"""A throw-away guest goes first: it proves each shape once, leaves nothing, and meets a bad QEMU before them."""

import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from hostagent.errors import Failed
from hostagent.facts import QemuTree
from hostagent.trees.qemu_trees import EMULATOR
from hostagent.update.journal import Outcome, UpdateRecord
from hostagent.update.order import OrderKind
from tests.bench.guest_spec import GuestSpec
from tests.bench.host import Host
from tests.bench.lab import Lab
from tests.bench.peer import Peer
from tests.guests.plugged import plug_memory
from tests.guests.watched import Watched, leavings

FIRST = GuestSpec("first of its shape", 1, numa_nodes=2, memory_slots=2, fill_mib=64)
ALIKE = replace(FIRST, name="another of that shape", index=2, memory_mib=384)
DIMMS_MIB = (128, 256)
START_SECONDS = 8
"""What a new QEMU may take to answer while one is tried that never does."""

BROKEN_TREE = "10.0.2-broken"
BREAKS = {
    "exits": "echo 'qemu-system-x86_64: libnuma.so.1: cannot open shared object file' >&2; exit 127",
    "hangs": "exec sleep 600",
    "lacks the machine": "machine=none-such",
    "refuses the state": "machine=pc-q35-7.1",
}
SAYS = {
    "exits": "libnuma.so.1",
    "hangs": "an answer from its monitor",
    "lacks the machine": "unsupported machine type",
    "refuses the state": "Machine type received is",
}
SCRIPT = """\
#!/bin/bash
# Answers all of libvirt's questions as the real one does: only a guest that is handed over finds out.
machine=pc-q35-7.2
case "$*" in *"-incoming defer"*) . {how} ;; esac
exec env -u _ -u SHLVL -u PWD -u OLDPWD {real} "${{@//pc-q35-7.2/$machine}}"
"""


@dataclass(frozen=True)
class BrokenQemu:
    """A QEMU that takes guests badly."""

    tree: QemuTree
    how: Path

    def breaks(self, how: str) -> None:
        self.how.write_text(BREAKS[how])


@pytest.fixture(scope="module")
def guests(host: Host, peer: Peer) -> Iterator[tuple[Watched, Watched]]:
    first, alike = Watched(host, peer, FIRST), Watched(host, peer, ALIKE)
    with host.guest(FIRST), host.guest(ALIKE):
        for guest, mib in zip((first, alike), DIMMS_MIB, strict=True):
            guest.proof.wait_booted()
            plug_memory(guest, mib, node=0)
            guest.proof.fill(guest.spec.fill_mib, guest.spec.seed)
        yield first, alike


@pytest.fixture(scope="module")
def rehearsing(lab: Lab) -> Lab:
    return with_settings(lab, rehearse=True)


@pytest.fixture(scope="module")
def unrehearsed(lab: Lab) -> Lab:
    return with_settings(lab, rehearse=False)


def with_settings(lab: Lab, **settings: object) -> Lab:
    update = lab.config.update.model_copy(update=settings)
    return Lab(lab.config.model_copy(update={"update": update}))


@pytest.fixture(scope="module")
def broken(lab: Lab) -> Iterator[BrokenQemu]:
    """Beside the others, as if somebody had made it by hand."""
    folder = Path(lab.newer.emulator).parents[2].with_name(BROKEN_TREE)
    emulator, how = folder / EMULATOR, folder / "how"
    emulator.parent.mkdir(parents=True)
    emulator.write_text(SCRIPT.format(how=shlex.quote(str(how)), real=shlex.quote(lab.newer.emulator)))
    emulator.chmod(0o755)
    yield BrokenQemu(QemuTree(BROKEN_TREE, lab.newer.version, BROKEN_TREE, str(emulator)), how)
    shutil.rmtree(folder)


def rehearsals(lab: Lab) -> list[UpdateRecord]:
    return [update for update in lab.updates() if update.order["kind"] == OrderKind.REHEARSAL]


def domains(host: Host) -> set[str]:
    return {domain.name() for domain in host.connection.listAllDomains()}


# -- a QEMU that is no good ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["exits", "lacks the machine"])
def test_no_guest_is_touched_when_the_rehearsal_fails(
    guests: tuple[Watched, Watched], rehearsing: Lab, broken: BrokenQemu, how: str
) -> None:
    broken.breaks(how)
    updates, files, pids = len(rehearsing.updates()), leavings(), [guest.pid for guest in guests]
    with pytest.raises(Failed, match=SAYS[how]):
        rehearsing.update(broken.tree)
    assert [guest.pid for guest in guests] == pids
    assert leavings() ^ files == frozenset()
    assert domains(guests[0].host) == {FIRST.name, ALIKE.name}
    (added,) = rehearsing.updates()[updates:]
    assert (added.order["kind"], added.outcome) == (OrderKind.REHEARSAL, Outcome.ROLLED_BACK)


@pytest.mark.parametrize("how", ["hangs", "refuses the state"])
def test_real_guest_stays_where_it_was_when_there_was_no_rehearsal(
    guests: tuple[Watched, Watched], unrehearsed: Lab, broken: BrokenQemu, how: str
) -> None:
    guest, _ = guests
    broken.breaks(how)
    if how == "hangs":
        unrehearsed = with_settings(unrehearsed, start_seconds=START_SECONDS)
    before, files = guest.look(), leavings()
    record = unrehearsed.update(broken.tree, [FIRST.name]).guests[FIRST.uuid]
    assert record.outcome is Outcome.ROLLED_BACK
    assert SAYS[how] in record.reason
    assert guest.qemus() == before.qemus
    assert leavings() ^ files == frozenset()
    checked = guest.proof.check()
    assert checked.good
    assert checked.boot_id == before.report.boot_id


# -- a QEMU that is good -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Updated:
    """One update, with what it added to the journal and to the host."""

    added: tuple[UpdateRecord, ...]
    left: frozenset[str]
    domains: set[str]


def updated(lab: Lab, guest: Watched) -> Updated:
    count, files = len(lab.updates()), leavings()
    lab.update(lab.newer, [guest.spec.name])
    return Updated(lab.updates()[count:], leavings() ^ files, domains(guest.host))


@pytest.fixture(scope="module")
def first_time(guests: tuple[Watched, Watched], rehearsing: Lab) -> Updated:
    return updated(rehearsing, guests[0])


@pytest.fixture(scope="module")
def second_time(guests: tuple[Watched, Watched], first_time: Updated, rehearsing: Lab) -> Updated:
    return updated(rehearsing, guests[1])


def test_first_of_a_shape_is_rehearsed_before_it_is_touched(first_time: Updated) -> None:
    rehearsal, update = first_time.added
    assert (rehearsal.order["kind"], rehearsal.outcome) == (OrderKind.REHEARSAL, Outcome.UPDATED)
    reasons = [guest.reason for guest in update.guests.values()]
    assert (update.order["kind"], update.outcome) == (OrderKind.UPDATE, Outcome.UPDATED), reasons
    assert rehearsal.ended_at is not None
    assert rehearsal.ended_at <= update.begun_at


def test_throw_away_guest_went_the_whole_way(first_time: Updated) -> None:
    rehearsal, update = first_time.added
    (thrown_away,), (real,) = rehearsal.guests.values(), update.guests.values()
    assert thrown_away.progress.done == real.progress.done
    assert thrown_away.uuid != real.uuid


def test_second_of_the_shape_is_not_rehearsed(second_time: Updated) -> None:
    (update,) = second_time.added
    reasons = [guest.reason for guest in update.guests.values()]
    assert (update.order["kind"], update.outcome) == (OrderKind.UPDATE, Outcome.UPDATED), reasons


def test_nothing_is_left_of_the_rehearsal(first_time: Updated) -> None:
    assert first_time.left == frozenset()
    assert first_time.domains == {FIRST.name, ALIKE.name}


def test_guests_are_well(guests: tuple[Watched, Watched], second_time: Updated) -> None:
    assert all(guest.proof.check().good for guest in guests)
