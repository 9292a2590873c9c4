"""The system's QEMU is upgraded under running guests, as apt does it: they go to what is installed now, and back.

The upgrade is that of the files: the emulator is replaced by renaming, its modules and firmware with it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hostagent import wiring
from hostagent.cli.common import Call
from hostagent.cli.output import Output
from hostagent.errors import Refused, UsageError
from hostagent.facts import Guest
from hostagent.facts import Host as Facts
from hostagent.planning.checks import guest_blockers
from hostagent.planning.planner import choose_tree
from hostagent.planning.way_back import plan_way_back
from hostagent.trees import qemu_trees
from hostagent.update.journal import Outcome
from tests.bench.guest_spec import GuestSpec
from tests.bench.host import Host
from tests.bench.lab import BUDGET_SECONDS, Lab
from tests.bench.peer import Peer
from tests.guests.watched import Watched

GUEST = GuestSpec("lived through an upgrade", 1, fill_mib=128)
EMULATOR = Path("/") / qemu_trees.EMULATOR
FOLDERS = (Path("/usr/lib/x86_64-linux-gnu/qemu"), Path("/usr/share/qemu"))
ASIDE = Path("/var/lib/installed-before")


@pytest.fixture(scope="module")
def rehearsing(lab: Lab) -> Lab:
    """Nothing that guests run on has been kept yet, whoever has looked at them before."""
    system = lab.system
    for tree in wiring.trees_of(lab.config):
        if tree.is_build_of(system) and tree != system:
            qemu_trees.remove(tree.name, state=lab.config.paths.state)
    update = lab.config.update.model_copy(update={"rehearse": True})
    return Lab(lab.config.model_copy(update={"update": update}))


@pytest.fixture(scope="module")
def guest(host: Host, peer: Peer) -> Iterator[Watched]:
    watched = Watched(host, peer, GUEST)
    with host.guest(GUEST):
        watched.proof.wait_booted()
        yield watched


@contextmanager
def upgraded(lab: Lab) -> Iterator[None]:
    """The newer QEMU where the system's own was, which is nowhere any more but in its processes."""
    tree = Path(lab.newer.emulator).parents[2]
    ASIDE.mkdir()
    shutil.copy2(EMULATOR, ASIDE / EMULATOR.name)
    replace_emulator(Path(lab.newer.emulator))
    for folder in FOLDERS:
        shutil.copytree(folder, ASIDE / folder.parent.name, symlinks=True)
        shutil.rmtree(folder)
        shutil.copytree(tree / folder.relative_to("/"), folder, symlinks=True)
    try:
        yield
    finally:
        for folder in FOLDERS:
            shutil.rmtree(folder)
            shutil.copytree(ASIDE / folder.parent.name, folder, symlinks=True)
        replace_emulator(ASIDE / EMULATOR.name)
        shutil.rmtree(ASIDE)


def replace_emulator(by: Path) -> None:
    """As dpkg does: a new file is given the old one's name."""
    beside = EMULATOR.with_name(f"{EMULATOR.name}.dpkg-new")
    shutil.copy2(by, beside)
    beside.replace(EMULATOR)


def seen_host(lab: Lab) -> Facts:
    """The host as hostagent sees it."""
    libvirt = wiring.libvirt_of(lab.config)
    try:
        return libvirt.host()
    finally:
        libvirt.disconnect()


def facts(lab: Lab) -> Guest:
    """The guest as hostagent sees it."""
    found = seen_host(lab).guest(GUEST.name)
    assert found is not None
    return found


def test_there_and_back(rehearsing: Lab, guest: Watched) -> None:
    lab, before = rehearsing, guest.look()
    was_installed = lab.system
    with upgraded(lab):
        seen = facts(lab)
        assert seen.process is not None and seen.process.exe_deleted
        assert [blocker.reason for blocker in guest_blockers(seen)] == ["binary"]
    first_look, second_look = (Call(lab.config, Output(as_json=True)).kept_host().qemu for _ in range(2))
    (kept,) = (tree for tree in first_look if tree.is_build_of(was_installed) and tree != was_installed)
    assert second_look == first_look
    with upgraded(lab):
        installed = choose_tree(wiring.trees_of(lab.config), qemu_trees.SYSTEM)
        assert installed.version == lab.newer.version
        assert (facts(lab).qemu, guest_blockers(facts(lab))) == (kept, ())

        update = lab.update(installed)
        record = update.guests[GUEST.uuid]
        assert record.outcome is Outcome.UPDATED, record.reason
        after = guest.look()
        assert after.exe == str(EMULATOR)
        assert after.ram == before.ram

        (back,) = plan_way_back(seen_host(lab), {GUEST.uuid: kept}, installed, policies=lab.policies(BUDGET_SECONDS))
        assert back.to == kept
        again = lab.update(back.to)
        assert again.guests[GUEST.uuid].outcome is Outcome.UPDATED, again.guests[GUEST.uuid].reason
        assert guest.look().exe == kept.emulator
    report = guest.proof.check()
    assert before.report is not None
    assert (report.good, report.boot_id) == (True, before.report.boot_id)


def test_a_tree_in_use_is_not_removed(rehearsing: Lab, guest: Watched) -> None:
    seen = facts(rehearsing)
    assert seen.qemu is not None
    name = seen.qemu.name
    with pytest.raises((UsageError, Refused), match="removing QEMU"):
        qemu_trees.remove(name, state=rehearsing.config.paths.state)
    assert Path(seen.qemu.emulator).exists()
