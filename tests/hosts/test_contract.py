"""What a `MigratingHost` does: the fake's two hosts, and two real ones."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from hostagent import wiring
from hostagent.errors import Failed, HostagentError
from hostagent.facts import Guest, GuestState, Place
from hostagent.hypervisor.disk_images import read_disks
from hostagent.hypervisor.fake_migrating import FakeMigratingHost
from hostagent.hypervisor.fake_world import FaultKind
from hostagent.hypervisor.migrating import MigratingApi
from hostagent.hypervisor.migration_verbs import Crossing, Image, Migratable, MigratingHost, MigrationOrder, Passage
from hostagent.libvirt_files.emulator import with_emulator
from tests.bench.guest_spec import GuestSpec
from tests.bench.link import B
from tests.bench.two_hosts import MIGRATE_URIS, URIS, TwoHosts
from tests.crash import shapes
from tests.crash.rig import PEER, Scenario, rig
from tests.hosts.guests import TRAVELLER

OWN = dataclasses.replace(TRAVELLER, own_disk=True)
SLOW = 100_000_000
LIMIT = 60.0


@dataclass(frozen=True)
class Pair:
    """Two hosts, and a guest on the first one."""

    home: MigratingHost
    peer: MigratingHost
    guest: Guest
    live_xml: str
    order: MigrationOrder
    folder: Path

    @property
    def uuid(self) -> str:
        return self.guest.uuid

    def slow(self) -> None:
        """From now on it does not get there by itself for a while."""


@dataclass(frozen=True)
class RealPair(Pair):
    hosts: TwoHosts

    def slow(self) -> None:
        self.hosts.link.slow(SLOW)


@dataclass(frozen=True)
class FakePair(Pair):
    stall: object

    def slow(self) -> None:
        self.stall()  # type: ignore[operator]


def order_for(home: MigratingHost, uuid: str, emulator: str, uri: str, migrate_uri: str = "") -> MigrationOrder:
    now = home.migratable(uuid)
    there = Migratable(with_emulator(now.live_xml, emulator), with_emulator(now.persistent_xml, emulator))
    return MigrationOrder(uri, migrate_uri, Crossing.ENCRYPTED, there, auto_converge=True, trusts_storage=True)


@pytest.fixture(params=["fake", "real"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    yield from _pairs(request, TRAVELLER)


@pytest.fixture(params=["fake", "real"])
def apart(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """The guest's disk is in `folder`, which each has for itself."""
    yield from _pairs(request, OWN)


def _pairs(request: pytest.FixtureRequest, spec: GuestSpec) -> Iterator[Pair]:
    if request.param == "fake":
        with rig(Scenario(guests=("web1",), migrated=("web1",), copies_disks=spec.own_disk)) as made:
            world, uuid = made.host.world, made.uuids["web1"]
            home, peer = (FakeMigratingHost(world, name, shapes.OLD) for name in ("", PEER))
            found = made.host.libvirt.guest(uuid)
            assert found is not None
            order = order_for(home, uuid, shapes.OLD.emulator, peer.uri)
            yield FakePair(
                *(home, peer, found, made.host.libvirt.live_xml(uuid), order),
                made.root / ("own" if spec.own_disk else "images"),
                stall=lambda: made.host.fault(FaultKind.MIGRATE_STALLS, times=-1),
            )
        return
    hosts, lab, standing = (request.getfixturevalue(name) for name in ("hosts", "lab", "standing"))
    with standing.guest(spec):
        real_home, real_peer = MigratingApi("qemu:///system", 10.0), MigratingApi(URIS[B], 10.0)
        libvirt = wiring.libvirt_of(lab.config)
        found = libvirt.guest(TRAVELLER.uuid)
        assert found is not None
        order = order_for(real_home, TRAVELLER.uuid, lab.system.emulator, URIS[B], MIGRATE_URIS[B])
        yield RealPair(
            *(real_home, real_peer, found, libvirt.live_xml(TRAVELLER.uuid), order, spec.disk_path.parent, hosts)
        )
        for one in (real_home, real_peer, libvirt):
            one.disconnect()


def ended(passage: Passage) -> None:
    ends = time.monotonic() + LIMIT
    while not passage.wait(0.05):
        assert time.monotonic() < ends


def test_what_a_host_has(pair: Pair) -> None:
    assert pair.home.uuid() != pair.peer.uuid()
    found = pair.peer.look("b", [pair.guest], {pair.uuid: pair.live_xml}, pair.home.processor())
    wanted = (pair.guest.definition.virtualisation, pair.guest.definition.machine)
    assert (found.name, found.fault, found.uri) == ("b", "", pair.peer.uri)
    assert wanted in found.machines
    assert found.qemu is not None
    assert found.emulator == pair.guest.definition.emulator
    assert found.memory_left > pair.guest.definition.memory
    assert (found.guests, found.misfits) == (frozenset(), ())
    at_home = pair.home.look("a", [], {}, "")
    assert pair.uuid in {uuid for _, uuid in at_home.guests} or isinstance(pair, FakePair)


def test_what_is_not_there(pair: Pair) -> None:
    for uuid in (pair.uuid,):
        assert pair.peer.there(uuid) is None
        assert pair.peer.state(uuid) is None
        pair.peer.remove(uuid)
        pair.peer.abort_job(uuid, 5.0)
        with pytest.raises(HostagentError):
            pair.peer.resume(uuid)
        with pytest.raises(HostagentError):
            pair.peer.migratable(uuid)
    assert pair.peer.usable(5.0)


def test_a_guest_arrives_standing_still_and_is_known_there_alone(pair: Pair) -> None:
    pair.home.put_autostart(pair.uuid, on=True)
    with pair.home.migrate(pair.uuid, pair.order) as passage:
        ended(passage)
        passage.result()
    assert pair.home.there(pair.uuid) is None
    there = pair.peer.there(pair.uuid)
    assert there is not None
    assert there.has_arrived and not there.comes_in and not there.job
    assert (there.persistent, there.autostart, there.emulator) == (True, False, pair.order.there and there.emulator)
    pair.peer.resume(pair.uuid)
    pair.peer.resume(pair.uuid)
    pair.peer.put_autostart(pair.uuid, on=True)
    there = pair.peer.there(pair.uuid)
    assert there is not None
    assert (there.state, there.autostart) == (GuestState.RUNNING, True)
    with pytest.raises(Failed):
        pair.peer.remove(pair.uuid)  # it runs
    assert pair.peer.state(pair.uuid) is GuestState.RUNNING


def test_one_that_is_broken_off_runs_where_it_was(pair: Pair) -> None:
    pair.slow()
    with pair.home.migrate(pair.uuid, pair.order) as passage:
        ends = time.monotonic() + LIMIT
        while (seen := pair.home.migration(pair.uuid)) is None or not seen.total:
            assert not passage.wait(0.05)
            assert time.monotonic() < ends
        pair.home.limit_downtime(pair.uuid, 0.2)
        here, there = pair.home.there(pair.uuid), pair.peer.there(pair.uuid)
        assert here is not None and here.job and here.state is GuestState.RUNNING
        assert there is not None and there.comes_in and not there.has_arrived
        pair.home.abort_job(pair.uuid, 30.0)
        ended(passage)
        with pytest.raises(Failed):
            passage.result()
    here = pair.home.there(pair.uuid)
    assert here is not None and not here.job and here.state is GuestState.RUNNING
    assert pair.home.migration(pair.uuid) is None
    pair.peer.remove(pair.uuid)
    assert pair.peer.there(pair.uuid) is None
    pair.home.abort_job(pair.uuid, 5.0)  # there is none


def test_to_where_nobody_is_it_does_not_go(pair: Pair) -> None:
    uri = "fake://c/system" if isinstance(pair, FakePair) else "qemu+tls://host-c.invalid/system"
    if isinstance(pair, FakePair):
        with pair.peer.world.change() as state:  # type: ignore[attr-defined]
            state.peers["c"] = dataclasses.replace(state.peers[PEER], alive=False)
    with pair.home.migrate(pair.uuid, dataclasses.replace(pair.order, uri=uri)) as passage:
        ended(passage)
        with pytest.raises(HostagentError):
            passage.result()
    assert pair.home.state(pair.uuid) is GuestState.RUNNING


def test_files_that_both_see(pair: Pair) -> None:
    token = pair.folder / f"token-{uuid4()}"
    assert not pair.peer.sees(token)
    token.touch()
    try:
        assert pair.peer.sees(token)
        assert pair.peer.sees(token)
    finally:
        token.unlink()


def test_images_that_are_made_where_there_is_nothing(apart: Pair) -> None:
    path = apart.folder / f"image-{uuid4()}.qcow2"
    nowhere = apart.folder / "none" / "image.qcow2"
    wanted = Image(path, "qcow2", 8 << 20)
    assert apart.peer.image(path) is None
    no_folder, empty = apart.peer.places([nowhere, path])
    assert no_folder.path == str(nowhere) and "No such file or directory" in no_folder.fault
    assert (empty.path, empty.taken, empty.fault) == (str(path), "", "") and empty.room > 8 << 20
    apart.peer.make_image(wanted)
    found = apart.peer.image(path)
    assert found is not None and found.is_like(wanted)
    with pytest.raises(Failed):
        apart.peer.make_image(wanted)
    assert apart.peer.places([path]) == (Place(str(path), apart.peer.places([path])[0].room, "qcow2 of 8 MiB"),)
    apart.peer.remove_image(path)
    apart.peer.remove_image(path)
    assert apart.peer.image(path) is None


def test_a_disk_is_copied_into_the_image_that_is_there(apart: Pair) -> None:
    (disk,) = [one for one in read_disks(apart.uuid, apart.live_xml) if not one.fault]
    size = apart.home.disk_size(apart.uuid, disk.target)
    found = Path(disk.path).stat()
    image = Image(Path(disk.path), disk.format, size, found.st_uid, found.st_gid)
    order = dataclasses.replace(apart.order, disks=(disk.target,), trusts_storage=False)
    for is_there in (False, True):
        if is_there:
            apart.peer.make_image(image)
        with apart.home.migrate(apart.uuid, order) as passage:
            ended(passage)
            if not is_there:
                with pytest.raises(Failed):
                    passage.result()
                assert apart.home.state(apart.uuid) is GuestState.RUNNING
                apart.peer.remove(apart.uuid)
    passage.result()
    assert (apart.home.there(apart.uuid), Path(disk.path).exists()) == (None, True)
    there = apart.peer.there(apart.uuid)
    assert there is not None and there.has_arrived and there.persistent
    apart.peer.resume(apart.uuid)
    assert apart.peer.state(apart.uuid) is GuestState.RUNNING
    copied = apart.peer.image(Path(disk.path))
    assert copied is not None and copied.is_like(image)
