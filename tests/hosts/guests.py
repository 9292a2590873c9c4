"""A test guest that lives on one of two hosts, its migration by libvirt alone, and one that many tests have in turn."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from xml.etree import ElementTree

import libvirt
import libvirt_qemu

from tests.bench.guest_spec import GUEST_FILES, GuestSpec
from tests.bench.link import A, B, Side
from tests.bench.proof import NotReadyError, Proof
from tests.bench.two_hosts import MIGRATE_URIS, PLAIN_URIS, URIS, TwoHosts
from tests.hosts.panics import PANICS

TRAVELLER = GuestSpec("traveller", 1, 256, fill_mib=64, seed=53)
"""Of all tests that want no other, so that they have one after the other."""
LIVE = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    | libvirt.VIR_MIGRATE_UNSAFE  # the disks' folder is no network file system, which is all that libvirt 9.0 takes
)
TLS = libvirt.VIR_MIGRATE_TLS
PAUSED = libvirt.VIR_MIGRATE_PAUSED
LIMIT = 60.0
"""Seconds in which a migration gets somewhere."""
BOOT_LIMIT = 240.0
POLL = 0.01
STILL = 10.0
"""Seconds in which a guest that is well writes to its disk, on a busy machine, too."""


@dataclass(frozen=True)
class Travelling:
    """A guest of two hosts."""

    hosts: TwoHosts
    spec: GuestSpec

    @contextmanager
    def on(self, side: Side) -> Iterator[libvirt.virDomain]:
        """libvirt's guest there; libvirtError if there is none."""
        with self.hosts.connection(side) as connection:
            yield connection.lookupByUUIDString(self.spec.uuid)

    @contextmanager
    def proof(self, side: Side) -> Iterator[Proof]:
        with self.on(side) as domain:
            yield Proof(domain)

    def state(self, side: Side) -> tuple[int, int] | None:
        """State and reason there, as libvirt numbers them; None where it is not known."""
        try:
            with self.on(side) as domain:
                state, reason = domain.state()
        except libvirt.libvirtError:
            return None
        return state, reason

    def disk(self, side: Side) -> Path:
        """Its disk's file there, seen from here; of one that both see the same file."""
        path = self.spec.disk_path
        return path if side is A else self.hosts.b.root / path.relative_to("/")

    def is_known_on(self, side: Side) -> bool:
        return self.state(side) is not None

    def runs_on(self) -> list[Side]:
        """Every host on which libvirt has it running; two would be one too many."""
        return [side for side in (A, B) if (self.state(side) or (0, 0))[0] == libvirt.VIR_DOMAIN_RUNNING]

    def disk_fails(self, side: Side) -> bool:
        """Whether QEMU there could not do something that the guest asked of its disk."""
        asked = json.dumps({"execute": "query-blockstats"})
        with self.on(side) as domain:
            told = json.loads(libvirt_qemu.qemuMonitorCommand(domain, asked, 0))["return"]
        return any(count for one in told for name, count in one["stats"].items() if name.startswith("failed_"))

    def emulator(self, side: Side) -> str:
        """What it runs on there."""
        with self.on(side) as domain:
            return ElementTree.fromstring(domain.XMLDesc()).findtext("devices/emulator", "")

    def migrate_onto(self, source: Side, target: Side, emulator: str) -> None:
        """As `migrate`, and there it runs on that QEMU, now and later."""
        migratable = libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE
        was = self.emulator(source)
        with self.on(source) as domain:
            now, later = (
                domain.XMLDesc(migratable | flags).replace(was, emulator)
                for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE)
            )
        params = {libvirt.VIR_MIGRATE_PARAM_DEST_XML: now, libvirt.VIR_MIGRATE_PARAM_PERSIST_XML: later}
        self.migrate(source, target, **params)

    def migrate(self, source: Side, target: Side, flags: int = LIVE | TLS, **more: str) -> None:
        """One call of libvirt's; the source host does the rest. `more` are VIR_MIGRATE_PARAM_*, by their values."""
        uris = URIS if flags & TLS else PLAIN_URIS
        params = {libvirt.VIR_MIGRATE_PARAM_URI: MIGRATE_URIS[target], **more}
        # By a connection of its own: other calls on one that is used for this wait until the migration is done.
        connection = libvirt.open(self.hosts.uri(source))
        try:
            domain = connection.lookupByUUIDString(self.spec.uuid)
            domain.migrateToURI3(uris[target], params, flags)
        finally:
            with suppress(libvirt.libvirtError):
                connection.close()

    @contextmanager
    def migrating(self, flags: int = LIVE | TLS) -> Iterator[Future[None]]:
        """On its way from the first host to the second, with a part of its RAM there; at the end it is waited for."""
        with ThreadPoolExecutor() as pool:
            call = pool.submit(self.migrate, A, B, flags)
            self.wait_until(lambda: self.moved_bytes() > 16 << 20)
            yield call

    def moved_bytes(self) -> int:
        """By the first host's job; 0 when it has none."""
        try:
            with self.on(A) as domain:
                return int(domain.jobStats().get("data_processed", 0))
        except libvirt.libvirtError:
            return 0

    def wait_until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT
        while not reached():
            where = f"a {self.state(A)}, b {self.state(B)}"
            assert time.monotonic() < deadline, f"expected it within {LIMIT:.0f} s, found {where}"
            time.sleep(POLL)


@contextmanager
def guest(hosts: TwoHosts, spec: GuestSpec) -> Iterator[Travelling]:
    """A guest that begins on the first host and is gone from both afterwards."""
    with guests(hosts, spec) as (travelling,):
        yield travelling


@contextmanager
def guests(hosts: TwoHosts, *specs: GuestSpec) -> Iterator[tuple[Travelling, ...]]:
    """Several of them, which boot side by side."""
    with ExitStack() as stack:
        booting = tuple(stack.enter_context(_booting(hosts, spec)) for spec in specs)
        for travelling in booting:
            with travelling.proof(A) as proof:
                proof.wait_booted(BOOT_LIMIT)
        yield booting


class Standing:
    """A guest that tests have one after the other: each finds it as if it had been booted for it.

    It goes home if the test before left it elsewhere, and onto the QEMU that it was booted on; one that is not whole
    then, or anywhere that it should not be, is ended, and another one is booted.
    """

    def __init__(self, hosts: TwoHosts, emulator: str) -> None:
        self._hosts, self._emulator = hosts, emulator
        self._stack = ExitStack()
        self._guest: Travelling | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @contextmanager
    def guest(self, spec: GuestSpec) -> Iterator[Travelling]:
        """One whose block fails is not for others."""
        if self._guest is None or self._guest.spec != spec or not self._is_as_new(self._guest):
            self.end()
            self._guest = self._stack.enter_context(guest(self._hosts, spec))
        try:
            with _looked_at(self._guest):
                yield self._guest
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """The one that there is, if any."""
        self._guest = None
        self._stack.close()

    def _is_as_new(self, travelling: Travelling) -> bool:
        try:
            self._bring_home(travelling)
            if travelling.runs_on() != [A] or travelling.is_known_on(B):
                return False
            if travelling.spec.own_disk:
                travelling.disk(B).unlink(missing_ok=True)  # what is left of a copy
            with travelling.on(A) as domain:
                domain.setAutostart(0)
            with travelling.proof(A) as proof:
                proof.rewrite(0)
                return proof.check().good and travelling.emulator(A) == self._emulator
        except (libvirt.libvirtError, NotReadyError) as error:
            print(f"another guest is booted: {error}")
            return False

    def _bring_home(self, travelling: Travelling) -> None:
        if travelling.spec.own_disk:  # which would have to go with it
            return
        if travelling.runs_on() == [A] and travelling.emulator(A) != self._emulator:
            travelling.migrate_onto(A, B, self._emulator)
        if travelling.runs_on() == [B]:
            travelling.migrate_onto(B, A, self._emulator)


@contextmanager
def _booting(hosts: TwoHosts, spec: GuestSpec) -> Iterator[Travelling]:
    with hosts.a.guest(spec):
        PANICS.started += 1
        travelling = Travelling(hosts, spec)
        try:
            with _looked_at(travelling):
                yield travelling
        finally:
            PANICS.look()  # its console goes with it
            if hosts.b.is_on:
                with suppress(libvirt.libvirtError), travelling.on(B) as domain:
                    with suppress(libvirt.libvirtError):
                        domain.destroy()
                    domain.undefine()
                if spec.own_disk:
                    travelling.disk(B).unlink(missing_ok=True)


@contextmanager
def _looked_at(travelling: Travelling) -> Iterator[None]:
    """If its block fails, that may be for what QEMU forgot of this guest."""
    try:
        yield
    except Exception:
        if _has_lost_writes(travelling):
            PANICS.found += 1
        raise


def _has_lost_writes(travelling: Travelling) -> bool:
    """Whether it runs on, and its disk does not fail, yet something in it has stopped or counts wrong.

    Seen with libvirt alone: an agent that never answers again, a disk that is never written to again. What it finds
    wrong in the RAM that it proves or on its disk is no excuse, nor is a connection that was lost.
    """
    try:
        sides = travelling.runs_on()
        if len(sides) != 1 or travelling.disk_fails(sides[0]):
            return False
    except libvirt.libvirtError:
        return False
    try:
        with travelling.proof(sides[0]) as proof:
            before = proof.report().disk
            time.sleep(STILL)
            if before.present and proof.report().disk.last == before.last:
                return True
            now = proof.check()
    except (libvirt.libvirtError, NotReadyError):
        return travelling.runs_on() == sides
    return now.ram.good and now.disk.good and now.tcp.connects == 1 and now.tcp.wrong > 0


def is_well(travelling: Travelling, side: Side, *, emulator: str | None = None) -> None:
    """It runs there alone, whole, and the other host does not know it."""
    other = A if side is B else B
    travelling.wait_until(lambda: travelling.runs_on() == [side])
    travelling.wait_until(lambda: not travelling.is_known_on(other))
    with travelling.on(side) as domain:
        assert domain.isPersistent()
        if emulator is not None:
            assert f"<emulator>{emulator}</emulator>" in domain.XMLDesc()
    with travelling.proof(side) as proof:
        now = proof.check()
    assert now.good
    assert now.ram.pages == travelling.spec.fill_mib * 256
    assert not list(GUEST_FILES.glob("hostagent-*"))
