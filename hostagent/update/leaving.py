"""What the steps of a live migration do: the guest goes to the peer, goes on there, and comes back if it shall."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from hostagent.durable import fsync
from hostagent.errors import Failed, HostagentError, NeedsOperator, OutcomeUnknown, Refused
from hostagent.facts import Disk, Guest, GuestState, Peer
from hostagent.hypervisor import ProcessId, qemu_conf
from hostagent.hypervisor.domain_xml import read_definition
from hostagent.hypervisor.migration_verbs import Crossing, Migratable, MigrationOrder
from hostagent.hypervisor.peers import HOME, look_at_disks, look_at_peers
from hostagent.libvirt_files.emulator import with_emulator
from hostagent.libvirt_files.xml_spans import PlainXmlError
from hostagent.peer_settings import Transport
from hostagent.planning.migrate_checks import migrate_blockers
from hostagent.planning.migrate_way import peer_blockers
from hostagent.setup.host_files import SystemMounts
from hostagent.update.guest_migration import GuestMigration, MigrationNotes, Stand
from hostagent.update.passage import cross, go_on
from hostagent.update.storage_steps import begin_overwriting, copies_of, note_as_left

# QEMU's migration capabilities that may be on without anything of the guest's being left out (qapi/migration.json).
HARMLESS = frozenset(
    (
        *("events", "auto-converge", "xbzrle", "zero-blocks", "late-block-activate", "pause-before-switchover"),
        *("return-path", "multifd", "switchover-ack", "release-ram"),
    )
)
# As /proc/self/mountinfo names them (virFileIsSharedFSType of libvirt 9.0).
KNOWN_AS_SHARED = frozenset(
    (
        *("nfs", "nfs4", "gfs2", "ocfs2", "afs", "smb3", "cifs", "ceph", "gpfs", "acfs"),
        *("fuse.glusterfs", "fuse.quobyte", "fuse.ceph", "fuse.ceph-fuse"),
    )
)
CROSSINGS = {
    Transport.TLS: Crossing.ENCRYPTED,
    Transport.SSH: Crossing.TUNNELLED,
    Transport.PLAIN: Crossing.PLAIN,
}


# -- beside the running guest -----------------------------------------------------------------------------------


def prepare(swap: GuestMigration) -> None:
    """Everything is looked at once more; nothing is begun of which anything is not as planned."""
    ports, settings = swap.ports, swap.settings
    ports.watcher.ready()
    guest = _guest_as_planned(swap)
    live_xml = ports.libvirt.live_xml
    disks = look_at_disks(swap.host(HOME), [guest], live_xml) if swap.copies_storage else ()
    (peer,) = look_at_peers(ports.hosts, [settings], [guest], live_xml, disks)
    _refuse_unless_it_fits(swap, guest, peer, disks if swap.copies_storage else None)
    _check_capabilities(swap)
    _check_shared(swap, guest)
    assert guest.process is not None  # noqa: S101 - _guest_as_planned() has looked
    swap.begin_notes(
        MigrationNotes(
            old=ProcessId(guest.process.pid, guest.process.start_ticks),
            peer=swap.peer,
            emulator=_next_emulator(swap),
            peer_emulator=peer.emulator,
            peer_qemu=str(peer.qemu),
            autostart=guest.autostart,
            trusts_storage=settings.coherent,
            comes_back=swap.comes_back,
            memory=guest.definition.memory,
            copies=copies_of(swap, guest, peer, disks),
        )
    )


def is_prepared(swap: GuestMigration) -> bool:
    return swap.saved is not None


def _guest_as_planned(swap: GuestMigration) -> Guest:
    guest = swap.ports.libvirt.guest(swap.uuid)
    if guest is None or guest.state is not GuestState.RUNNING or guest.process is None:
        found = "no such guest" if guest is None else f"{guest.state} ({guest.state_reason})"
        raise Refused(f"{swap.name}: preparing its migration", expected="it running", found=found, hint="plan again")
    return guest


def _next_emulator(swap: GuestMigration) -> str:
    """What the persistent definition names."""
    return read_definition(swap.host(HOME).migratable(swap.uuid).persistent_xml).emulator


def _refuse_unless_it_fits(swap: GuestMigration, guest: Guest, peer: Peer, disks: Sequence[Disk] | None) -> None:
    of_peer = peer_blockers(guest, peer, to=None, comes_back=swap.comes_back, disks=disks)
    against = (*migrate_blockers(guest), *of_peer)
    if against:
        found = "; ".join(map(str, against))
        raise Refused(f"{swap.name}: preparing its migration", found=found, hint="plan again")


def _check_capabilities(swap: GuestMigration) -> None:
    """A QEMU that leaves shared RAM out of what it sends would send a guest without its memory."""
    with swap.ports.libvirt.sender(swap.uuid) as sender:
        on = sorted(name for name, state in sender.capabilities().items() if state and name not in HARMLESS)
        reasons = sender.blocked_reasons()
    doing = f"{swap.name}: preparing its migration"
    if on:
        raise Failed(doing, expected="QEMU to send all of it", found=f"{', '.join(on)} on")
    if reasons:
        raise Failed(doing, expected="nothing that keeps QEMU from migrating", found="; ".join(reasons))


def _check_shared(swap: GuestMigration, guest: Guest) -> None:
    """A file that is made here is there, in every directory that the guest's files are in.

    A libvirt that lets a guest go gives its files back to whom they belonged, unless it knows their file system for
    shared: the guest could not open them then where it arrives (virSecurityDACRestoreImageLabelInt).
    """
    peer, settings = swap.host(swap.peer), swap.settings
    changes_owners = qemu_conf.read(swap.ports.config.paths.qemu_conf).changes_owners
    for folder in settings.shared:
        used = any(PurePosixPath(path).is_relative_to(folder) for path in guest.definition.host_files)
        nodes = folder.is_relative_to("/dev") and not folder.is_relative_to("/dev/shm")  # noqa: S108 - no file is made
        if not used or nodes:  # which are each host's own
            continue
        if settings.coherent and changes_owners and (kind := _file_system(folder)) not in KNOWN_AS_SHARED:
            raise Failed(
                f"{swap.name}: preparing its migration",
                expected=f"{folder} on a file system that libvirt knows as shared, or no libvirt that changes owners",
                found=f"{kind}, and dynamic_ownership on",
                hint="dynamic_ownership = 0 in qemu.conf of both hosts, with the images owned by QEMU's user",
            )
        with _made(_token(swap, folder)) as token:
            if not peer.sees(token):
                raise Failed(
                    f"{swap.name}: preparing its migration",
                    expected=f"{folder} to be the same on {swap.peer}",
                    found=f"that a file which was made in it here is not there: {token.name}",
                    hint="mount the same file system there, or take it out of shared of the [[peer]]",
                )


def _file_system(folder: Path) -> str:
    mounts = [mount for mount in SystemMounts().mounts() if folder.is_relative_to(mount.target)]
    return max(mounts, key=lambda mount: len(mount.target.parts)).kind if mounts else "unknown"


def _token(swap: GuestMigration, folder: Path) -> Path:
    """Named so that a later process finds it."""
    return folder / f"hostagent-probe-{swap.update}-{swap.uuid}"


@contextmanager
def _made(token: Path) -> Iterator[Path]:
    token.unlink(missing_ok=True)
    os.close(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644))
    try:
        yield token
    finally:
        token.unlink(missing_ok=True)


def unprepare(swap: GuestMigration) -> None:
    """Nothing was kept of it but what a crash left in the shared directories."""
    for folder in swap.settings.shared:
        _token(swap, folder).unlink(missing_ok=True)


# -- to the peer ------------------------------------------------------------------------------------------------


def leave(swap: GuestMigration) -> None:
    settings, notes = swap.settings, swap.notes
    there = _with_emulators(swap, HOME, notes.peer_emulator, notes.peer_emulator)
    order = MigrationOrder(
        uri=settings.uri,
        migrate_uri=settings.migrate_uri,
        crossing=CROSSINGS[settings.transport],
        there=there,
        auto_converge=swap.ports.config.migrate.auto_converge,
        trusts_storage=notes.trusts_storage,
        disks=tuple(disk.target for disk in notes.copies),
    )
    cross(swap, swap.going, order, stoppable=True)


def went(swap: GuestMigration) -> bool:
    return swap.stand(swap.going) in (Stand.ARRIVED, Stand.GOES_ON)


def _with_emulators(swap: GuestMigration, source: str, live: str, persistent: str) -> Migratable:
    now = swap.host(source).migratable(swap.uuid)
    try:
        return Migratable(with_emulator(now.live_xml, live), with_emulator(now.persistent_xml, persistent))
    except PlainXmlError as error:
        doing = f"{swap.name}: naming the QEMU that it is to run on"
        raise Failed(doing, expected="the XML that libvirt writes", found=str(error)) from error


def stay(swap: GuestMigration) -> None:
    """It goes on here, and nothing of it is left on the peer."""
    seconds = swap.ports.config.migrate.end_seconds
    swap.break_off(HOME)
    found = swap.stand(swap.going)
    if found is not Stand.NOT_LEFT:
        raise NeedsOperator(
            f"{swap.name}: keeping it on this host",
            expected="it here",
            found=str(found),
            hint=f"virsh domstate --reason {swap.uuid}; hostagent recover",
        )
    here = swap.there(HOME)
    stands_still = here is not None and here.state is GuestState.PAUSED_OTHERWISE
    if not stands_still:
        swap.ports.watcher.running()
    peer = swap.host(swap.peer)
    try:
        if swap.peer not in swap.silent and not peer.usable(seconds):
            swap.silent.add(swap.peer)
            doing, expected = f"asking {swap.peer}", f"an answer within {seconds:g} s"
            raise OutcomeUnknown(doing, expected=expected, found="none")
        # First: whoever sees both stand still may have the one on the peer go on, until it is gone.
        peer.remove(swap.uuid)
    except (Refused, OutcomeUnknown) as error:
        if stands_still:
            raise swap.out_of_sight(error) from error
        uri = shlex.quote(swap.settings.uri)
        swap.say_undone(
            f"{swap.peer} could not be asked whether a copy that never ran is left there: {error}; "
            f"if one is, once it answers: virsh -c {uri} destroy {swap.uuid}; virsh -c {uri} undefine {swap.uuid}"
        )
    if stands_still:
        go_on(swap, HOME)
        swap.ports.watcher.running()


def resume_there(swap: GuestMigration) -> None:
    here = None
    with suppress(HostagentError):  # it has left, and waits: that is not for a libvirt that is silent just now
        here = swap.host(HOME).there(swap.uuid)
    if here is not None and here.state.active:
        raise Failed(f"{swap.name}: having it go on on {swap.peer}", expected="nothing of it here", found=here.state)
    _see_it_forgotten(swap)
    go_on(swap, swap.peer)


def _see_it_forgotten(swap: GuestMigration) -> None:
    """libvirt has unlinked its definition here: a power cut must not bring that back, and start a second copy."""
    folder = swap.ports.config.paths.qemu_conf.parent / "qemu"
    for path in (folder, folder / "autostart"):
        with suppress(FileNotFoundError):
            fsync(path)


def is_there(swap: GuestMigration) -> bool:
    return swap.stand(swap.going) is Stand.GOES_ON or swap.stand(swap.returning) in (Stand.ARRIVED, Stand.GOES_ON)


def look_there(swap: GuestMigration) -> None:
    """What libvirt believes there. Whether it starts with its host does not migrate; one that comes back needs not."""
    note_as_left(swap)
    if not swap.comes_back:
        swap.host(swap.peer).put_autostart(swap.uuid, on=swap.notes.autostart)
    _looked_at(swap, swap.peer, autostart=swap.notes.autostart and not swap.comes_back)


def was_looked_at(swap: GuestMigration) -> bool:
    return swap.peer in swap.looked


def _looked_at(swap: GuestMigration, name: str, *, autostart: bool) -> None:
    """In each process anew: that tells where it is."""
    found, doing = swap.there(name), f"{swap.name}: looking at it on {swap.called(name)}"
    if found is None or not found.state.active:
        raise Failed(doing, expected="it running", found="no such guest" if found is None else str(found.state))
    if not found.persistent or found.autostart is not autostart:
        what = f"persistent: {found.persistent}, starts with its host: {found.autostart}"
        raise Failed(doing, expected=f"it persistent, starting with its host: {autostart}", found=what)
    swap.tell_where(name)
    swap.looked.add(name)


# -- and back ---------------------------------------------------------------------------------------------------


def return_home(swap: GuestMigration) -> None:
    swap.clear_return()  # of an update that was cut off
    if is_on_its_way_back(swap):  # too late to break it off: it has arrived meanwhile
        return
    settings, migrate = swap.settings, swap.ports.config.migrate
    order = MigrationOrder(
        uri=migrate.uri,
        migrate_uri=migrate.migrate_uri,
        crossing=CROSSINGS[settings.transport],
        there=_with_emulators(swap, swap.peer, swap.tree.emulator, swap.notes.emulator),
        auto_converge=migrate.auto_converge,
        trusts_storage=swap.notes.trusts_storage,
        disks=tuple(disk.target for disk in swap.notes.copies),
    )
    begin_overwriting(swap)
    swap.running_seen = None
    cross(swap, swap.returning, order, stoppable=False)


def is_on_its_way_back(swap: GuestMigration) -> bool:
    return swap.stand(swap.returning) in (Stand.ARRIVED, Stand.GOES_ON)


def resume_at_home(swap: GuestMigration) -> None:
    go_on(swap, HOME)


def is_home(swap: GuestMigration) -> bool:
    here = swap.there(HOME)
    return here is not None and here.state.active and not here.comes_in and not here.has_arrived


def look_at_home(swap: GuestMigration) -> None:
    swap.host(HOME).put_autostart(swap.uuid, on=swap.notes.autostart)
    _looked_at(swap, HOME, autostart=swap.notes.autostart)
    here = swap.there(HOME)
    if here is not None and here.emulator not in ("", swap.tree.emulator):
        raise Failed(f"{swap.name}: looking at it", expected=f"it on {swap.tree.emulator}", found=here.emulator)


def was_looked_at_home(swap: GuestMigration) -> bool:
    return HOME in swap.looked
