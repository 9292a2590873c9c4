"""Where a guest could migrate to, and every reason why not; pure.

Of the peers that nothing is against the first is taken, and before it one that has the wanted QEMU already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hostagent.facts import Destinations, Disk, Guest, Peer, QemuTree
from hostagent.plan import Blocker, GuestPlan, Method, Prediction, Reason, Way
from hostagent.planning.guest_policy import GuestPolicy, policy_blockers
from hostagent.planning.migrate_checks import migrate_blockers
from hostagent.planning.prediction import Past, over_budget, predict_migration
from hostagent.planning.storage_checks import disks_to_copy, file_bytes, storage_blockers

OVERHEAD_BYTES = 256 << 20  # what a QEMU needs beside its guest's RAM


@dataclass(frozen=True)
class Leaving:
    """What is planned already: a guest of so many bytes goes to that peer, with copies of so many bytes of disks."""

    peer: str
    memory: int
    disks: int = 0


def leaving_of(planned: Sequence[GuestPlan], guests: Sequence[Guest], where: Destinations) -> tuple[Leaving, ...]:
    """The guests of a plan that migrate; `guests` are the host's."""
    memory = {guest.uuid: guest.definition.memory for guest in guests}
    size = {(disk.guest, disk.path): file_bytes(disk) for disk in where.disks}
    return tuple(
        Leaving(one.peer, memory.get(one.uuid, 0), sum(size.get((one.uuid, path), 0) for path in one.copied_disks))
        for one in planned
        if one.peer
    )


@dataclass(frozen=True)
class _Look:
    """What the reasons against one peer are asked of."""

    guest: Guest
    peer: Peer
    to: QemuTree | None
    comes_back: bool
    leaving: Sequence[Leaving]
    disks: Sequence[Disk] | None  # of guests, that can be copied or not; None: nothing is


def migrate_way(
    guest: Guest,
    own: GuestPolicy,
    where: Destinations,
    past: Past | None = None,
    *,
    to: QemuTree | None,
    leaving: Sequence[Leaving] = (),
) -> Way:
    """How the guest would migrate. `to`: what it shall run on in the end; None: that does not matter."""
    against = migrate_blockers(guest)
    disks = where.disks if where.copies_storage else None
    looks = [_Look(guest, peer, to, where.comes_back, leaving, disks) for peer in _preferred(where.peers, to)]
    of_peers = [(look.peer.name, tuple(_against(look))) for look in looks]
    fits = [look.peer for look, (_, found) in zip(looks, of_peers, strict=True) if not found]
    if not where.peers:
        against += (Blocker(Reason.PEER, "a host to migrate to", "no [[peer]] in the settings", "docs/migration.md"),)
    elif not fits:
        against += tuple(blocker for _, found in of_peers for blocker in found)
    if where.peers and where.comes_back and not where.home_uri:
        against += (_NO_WAY_BACK,)
    if guest.loses_writes and not where.lossy_emulation:
        against += (_FORGETS,)
    against += policy_blockers(guest, own, Method.LIVE_MIGRATE)
    predicted: Prediction | None = predict_migration(guest.uuid, past) if past is not None else None
    if not against and predicted and (too_long := over_budget(predicted, own.policy.budget_seconds)):
        against = (too_long,)
    if not fits:
        return Way(Method.LIVE_MIGRATE, None, predicted, against)
    copied = tuple(disk.path for disk in disks_to_copy(guest, fits[0], disks or ()))
    return Way(Method.LIVE_MIGRATE, None, predicted, against, peer=fits[0].name, copied_disks=copied)


_NO_WAY_BACK = Blocker(
    Reason.PEER,
    "how the peers reach this host's libvirt, for the way back",
    "no uri in [migrate]",
    "set it, or return = false in [migrate]",
)

_FORGETS = Blocker(
    Reason.BINARY,
    "KVM, or a QEMU from 9.0 on, for a migration",
    "an emulating one that forgets some of what the guest writes meanwhile",
    "reboot the guest instead; lossy_emulation = true in [migrate] takes the risk",
)


def peer_blockers(
    guest: Guest, peer: Peer, *, to: QemuTree | None, comes_back: bool, disks: Sequence[Disk] | None = None
) -> tuple[Blocker, ...]:
    """Every reason why it cannot go to that one. disks: as they are, if those that it does not see are copied there."""
    return tuple(_against(_Look(guest, peer, to, comes_back, (), disks)))


def _preferred(peers: Sequence[Peer], to: QemuTree | None) -> list[Peer]:
    return sorted(peers, key=lambda peer: to is None or peer.qemu != to.version)


def _against(look: _Look) -> Iterator[Blocker]:
    if look.peer.fault:
        yield Blocker(Reason.PEER, f"{look.peer.name} to answer", look.peer.fault, f"virsh -c '{look.peer.uri}' list")
        return
    for check in _CHECKS:
        yield from check(look)


def _version(look: _Look) -> Iterator[Blocker]:
    """QEMU takes the state of an older one; that of a newer one it may misread."""
    peer, name = look.peer.qemu, look.peer.name
    before = look.guest.qemu.version if look.guest.qemu else None
    if peer is None or before is None:
        yield Blocker(Reason.PEER_VERSION, f"to know the QEMU of the guest and of {name}", "that one is not known")
        return
    if peer < before:
        yield Blocker(Reason.PEER_VERSION, f"a QEMU on {name} not older than the guest's {before}", f"{peer}")
    if look.to is None:
        return
    if look.comes_back and peer > look.to.version:
        hint = "or let it stay there: return = false in [migrate]"
        expected = f"a QEMU on {name} not newer than {look.to.version}, to come back from"
        yield Blocker(Reason.PEER_VERSION, expected, f"{peer}", hint)
    if not look.comes_back and peer < look.to.version:
        yield Blocker(Reason.PEER_VERSION, f"a QEMU on {name} not older than {look.to.version}, to stay", f"{peer}")


def _machine(look: _Look) -> Iterator[Blocker]:
    wanted = look.guest.definition.virtualisation, look.guest.definition.machine
    if wanted not in look.peer.machines:
        known = {kind for kind, _ in look.peer.machines}
        found = "not among its machine types" if wanted[0] in known else f"no guests of type {wanted[0]}"
        yield Blocker(Reason.PEER_MACHINE, f"machine type {wanted[1]} of {wanted[0]} on {look.peer.name}", found)


def _processor(look: _Look) -> Iterator[Blocker]:
    for uuid, why in look.peer.misfits:
        if uuid == look.guest.uuid:
            yield Blocker(Reason.PEER_CPU, f"a processor on {look.peer.name} that the guest's runs on", why)


def _room(look: _Look) -> Iterator[Blocker]:
    peer, coming = look.peer, [one for one in look.leaving if one.peer == look.peer.name]
    needs = look.guest.definition.memory + OVERHEAD_BYTES
    left = peer.memory_left - sum(one.memory + OVERHEAD_BYTES for one in coming)
    if needs > left:
        yield Blocker(
            Reason.PEER_ROOM, f"{_mib(needs)} of memory on {peer.name}", f"{_mib(max(left, 0))}" + _with(coming)
        )
    if peer.max_guests and len(peer.guests) + len(coming) >= peer.max_guests:
        found = f"{len(peer.guests)}" + _with(coming)
        yield Blocker(Reason.PEER_ROOM, f"fewer than {peer.max_guests} guests on {peer.name} (max_guests)", found)


def _mib(size: int) -> str:
    return f"{size >> 20} MiB"


def _with(coming: Sequence[Leaving]) -> str:
    return f" with the {len(coming)} that go there before it" if coming else ""


def _identity(look: _Look) -> Iterator[Blocker]:
    for name, uuid in sorted(look.peer.guests):
        if name == look.guest.name or uuid == look.guest.uuid:
            expected = f"no guest of that name or uuid on {look.peer.name}"
            hint = f"virsh -c '{look.peer.uri}' domstate {uuid}"
            yield Blocker(Reason.PEER, expected, f"{name} ({uuid})", hint)


def _networks(look: _Look) -> Iterator[Blocker]:
    """Bridges cannot be asked for: libvirt says so itself before it begins."""
    for device in look.guest.definition.devices:
        wanted = device.element == "interface" and device.kind == "network"
        if wanted and device.source not in look.peer.networks:
            expected = f"libvirt's network {device.source} active on {look.peer.name}"
            yield Blocker(Reason.PEER_NETWORK, expected, "no such network there")


def _storage(look: _Look) -> Iterator[Blocker]:
    coming = sum(one.disks for one in look.leaving if one.peer == look.peer.name)
    yield from storage_blockers(look.guest, look.peer, look.disks, coming)


_CHECKS: tuple[Callable[[_Look], Iterator[Blocker]], ...] = (
    _version,
    _machine,
    _processor,
    _room,
    _identity,
    _networks,
    _storage,
)
