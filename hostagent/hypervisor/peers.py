"""Looking at the peers of the settings, for the guests that may migrate to them."""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from hostagent.errors import HostagentError
from hostagent.facts import Disk, Guest, Peer
from hostagent.hypervisor.disk_images import read_disks
from hostagent.hypervisor.migration_verbs import MigratingHost
from hostagent.peer_settings import PeerSettings, Transport

HOME = ""  # the key of this host among those that guests migrate between
_SIDE_BY_SIDE = 8


def look_at_peers(
    hosts: Mapping[str, MigratingHost],
    settings: Sequence[PeerSettings],
    guests: Collection[Guest],
    live_xml: Callable[[str], str],
    disks: Sequence[Disk] = (),
) -> tuple[Peer, ...]:
    """Each of them in its place; one that cannot be asked, or is this host itself, says so in its `fault`.

    disks: those that would be copied to a peer which does not share them.
    """
    if not settings:
        return ()
    running = [guest for guest in guests if guest.state.active]
    try:
        own, processor = hosts[HOME].uuid(), hosts[HOME].processor()
        definitions = {guest.uuid: live_xml(guest.uuid) for guest in running}
    except HostagentError as error:
        return tuple(_unknown(one, f"this host's own libvirt: {error}") for one in settings)

    def look(one: PeerSettings) -> Peer:
        host = hosts[one.name]
        try:
            if host.uuid() == own:
                return _unknown(one, "it is this host itself, or has the same UUID (host_uuid in libvirtd.conf)")
            seen = _with_settings(host.look(one.name, running, definitions, processor), one)
            copied = [Path(disk.path) for disk in disks if not disk.fault and not seen.shares(disk.path)]
            return replace(seen, places=host.places(copied)) if copied else seen
        except HostagentError as error:
            return _unknown(one, error.found or str(error))
        finally:
            host.disconnect()  # this thread's own

    with ThreadPoolExecutor(min(_SIDE_BY_SIDE, len(settings)), thread_name_prefix="peer") as pool:
        return tuple(pool.map(look, settings))


def _unknown(one: PeerSettings, why: str) -> Peer:
    return _with_settings(Peer(one.name, one.uri, fault=why), one)


def _with_settings(peer: Peer, one: PeerSettings) -> Peer:
    return replace(
        peer,
        shared=tuple(map(str, one.shared)),
        max_guests=one.max_guests,
        tunnelled=one.transport is Transport.SSH,
    )


def look_at_disks(home: MigratingHost, guests: Collection[Guest], live_xml: Callable[[str], str]) -> tuple[Disk, ...]:
    """Every image of those that run, with its size; what keeps one from being copied is in its `fault`."""
    return tuple(
        disk if disk.fault else _measured(home, disk)
        for guest in guests
        if guest.state.active
        for disk in read_disks(guest.uuid, live_xml(guest.uuid))
    )


def _measured(home: MigratingHost, disk: Disk) -> Disk:
    path = Path(disk.path)
    try:
        if not stat.S_ISREG(path.lstat().st_mode) or path.resolve() != path:
            return replace(disk, fault="not a file under its own name: a link leads there")
        return replace(disk, size=home.disk_size(disk.guest, disk.target))
    except (OSError, HostagentError) as error:
        return replace(disk, fault=str(error))
