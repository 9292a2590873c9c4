"""This host's libvirt through its API. Every call has a deadline."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import libvirt
import libvirt_qemu

from hostagent import processes
from hostagent.clock import AgentError
from hostagent.config import Config
from hostagent.errors import Failed, HostagentError
from hostagent.facts import Definition, Guest, GuestState, Host, QemuTree, Version
from hostagent.hypervisor import (
    BeforeItsEnd,
    ProcessId,
    Sender,
    ShutDownBy,
    Standing,
    apparmor,
    qemu_conf,
    surroundings,
)
from hostagent.hypervisor.domain_xml import read_definition
from hostagent.hypervisor.guest_process import Builds, process_of, ram_files, vhosts
from hostagent.hypervisor.libvirt_line import PAUSES, Gone, LibvirtLine, known, state_of
from hostagent.hypervisor.passthrough import PassthroughMonitor
from hostagent.hypervisor.ram_room import memory_room, ram_room
from hostagent.hypervisor.save_end import held_up
from hostagent.hypervisor.understood import Readings
from hostagent.libvirt_files import held_definition
from hostagent.libvirt_files.capability_cache import CapabilityCache, cache_file_name, flags_of_capability_cache
from hostagent.libvirt_files.emulator import with_emulator
from hostagent.libvirt_files.hook import HOOK, hook_text, is_ours
from hostagent.libvirt_files.memory_backing import with_shared_ram
from hostagent.libvirt_files.xml_spans import PlainXmlError
from hostagent.policy import PolicyPart
from hostagent.policy_xml import NAMESPACE, PREFIX, read_policy, written_policy

_PING_SECONDS = 2.0
_PING_AGAIN_SECONDS = 0.25
_HOOKS = Path("/etc/libvirt/hooks")


class LibvirtApi(LibvirtLine):
    """The real `Libvirt` port."""

    def __init__(self, config: Config, trees: Callable[[], tuple[QemuTree, ...]]) -> None:
        super().__init__(config.libvirt.uri, config.libvirt.call_seconds)
        self._config = config
        self._trees = trees
        self._builds = Builds()
        self._readings = Readings()

    # -- facts -----------------------------------------------------------------------------------------------

    def host(self) -> Host:
        conf = qemu_conf.read(self._config.paths.qemu_conf)
        trees = self._trees()
        domains = self._ask("listing guests", lambda c: c.listAllDomains())
        guests = []
        for domain in domains:
            with contextlib.suppress(Gone):  # ended since the list was made
                guests.append(self._guest(domain, trees))
        self._readings.keep({guest.uuid for guest in guests})
        self._builds.keep({guest.process for guest in guests})
        version = self._ask("asking libvirt's version", lambda c: c.getLibVersion())
        return Host(
            hostname=platform.node(),
            kernel=platform.release(),
            boot_id=boot_id(),
            libvirt=Version(version // 1_000_000, version // 1_000 % 1_000, version % 1_000),
            libvirt_uri=self._config.libvirt.uri,
            qemu=trees,
            guests=tuple(sorted(guests, key=lambda guest: guest.name)),
            lock_manager=conf.lock_manager,
            memory_backing_dir=conf.memory_backing_dir,
            ram_room=ram_room(Path(conf.memory_backing_dir)),
            reconnect_hook=any(path.exists() for path in self._foreign_hooks()),
            hold_hook=_content(HOOK) == hook_text(self._config.paths.held),
            machined=_machined(),
        )

    @staticmethod
    def _foreign_hooks() -> list[Path]:
        scripts = [path for path in (_HOOKS / "qemu.d").glob("*") if path != HOOK or not is_ours(_content(path))]
        return [_HOOKS / "qemu", *scripts]

    def guest(self, uuid: str) -> Guest | None:
        try:
            return self._guest(self._domain(uuid), self._trees())
        except Gone:
            return None

    def settled(self, uuid: str) -> None:
        """Ask for something that needs the guest's job and its monitor: libvirt holds both while it reconnects."""
        seconds = self._config.libvirt.daemon.ready_seconds
        with known("waiting until libvirt is back at a guest", uuid):
            domain = self._domain(uuid)
            self._on(domain, "waiting until libvirt is back at it", domain.memoryStats, within_seconds=seconds)

    def live_xml(self, uuid: str) -> str:
        with known("reading a guest's definition", uuid):
            domain = self._domain(uuid)
            return self._on(domain, "reading its definition", lambda: str(domain.XMLDesc(0)))

    @contextmanager
    def sender(self, uuid: str) -> Iterator[Sender]:
        with known("reaching a guest's QEMU", uuid):
            domain = self._domain(uuid)

        def put(doing: str, words: str, files: Sequence[int]) -> str:
            with known(doing, uuid):
                return self._ask(doing, lambda _: str(_monitor_command(domain, words, list(files))))

        yield PassthroughMonitor(domain.name(), put)

    def adopt_definition(self, uuid: str) -> bool:
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE

        def change() -> bool:
            before = str(domain.XMLDesc(flags))
            after = with_shared_ram(before)
            if after != before:
                domain.connect().defineXML(after)
            return after != before

        doing = "changing a guest's definition"
        try:
            with known(doing, uuid):
                domain = self._domain(uuid)
                return self._on(domain, "having its RAM in shared files from its next boot on", change)
        except PlainXmlError as error:
            raise Failed(doing, expected="the XML that libvirt writes", found=str(error)) from error

    def put_policy(self, uuid: str, own: PolicyPart) -> None:
        element, text = libvirt.VIR_DOMAIN_METADATA_ELEMENT, written_policy(own)

        def change() -> list[str]:
            live, config = bool(domain.isActive()), bool(domain.isPersistent())
            flags = (libvirt.VIR_DOMAIN_AFFECT_LIVE if live else 0) | (
                libvirt.VIR_DOMAIN_AFFECT_CONFIG if config else 0
            )
            domain.setMetadata(element, text or None, PREFIX if text else None, NAMESPACE, flags)
            return [domain.XMLDesc(0)] * live + [domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)] * config

        doing = "changing a guest's policy"
        with known(doing, uuid):
            domain = self._domain(uuid)
            for xml in self._on(domain, doing, change):
                found = read_policy(domain.name(), read_definition(xml).policy)
                if found != own:
                    raise Failed(f"{domain.name()}: {doing}", expected=f"{own} in its metadata", found=f"{found}")

    def _guest(self, domain: libvirt.virDomain, trees: tuple[QemuTree, ...]) -> Guest:
        def look() -> tuple[str, int, list[int], bool, bool, str, bool]:
            return (
                domain.UUIDString(),
                domain.ID(),
                domain.state(),
                bool(domain.isPersistent()),
                bool(domain.isPersistent() and domain.autostart()),
                domain.XMLDesc(0),
                bool(domain.isPersistent() and domain.hasManagedSaveImage()),
            )

        name = domain.name()
        uuid, domain_id, (number, why, *_), persistent, autostart, xml, saved = self._on(domain, "looking at it", look)
        state, reason = state_of(number, why)
        process = process_of(self._config.paths.libvirt_run, name, uuid) if state.active else None
        label = surroundings.security_label(process.pid) if process else ""
        read = self._readings.of(uuid, xml, process.argv if process else (), vhosts(process) if process else 0)
        return Guest(
            name=name,
            uuid=uuid,
            domain_id=domain_id if domain_id >= 0 else None,
            state=state,
            state_reason=reason,
            persistent=persistent,
            autostart=autostart,
            definition=read.definition,
            process=process,
            qemu=self._builds.tree_of(process, trees),
            ram_files=ram_files(read.ram_backends),
            drift=read.drift,
            job=self._job(domain, read.definition) if state.active else "",
            security_label=label,
            label_is_taken=self._config.update.apparmor and bool(apparmor.profile_of(label)),
            snapshots=self._on(domain, "counting its snapshots", lambda: int(domain.snapshotNum())),
            checkpoints=self._on(domain, "counting its checkpoints", lambda: len(domain.listAllCheckpoints())),
            argv=read.argv,
            plugged_taps=read.plugged_taps,
            memory_room=memory_room(process.pid) if process else None,
            managed_save=saved,
        )

    def _job(self, domain: libvirt.virDomain, definition: Definition) -> str:
        def look() -> str:
            try:
                if domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE:
                    return "a domain job (migration, save, dump or backup)"
                for target in (device.detail for device in definition.devices if device.element == "disk"):
                    if domain.blockJobInfo(target, 0):
                        return f"a block job on {target}"
            except libvirt.libvirtError:
                if domain.isActive():
                    raise
                # it ended since it was looked at, and its jobs with it
            return ""

        return self._on(domain, "asking for jobs", look)

    # -- emulators -------------------------------------------------------------------------------------------

    def capability_cache(self, emulator: str, virtualisation: str, machine: str) -> CapabilityCache:
        cache = self._config.paths.libvirt_cache / "capabilities"
        self._ask(
            f"having libvirt examine {emulator}",
            lambda c: c.getDomainCapabilities(emulator, None, machine, virtualisation, 0),
            within_seconds=60.0,  # the first time libvirt starts that emulator twice; 8 s measured under emulation
        )
        path = cache / cache_file_name(emulator)
        try:
            return flags_of_capability_cache(path.read_bytes())
        except OSError as error:
            raise Failed(f"reading {path}", expected="libvirt's capability cache", found=str(error)) from error

    def capability_filters(self) -> tuple[str, ...]:
        return qemu_conf.read(self._config.paths.qemu_conf).capability_filters

    def memory_backing_dir(self) -> str:
        return qemu_conf.read(self._config.paths.qemu_conf).memory_backing_dir

    # -- throw-away guests and agents ------------------------------------------------------------------------

    def start_transient(self, xml: str) -> Guest:
        domain = self._ask(
            "starting a throw-away guest",
            lambda c: c.createXML(xml, 0),
            within_seconds=self._config.update.start_seconds,
        )
        return self._guest(domain, self._trees())

    def destroy(self, uuid: str) -> None:
        with contextlib.suppress(Gone):
            domain = self._domain(uuid)
            self._on(domain, "ending it", domain.destroy, within_seconds=30.0)  # libvirt waits 15 s for QEMU itself

    # -- standing still, leaving, coming back ------------------------------------------------------------------

    def standing(self, uuid: str) -> Standing | None:
        try:
            domain = self._domain(uuid)
            name = domain.name()
            (number, why, *_), xml = self._on(domain, "looking at it", lambda: (domain.state(), domain.XMLDesc(0)))
        except Gone:
            return None
        state, reason = state_of(number, why)
        definition = read_definition(xml)
        process = process_of(self._config.paths.libvirt_run, name, uuid) if state.active else None
        return Standing(
            state,
            reason,
            ProcessId(process.pid, process.start_ticks) if process else None,
            definition.emulator,
            self._job(domain, definition) if state.active else "",
            state.active and held_definition.NAMESPACE in xml,
        )

    def active(self) -> tuple[str, ...]:
        flags = libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE
        return self._ask("listing guests", lambda c: tuple(domain.name() for domain in c.listAllDomains(flags)))

    def wait_ended(self, uuid: str, within_seconds: float) -> bool:
        return self._wait_until(within_seconds, lambda: not self._state(uuid)[0].active)

    def suspend(self, uuid: str) -> None:
        with known("pausing a guest", uuid):
            domain = self._domain(uuid)
            self._on(domain, "pausing it", domain.suspend)

    def save(self, uuid: str, qemu: ProcessId, path: Path, within_seconds: float, written: BeforeItsEnd) -> None:
        with known("saving a guest", uuid), held_up(path, qemu, written):
            domain = self._domain(uuid)
            self._on(domain, "saving it", lambda: domain.save(str(path)), within_seconds)

    def abort_job(self, uuid: str, within_seconds: float) -> None:
        def work() -> None:
            if domain.isActive() and domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE:
                domain.abortJob()

        with known("breaking a job off", uuid):
            domain = self._domain(uuid)
            self._on(domain, "breaking its job off", work)
        if not self._wait_until(within_seconds, lambda: (now := self.standing(uuid)) is None or not now.job):
            raise Failed(f"{domain.name()}: breaking its job off", expected="it to end", found="it still goes on")

    def restore(self, path: Path, within_seconds: float) -> None:
        doing, paused = f"restoring a guest from {path}", libvirt.VIR_DOMAIN_SAVE_PAUSED
        with known(doing, path.name):
            self._ask(doing, lambda c: c.restoreFlags(str(path), None, paused), within_seconds=within_seconds)

    def unmark(self, uuid: str) -> None:
        element, live = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_LIVE

        def work() -> None:
            if held_definition.NAMESPACE in domain.XMLDesc(0):
                domain.setMetadata(element, None, None, held_definition.NAMESPACE, live)

        with known("taking a mark off", uuid):
            domain = self._domain(uuid)
            self._on(domain, "taking our mark out of its definition", work)

    # -- shutting down and starting ----------------------------------------------------------------------------

    def shut_down(self, uuid: str, by: ShutDownBy, within_seconds: float) -> bool:
        flags = {
            ShutDownBy.AGENT: libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT,
            ShutDownBy.ACPI: libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN,
        }[by]

        def work() -> bool:
            runs = bool(domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING)
            if runs:
                domain.shutdownFlags(flags)
            return runs

        with known("asking a guest to shut down", uuid):
            domain = self._domain(uuid)
            return self._on(domain, f"asking it by {by} to shut down", work, within_seconds)

    def terminate(self, uuid: str, within_seconds: float) -> None:
        def work() -> None:
            if domain.isActive():
                domain.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)

        with known("ending a guest", uuid):
            domain = self._domain(uuid)
            self._on(domain, "ending its QEMU", work, within_seconds)

    def start(self, uuid: str, emulator: str | None, within_seconds: float) -> None:
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
        doing = "starting a guest"

        def work() -> bool:
            if domain.hasManagedSaveImage():
                return False
            defined = str(domain.XMLDesc(flags))
            if emulator is None or read_definition(defined).emulator == emulator:
                domain.create()
            else:  # on a domain that is defined this makes only the live definition (virDomainObjListAdd)
                domain.connect().createXML(with_emulator(defined, emulator))
            return True

        try:
            with known(doing, uuid):
                domain = self._domain(uuid)
                started = self._on(domain, "starting it", work, within_seconds)
        except PlainXmlError as error:
            raise Failed(doing, expected="the XML that libvirt writes", found=str(error)) from error
        if not started:
            raise Failed(
                f"{domain.name()}: starting it",
                expected="no saved state of it",
                found="one, which would be past then",
                hint=f"virsh start {uuid} goes on from it, virsh managedsave-remove {uuid} gives it up",
            )

    def wait_started(self, uuid: str, within_seconds: float) -> None:
        starting = GuestState.PAUSED_OTHERWISE, PAUSES[libvirt.VIR_DOMAIN_PAUSED_STARTING_UP]
        self._wait_until(within_seconds, lambda: self._state(uuid) != starting)

    def wait_agent(self, uuid: str, within_seconds: float) -> bool:
        ends = time.monotonic() + within_seconds
        with self.agent(uuid) as agent:
            while True:
                with contextlib.suppress(AgentError):
                    agent.ask("guest-ping", None, _PING_SECONDS)
                    return True
                if time.monotonic() > ends or not self._state(uuid)[0].active:
                    return False
                time.sleep(_PING_AGAIN_SECONDS)

    def _state(self, uuid: str) -> tuple[GuestState, str]:
        """Its state and the reason alone, which libvirt says whatever it does with the guest; shut off if unknown."""
        try:
            domain = self._domain(uuid)
            number, why, *_ = self._on(domain, "looking at it", domain.state)
        except Gone:
            return GuestState.SHUT_OFF, ""
        return state_of(number, why)

    def usable(self) -> bool:
        self.disconnect()
        try:
            self._ask("asking libvirt whether it answers", lambda c: c.listAllDomains())
        except HostagentError:
            self.disconnect()
            return False
        return True


def _monitor_command(domain: libvirt.virDomain, words: str, files: list[int]) -> str:
    answer, given = libvirt_qemu.qemuMonitorCommandWithFiles(domain, words, files, 0)
    for file in given:
        file.close()
    return str(answer)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def boot_id() -> str:
    """The kernel's id of this boot: RAM files of another one are gone."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _machined() -> Version | None:
    """systemd's version where machined keeps a list of guests; None elsewhere."""
    if not Path("/run/systemd/machines").is_dir() or not Path("/run/systemd/system").is_dir():
        return None
    words = processes.run(["systemctl", "--version"], within_seconds=10.0).stdout.split()
    return Version(int("".join(c for c in words[1] if c.isdigit()) or 0), 0)
