"""The same stage twice: a host with one guest, the fake one and the real one of the bench."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Protocol

import libvirt
import pytest

from hostagent.errors import HostagentError
from hostagent.facts import GuestState, QemuTree
from hostagent.hypervisor import Monitor, ProcessId
from hostagent.hypervisor.domain_xml import read_definition
from hostagent.hypervisor.fake import FakeHost
from hostagent.hypervisor.fake_metadata import with_policy
from hostagent.update.attachment import attach, detach
from hostagent.update.batch import Batch, Member
from hostagent.update.beside import prepare, start_new, stop_new, unprepare
from hostagent.update.copying import begin_copy, end_copy, look_at_copy
from hostagent.update.crossing import give_settings_back, resume_old
from hostagent.update.journal import Entry, Kind, Outcome
from hostagent.update.saga import Engine
from hostagent.update.subject import Ports
from hostagent.update.swap import GuestSwap, HostSwap
from hostagent.update.taking_over import restore_record

SECONDS = 120.0  # more than anything here takes


def wait_for(condition: Callable[[], bool]) -> None:
    """Look again and again; AssertionError when it does not become true."""
    ends = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


class World(Protocol):
    """What is done to a host from outside."""

    ports: Ports
    uuid: str
    name: str
    other: QemuTree  # where the guest is to go

    def freeze(self, process: ProcessId) -> None: ...
    def thaw(self, process: ProcessId) -> None: ...
    def pause(self) -> None: ...
    def start(self) -> None:
        """Somebody starts the guest, through libvirt."""
        ...

    def keep_state(self) -> None:
        """Its owner has libvirt save the guest's state, for its next start."""
        ...

    def drop_state(self) -> None:
        """He gives that state up."""
        ...

    def persistent_xml(self) -> str: ...
    def persistent_policy(self) -> str:
        """What its persistent definition holds of policies."""
        ...

    def start_daemon(self) -> None:
        """Somebody tries; whether it comes up is another matter."""
        ...


@dataclass
class Stage:
    """One guest, and the way through a handover by hand."""

    world: World
    copies: bool = False  # the guest's RAM has no name

    def __post_init__(self) -> None:
        self.updated = False
        names = (self.world.uuid, self.world.name, self.world.other)
        self.swap = GuestSwap(self.ports, "contract", *names, SECONDS, copies=self.copies)
        self.host = HostSwap(self.ports, "contract", (self.swap,))
        self.ports.journal.append(
            "contract",
            Entry(Kind.UPDATE_BEGUN),
            Entry(Kind.GUEST_BEGUN, self.world.uuid, body={"name": self.world.name}),
        )

    @property
    def ports(self) -> Ports:
        return self.world.ports

    @property
    def old(self) -> ProcessId:
        return self.swap.notes.old

    @property
    def new(self) -> ProcessId:
        return self.swap.new_process

    def old_monitor(self) -> Monitor:
        return self.swap.old_monitor()

    def new_monitor(self) -> Monitor:
        return self.swap.new_monitor()

    def prepared(self) -> Stage:
        """The RAM is pinned, everything is noted."""
        prepare(self.swap)
        return self

    def beside(self) -> Stage:
        """The new QEMU waits beside the old one."""
        self.prepared()
        start_new(self.swap)
        return self

    def copied(self) -> Stage:
        """All of its RAM has been copied once, and libvirt is there."""
        self.beside()
        return self.copied_from_beside()

    def copied_from_beside(self) -> Stage:
        begin_copy(self.swap)
        while not self.swap.copied:
            look_at_copy(self.swap)
        return self

    def detached(self) -> Stage:
        """libvirt is away, its lock is ours."""
        self.beside()
        detach(self.host)
        return self

    def attach(self) -> None:
        attach(self.host)
        self.ports.libvirt.settled(self.world.uuid)

    def whole_update(self) -> Member:
        """From beginning to end, as an update does it."""
        member = Member(self.swap)
        Batch(Engine(self.ports.journal, lambda *_: None, lambda: False), self.host, [member]).run()
        self.updated = member.outcome is Outcome.UPDATED
        return member

    def end(self) -> None:
        """Nothing of ours stays, whatever the test left; the guest runs again if it can."""
        if self.swap.saved is None or self.updated:
            return
        if self.ports.lock.held():  # libvirt is away: the old one can be asked
            for undo in (restore_record, resume_old, give_settings_back):
                with suppress(HostagentError):
                    undo(self.swap)
        if self.copies:
            end_copy(self.swap)
        stop_new(self.swap)
        attach(self.host)
        unprepare(self.swap)


# -- the fake -----------------------------------------------------------------------------------------------------


@dataclass
class FakeWorld:
    ports: Ports
    uuid: str
    name: str
    other: QemuTree
    host: FakeHost

    def freeze(self, process: ProcessId) -> None:
        with self.host.world.change() as state:
            state.processes[process.pid].hung = True

    def thaw(self, process: ProcessId) -> None:
        with self.host.world.change() as state:
            state.processes[process.pid].hung = False

    def pause(self) -> None:
        self.host.pause(self.uuid)

    def start(self) -> None:
        self.host.start(self.uuid)

    def keep_state(self) -> None:
        self.host.managed_save(self.uuid)

    def drop_state(self) -> None:
        with self.host.world.change() as state:
            state.guests[self.uuid].managed_save = False

    def persistent_xml(self) -> str:
        with self.host.world.look() as state:
            return with_policy(self.host.world.text(state.guests[self.uuid].xml), state.guests[self.uuid].policy)

    def persistent_policy(self) -> str:
        return read_definition(self.persistent_xml()).policy

    def start_daemon(self) -> None:
        self.host.somebody_starts_daemon()


@contextmanager
def fake_world(*, ordinary_ram: bool) -> Iterator[FakeWorld]:
    from tests.crash import shapes
    from tests.crash.rig import Points, Scenario, rig

    scenario = Scenario(guests=("web1",), copied=("web1",) if ordinary_ram else ())
    with rig(scenario) as host, host._ports(Points(only=())) as ports:
        yield FakeWorld(ports, host.uuids["web1"], "web1", shapes.NEW, host.host)
        assert host.host.violations() == []


# -- the real one ---------------------------------------------------------------------------------------------------


@dataclass
class RealWorld:
    ports: Ports
    uuid: str
    name: str
    other: QemuTree
    bench: object

    def freeze(self, process: ProcessId) -> None:
        os.kill(process.pid, signal.SIGSTOP)

    def thaw(self, process: ProcessId) -> None:
        os.kill(process.pid, signal.SIGCONT)

    def pause(self) -> None:
        self.bench.connection.lookupByUUIDString(self.uuid).suspend()  # type: ignore[attr-defined]

    def start(self) -> None:
        self.bench.connection.lookupByUUIDString(self.uuid).create()  # type: ignore[attr-defined]

    def keep_state(self) -> None:
        self.bench.connection.lookupByUUIDString(self.uuid).managedSave()  # type: ignore[attr-defined]

    def drop_state(self) -> None:
        self.bench.connection.lookupByUUIDString(self.uuid).managedSaveRemove()  # type: ignore[attr-defined]

    def persistent_xml(self) -> str:
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
        domain = self.bench.connection.lookupByUUIDString(self.uuid)  # type: ignore[attr-defined]
        return str(domain.XMLDesc(flags))

    def persistent_policy(self) -> str:
        return read_definition(self.persistent_xml()).policy

    def start_daemon(self) -> None:
        """`libvirtd -d` says yes before it has looked at the lock: wait until it answers, or is gone."""
        from tests.bench.host import daemons

        self.bench.start_libvirtd()  # type: ignore[attr-defined]
        wait_for(lambda: self.ports.libvirt.usable() or not daemons())


@pytest.fixture(scope="package")
def bench() -> Iterator[object]:
    if "HOSTAGENT_BENCH" not in os.environ:
        pytest.skip("runs inside the bench")
    from tests.bench.guest_spec import HOST_ADDRESS
    from tests.bench.host import Host
    from tests.bench.lab import Lab
    from tests.bench.peer import Peer

    with Host() as host, Peer(HOST_ADDRESS):
        lab = Lab.set_up(rehearse=False)
        lab.install_hook()
        host.restart_libvirtd()
        yield host


@contextmanager
def real_world(bench: object, *, ordinary_ram: bool) -> Iterator[RealWorld]:
    """A guest that goes from test to test for as long as it lives, from one QEMU to the other and back."""
    from hostagent import wiring
    from tests.bench.guest_spec import GuestSpec, Ram
    from tests.bench.lab import Lab
    from tests.bench.proof import Proof

    lab, spec = Lab.load(), GuestSpec(name="web1", memory_mib=256, vcpus=2)
    if ordinary_ram:
        spec = GuestSpec(name="ordinary", index=2, memory_mib=256, vcpus=2, ram=Ram.ANONYMOUS)
    journal = wiring.journal_of(lab.config)
    token = f"c{secrets.token_hex(2)}"
    numbers = count()
    ports = replace(wiring.ports_of(lab.config, journal), token=lambda: f"{token}{next(numbers)}")
    guest = ports.libvirt.guest(spec.uuid)
    if guest is None or guest.state is not GuestState.RUNNING or guest.process is None:
        bench.remove_guest(spec)  # type: ignore[attr-defined]
        Proof(bench.boot(spec)).wait_booted()  # type: ignore[attr-defined]
        guest = ports.libvirt.guest(spec.uuid)
    assert guest is not None
    other = lab.newer if guest.qemu == lab.system else lab.system
    try:
        yield RealWorld(ports, spec.uuid, spec.name, other, bench)
    finally:
        ports.libvirt.disconnect()
        journal.close()
        for path in lab.config.paths.state.glob("journal.sqlite*"):
            path.unlink()
        shutil.rmtree(Path(lab.config.paths.state) / "held", ignore_errors=True)


@pytest.fixture(params=["fake", "real"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A running guest, and nothing begun."""
    yield from _stage(request, ordinary_ram=False)


@pytest.fixture(params=["fake", "real"])
def ordinary(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """The same with a guest whose RAM has no name."""
    yield from _stage(request, ordinary_ram=True)


def _stage(request: pytest.FixtureRequest, *, ordinary_ram: bool) -> Iterator[Stage]:
    with ExitStack() as stack:
        world: World = (
            stack.enter_context(fake_world(ordinary_ram=ordinary_ram))
            if request.param == "fake"
            else stack.enter_context(real_world(request.getfixturevalue("bench"), ordinary_ram=ordinary_ram))
        )
        made = Stage(world, copies=ordinary_ram)
        try:
            yield made
        finally:
            made.end()
