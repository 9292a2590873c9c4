"""The real `MigratingHost`: the libvirt of this host or of a peer, asked over its URI. Every call has a deadline.

A guest migrates peer to peer (docs/migration of libvirt): the libvirt that it leaves does it, whether or not the one
who asked is still there; and the guest is defined only where it is.
"""

from __future__ import annotations

import shlex
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import libvirt

from hostagent.errors import Failed, HostagentError, OutcomeUnknown
from hostagent.facts import Guest, GuestState, Peer, Version
from hostagent.hypervisor.domain_xml import read_definition
from hostagent.hypervisor.host_capabilities import (
    ARCHITECTURE,
    Capabilities,
    read_capabilities,
    read_processor_models,
    same_processor,
)
from hostagent.hypervisor.libvirt_line import Gone, LibvirtLine, asking, known, state_of
from hostagent.hypervisor.live_definition import parse
from hostagent.hypervisor.migration_verbs import (
    MAY_NEVER_HAVE_RUN,
    Crossing,
    Migratable,
    MigrationLook,
    MigrationOrder,
    Passage,
    There,
)
from hostagent.hypervisor.storage import Storage

_LOOK_SECONDS = 30.0
_XML = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_MIGRATABLE
_ALWAYS = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    # The answer that it has arrived may be lost, and libvirt then has it go on where it was: never two that run.
    | libvirt.VIR_MIGRATE_PAUSED
    | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
)
_CROSSINGS = {
    Crossing.ENCRYPTED: libvirt.VIR_MIGRATE_TLS,
    Crossing.TUNNELLED: libvirt.VIR_MIGRATE_TUNNELLED,
    Crossing.PLAIN: 0,
}


class MigratingApi(Storage):
    """One host's libvirt."""

    def __init__(self, uri: str, call_seconds: float) -> None:
        super().__init__(uri, call_seconds)
        self.hint = f"virsh -c {shlex.quote(uri)} list"

    @property
    def uri(self) -> str:
        return self._uri

    # -- what it has -----------------------------------------------------------------------------------------

    def uuid(self) -> str:
        return self._capabilities().uuid

    def _capabilities(self) -> Capabilities:
        return read_capabilities(self._ask("asking a host what it has", lambda c: str(c.getCapabilities())))

    def processor(self) -> str:
        return self._capabilities().processor

    def look(self, name: str, guests: Collection[Guest], definitions: Mapping[str, str], processor: str) -> Peer:
        has = self._capabilities()

        def work(connection: libvirt.virConnect) -> Peer:
            known_there = connection.listAllDomains()
            version, own = connection.getVersion(), connection.getLibVersion()
            return Peer(
                name=name,
                uri=self._uri,
                libvirt=_version(own),
                qemu=_version(version),
                emulator=has.emulator,
                machines=has.machines,
                memory_left=_memory_left(connection, known_there),
                networks=_networks(connection),
                guests=frozenset((domain.name(), domain.UUIDString()) for domain in known_there),
                misfits=tuple(_misfits(connection, has, guests, definitions, processor)),
            )

        return self._ask(f"asking {name} what it has", work, within_seconds=_LOOK_SECONDS)

    # -- a guest ---------------------------------------------------------------------------------------------

    def there(self, uuid: str) -> There | None:
        def look() -> There:
            number, why, *_ = domain.state()
            state, reason = state_of(number, why)
            persistent, job = bool(domain.isPersistent()), state.active and _has_job(domain)
            return There(
                state,
                reason,
                persistent,
                bool(persistent and domain.autostart()),
                # libvirt 11.3 keeps whoever asks for the definition of a guest that comes in waiting until it has.
                "" if job else read_definition(domain.XMLDesc(0)).emulator,
                job,
            )

        try:
            domain = self._domain(uuid)
            return self._on(domain, "looking at it", look)
        except Gone:
            return None

    def state(self, uuid: str) -> GuestState | None:
        try:
            domain = self._domain(uuid)
            number, why, *_ = self._on(domain, "looking at its state", domain.state)
        except Gone:
            return None
        return state_of(number, why)[0]

    def migratable(self, uuid: str) -> Migratable:
        def read() -> Migratable:
            return Migratable(domain.XMLDesc(_XML), domain.XMLDesc(_XML | libvirt.VIR_DOMAIN_XML_INACTIVE))

        with known("reading a guest's definition", uuid):
            domain = self._domain(uuid)
            return self._on(domain, "reading its definition", read)

    @contextmanager
    def migrate(self, uuid: str, order: MigrationOrder) -> Iterator[Passage]:
        passage = _Passage(LibvirtLine(self._uri, self._call_seconds), uuid, order)
        passage.begin()
        yield passage

    def migration(self, uuid: str) -> MigrationLook | None:
        try:
            domain = self._domain(uuid)
            told = self._on(domain, "asking how far its migration is", domain.jobStats)
        except (Gone, Failed):  # it left, or the job that is asked about has ended
            return None
        if not told.get("type") or "memory_total" not in told:  # which is 0 as long as disks are copied
            return None
        return MigrationLook(
            left=int(told.get("memory_remaining", 0)),
            total=int(told["memory_total"]),
            sent=int(told.get("memory_processed", 0)),
            speed=int(told.get("memory_bps", 0)),
            dirtying=int(told.get("memory_dirty_rate", 0)) * int(told.get("memory_page_size", 4096)),
            disks_left=int(told.get("disk_remaining", 0)),
            disks_total=int(told.get("disk_total", 0)),
        )

    def limit_downtime(self, uuid: str, seconds: float) -> None:
        with known("limiting a guest's pause", uuid):
            domain = self._domain(uuid)
            self._on(
                domain, "limiting its pause", lambda: domain.migrateSetMaxDowntime(max(1, round(seconds * 1000)), 0)
            )

    def abort_job(self, uuid: str, within_seconds: float) -> None:
        def breaks_off() -> bool:
            """Asked again and again: what has just been asked for may not have begun, or be ending by itself."""
            if not domain.isActive() or not _has_job(domain):
                return True
            with suppress(libvirt.libvirtError):
                domain.abortJob()
            return False

        def has_ended() -> bool:  # of a guest that comes in from a host that is silent libvirt may not answer at all
            seconds = min(within_seconds, self._call_seconds)
            return self._on(domain, "breaking its job off", breaks_off, within_seconds=seconds)

        with suppress(Gone):
            domain = self._domain(uuid)
            if not self._wait_until(within_seconds, has_ended):
                doing = f"{domain.name()}: breaking its job off"
                raise Failed(doing, expected="it to end", found="it still goes on")

    def usable(self, within_seconds: float) -> bool:
        def answers() -> bool:
            self.disconnect()
            try:
                self._ask("asking libvirt whether it answers", lambda c: c.getLibVersion())
            except HostagentError:
                return False
            return True

        return self._wait_until(within_seconds, answers)

    def remove(self, uuid: str) -> None:
        def work() -> str:
            number, why, *_ = domain.state()
            state, reason = state_of(number, why)
            stands_still = state in (GuestState.PAUSED_BY_OWNER, GuestState.PAUSED_OTHERWISE)
            if state.active and not (stands_still and reason in MAY_NEVER_HAVE_RUN):
                return f"{state} ({reason})" if reason else str(state)
            persistent = domain.isPersistent()
            if state.active:
                domain.destroy()
            if persistent:
                domain.undefine()
            return ""

        with suppress(Gone):
            domain = self._domain(uuid)
            doing = "ending a copy that never ran"
            if found := self._on(domain, doing, work, within_seconds=30.0):  # libvirt waits 15 s for QEMU itself
                raise Failed(f"{domain.name()}: {doing}", expected="it standing still", found=found)

    def put_autostart(self, uuid: str, *, on: bool) -> None:
        with known("setting whether a guest starts with its host", uuid):
            domain = self._domain(uuid)
            self._on(domain, "setting whether it starts with its host", lambda: domain.setAutostart(int(on)))


@dataclass
class _Passage:
    """A thread that waits for libvirt's answer; it ends with the process at the latest, the migration does not."""

    line: LibvirtLine
    uuid: str
    order: MigrationOrder
    _answered: threading.Event = field(default_factory=threading.Event)
    _error: HostagentError | None = None

    def begin(self) -> None:
        threading.Thread(target=self._run, name="hostagent migration", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        return self._answered.wait(seconds)

    def result(self) -> None:
        if not self._answered.is_set():
            raise OutcomeUnknown(f"migrating to {self.order.uri}", expected="an answer from libvirt", found="none yet")
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        doing = f"migrating to {self.order.uri}"
        try:
            with known(doing, self.uuid), asking(doing, self.line.hint):
                self.line._domain(self.uuid).migrateToURI3(self.order.uri, _parameters(self.order), _flags(self.order))
        except HostagentError as error:
            self._error = error
        except Exception as error:  # whoever waits must hear of it
            self._error = Failed(doing, found=f"{type(error).__name__}: {error}")
        finally:
            self._answered.set()
            self.line.disconnect()


def _parameters(order: MigrationOrder) -> dict[str, str | list[str]]:
    wanted: dict[str, str | list[str]] = {
        libvirt.VIR_MIGRATE_PARAM_DEST_XML: order.there.live_xml,
        libvirt.VIR_MIGRATE_PARAM_PERSIST_XML: order.there.persistent_xml,
    }
    if order.migrate_uri and order.crossing is not Crossing.TUNNELLED:  # which sends nothing anywhere else
        wanted[libvirt.VIR_MIGRATE_PARAM_URI] = order.migrate_uri
    if order.disks:
        wanted[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = list(order.disks)
    return wanted


def _flags(order: MigrationOrder) -> int:
    flags: int = _ALWAYS | _CROSSINGS[order.crossing]
    if order.auto_converge:
        flags |= libvirt.VIR_MIGRATE_AUTO_CONVERGE
    if order.trusts_storage:
        flags |= libvirt.VIR_MIGRATE_UNSAFE
    if order.disks:
        flags |= libvirt.VIR_MIGRATE_NON_SHARED_DISK
    return flags


def _has_job(domain: libvirt.virDomain) -> bool:
    try:
        return bool(domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_UNSUPPORTED:
            return True  # it comes in, and that is only told of where it comes from (qemuDomainGetJobStatsInternal)
        raise


def _version(number: int) -> Version:
    return Version(number // 1_000_000, number // 1_000 % 1_000, number % 1_000)


def _memory_left(connection: libvirt.virConnect, domains: list[libvirt.virDomain]) -> int:
    """What is neither used nor promised: RAM in files of a tmpfs counts as cache, and guests may not have all yet."""
    told = connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS, 0)  # KiB
    usable = sum(int(told.get(name, 0)) for name in ("free", "buffers", "cached"))
    promised = 0
    for domain in domains:
        with suppress(libvirt.libvirtError):  # ended since
            promised += int(domain.maxMemory()) if domain.isActive() else 0
    return 1024 * min(usable, int(told.get("total", 0)) - promised)


def _networks(connection: libvirt.virConnect) -> frozenset[str]:
    try:
        return frozenset(connection.listNetworks())
    except libvirt.libvirtError:  # without a network driver there are none
        return frozenset()


def _misfits(
    connection: libvirt.virConnect,
    has: Capabilities,
    guests: Collection[Guest],
    definitions: Mapping[str, str],
    processor: str,
) -> Iterator[tuple[str, str]]:
    same = same_processor(has.processor, processor)
    for guest in guests:
        wanted = parse(definitions[guest.uuid]).find("cpu") if guest.uuid in definitions else None
        if wanted is None or (same and wanted.get("mode") == "host-passthrough"):
            continue
        if why := _misfit(connection, has, guest, wanted):
            yield guest.uuid, why


def _misfit(connection: libvirt.virConnect, has: Capabilities, guest: Guest, processor: Element) -> str:
    """What of a guest's processor, as it was started, that host cannot give; "" for nothing."""
    mode, model = processor.get("mode", "custom"), processor.findtext("model", "")
    machine, kind = guest.definition.machine, guest.definition.virtualisation
    if mode != "custom":
        return f"{mode}, which is not the same there"
    if not model:
        return ""
    try:
        if kind == "kvm":
            xml = ElementTree.tostring(processor, encoding="unicode")
            strict = libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE
            connection.compareHypervisorCPU(has.emulator, ARCHITECTURE, machine, kind, xml, strict)
            return ""
        told = connection.getDomainCapabilities(has.emulator, ARCHITECTURE, machine, kind, 0)
    except libvirt.libvirtError as error:
        return error.get_error_message() or str(error)
    return "" if model in read_processor_models(told) else f"no model {model} there"
