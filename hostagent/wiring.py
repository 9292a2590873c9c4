"""Puts the real parts together, from a configuration. The only place that chooses between real things and others."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from hostagent.clock import SystemClock
from hostagent.components import HostComponent, libvirtd, qemu
from hostagent.components.apt_dpkg import AptDpkg
from hostagent.components.commands import CommandComponent
from hostagent.components.kernel import KernelComponent
from hostagent.components.kvm import KvmComponent
from hostagent.components.libvirt_packages import LibvirtPackages
from hostagent.config import Config
from hostagent.facts import Component, Destinations, Host, QemuTree
from hostagent.hypervisor import Daemon
from hostagent.hypervisor.daemon import CommandDaemon, SystemdDaemon, reload_others
from hostagent.hypervisor.driver_lock import DriverLock
from hostagent.hypervisor.libvirt import LibvirtApi, boot_id
from hostagent.hypervisor.migrating import MigratingApi
from hostagent.hypervisor.migration_verbs import MigratingHost
from hostagent.hypervisor.peers import HOME, look_at_disks, look_at_peers
from hostagent.hypervisor.qemu_process import HostQemu
from hostagent.observed import Observed, observe
from hostagent.planning.guest_policy import Policies
from hostagent.planning.kernel_checks import KernelSwap
from hostagent.policy import Allowed
from hostagent.setup.boot_unit import WANTED_UNIT
from hostagent.setup.host_files import SystemMounts
from hostagent.trees import qemu_trees
from hostagent.update.journal import Journal, SqliteJournal
from hostagent.update.journal_past import JournalPast
from hostagent.update.journal_tail import JournalTail
from hostagent.update.libvirtd_swap import LibvirtdComponent
from hostagent.update.subject import NoWatcher, Ports, Watcher


def trees_of(config: Config) -> tuple[QemuTree, ...]:
    """Every QEMU on the host."""
    return qemu_trees.list_trees(config.paths.state, config.paths.system_emulator)


def libvirt_of(config: Config) -> LibvirtApi:
    """libvirt, with the trees looked up once: an update does not expect them to change under it."""
    return LibvirtApi(config, cache(lambda: trees_of(config)))


def hosts_of(config: Config) -> Mapping[str, MigratingHost]:
    """The hosts that guests migrate between: the peers by name, and this one. None is asked anything yet."""
    seconds = config.migrate.call_seconds
    peers: dict[str, MigratingHost] = {one.name: MigratingApi(one.uri, seconds) for one in config.peer}
    return {HOME: MigratingApi(config.libvirt.uri, config.libvirt.call_seconds), **peers}


def with_peers(config: Config, host: Host) -> Host:
    """The host, with where its guests can migrate to: each peer of the settings is asked, if some guest may go."""
    policies = Policies(config.policy.layers())
    may_go = [guest for guest in host.guests if Allowed.LIVE_MIGRATE in policies.of(guest).policy.allow]
    if not config.peer or not may_go:
        return host
    libvirt = libvirt_of(config)
    hosts, copies = hosts_of(config), config.migrate.copy_storage
    try:
        disks = look_at_disks(hosts[HOME], may_go, libvirt.live_xml) if copies else ()
        peers = look_at_peers(hosts, config.peer, may_go, libvirt.live_xml, disks)
    finally:
        libvirt.disconnect()
        hosts[HOME].disconnect()
    return replace(
        host,
        destinations=Destinations(
            peers, config.migrate.comes_back, config.migrate.uri, copies, config.migrate.lossy_emulation, disks
        ),
    )


def components_of(config: Config, host: Host) -> tuple[Component, ...]:
    """What runs of each component of the host, and what is installed."""
    daemon = DriverLock(config.paths.libvirt_run / "driver.pid").holder()
    return (qemu.look(host), libvirtd.look(host.libvirt, daemon), kvm_of(config).look(), kernel_of(config).look())


def observed_of(config: Config) -> Observed:
    """A look at the host for metrics; raises what libvirt answers with when it does not."""
    return Looks(config).look()[1]


class Looks:
    """Looks at the host again and again: what has not changed since the one before is not worked out anew.

    For one thread.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._libvirt = LibvirtApi(config, lambda: trees_of(config))
        self._policies = Policies(config.policy.layers())
        self._past = JournalPast(JournalTail(journal_path(config)))

    def look(self) -> tuple[Host, Observed]:
        """The host as it is now; raises what libvirt answers with when it does not."""
        config = self._config
        try:
            host = with_peers(config, self._libvirt.host())
        finally:
            self._libvirt.disconnect()
        return host, observe(
            host,
            components_of(config, host),
            self._policies,
            self._past.past(),
            at=now(),
            update_domain=config.metrics.update_domain,
        )


def kvm_of(config: Config) -> KvmComponent:
    """The KVM modules."""
    return KvmComponent(config.paths.state / "kept" / "kvm")


def kernel_of(config: Config) -> KernelComponent:
    """The host's kernel."""
    return KernelComponent(
        config.paths.state / "kept" / "kernel", config.kernel.release, first_seconds=config.kernel.takes_seconds
    )


def kernel_swap_of(config: Config) -> KernelSwap:
    """What of the host decides about swapping its kernel."""
    folders = tuple(str(mount.target) for mount in SystemMounts().mounts() if mount.outlives_the_kernel)
    return KernelSwap(folders, resumes_at_boot=WANTED_UNIT.exists())


def host_components(config: Config) -> tuple[HostComponent, ...]:
    """What is swapped for the whole host at once."""
    libvirt, lock = libvirt_of(config), DriverLock(config.paths.libvirt_run / "driver.pid")
    return _components(config, lock, libvirt, _daemon(config, lock, libvirt))


def _components(config: Config, lock: DriverLock, libvirt: LibvirtApi, daemon: Daemon) -> tuple[HostComponent, ...]:
    def looks() -> Component:
        try:
            return libvirtd.look(libvirt.host().libvirt, lock.holder())
        finally:
            libvirt.disconnect()

    own = LibvirtdComponent(
        libvirt=libvirt,
        daemon=daemon,
        qemu=HostQemu(),
        records=config.paths.libvirt_run,
        kept=config.paths.state / "held" / "libvirtd",
        ready_seconds=config.libvirt.daemon.ready_seconds,
        looks=looks,
        packages=_libvirt_packages(config),
        reload_others=reload_others if config.libvirt.daemon.by_systemd else _nothing,
        wanted=config.libvirt.release,
    )
    return (own, kvm_of(config), kernel_of(config), *(CommandComponent(settings) for settings in config.component))


def _libvirt_packages(config: Config) -> LibvirtPackages:
    folder = config.paths.state / "kept" / "libvirt"
    return LibvirtPackages(AptDpkg(folder / "apt"), folder)


def _nothing() -> None:
    """Without systemd nobody knows how they are reloaded."""


def journal_of(config: Config) -> SqliteJournal:
    """The host's journal; its directory must exist."""
    config.paths.state.mkdir(mode=0o711, parents=True, exist_ok=True)
    return SqliteJournal(journal_path(config), boot_id(), time.time)


def journal_path(config: Config) -> Path:
    """Where the journal is."""
    return config.paths.state / "journal.sqlite"


def host_lock_path(config: Config) -> Path:
    """Where the lock of the one update at a time is."""
    return config.paths.state / "lock"


def now() -> float:
    """Unix time, seconds."""
    return time.time()


def ports_of(
    config: Config, journal: Journal, *, watcher: Watcher | None = None, lock: DriverLock | None = None
) -> Ports:
    """Every door to the real world. A guard passes the lock that it already shares."""
    libvirt = libvirt_of(config)
    lock = lock or DriverLock(config.paths.libvirt_run / "driver.pid")
    daemon = _daemon(config, lock, libvirt)
    return Ports(
        libvirt=libvirt,
        qemu=HostQemu(),
        daemon=daemon,
        lock=lock,
        journal=journal,
        clock=SystemClock(require_synchronised=config.clock.require_synchronised_host),
        config=config,
        watcher=watcher or NoWatcher(),
        token=lambda: secrets.token_hex(3),
        components={one.name: one for one in _components(config, lock, libvirt, daemon)},
        secret=lambda: secrets.token_hex(16),
        hosts=hosts_of(config),
    )


def _daemon(config: Config, lock: DriverLock, libvirt: LibvirtApi) -> Daemon:
    settings = config.libvirt.daemon
    if settings.by_systemd:
        return SystemdDaemon(lock, libvirt.usable)
    return CommandDaemon(lock, settings.start, libvirt.usable)
