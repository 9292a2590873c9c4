"""Why a guest cannot migrate to another host, whichever that is; pure.

libvirt makes the arguments anew on the other host and carries its own settings over. Only what has been tried is let
through; what the other host has to have is asked of each, see migrate_way.py.
"""

from collections.abc import Callable, Iterator, Mapping

from hostagent.facts import Device, Guest, GuestState, RamBacking
from hostagent.plan import Blocker, Reason
from hostagent.planning.checks import checkpoints, job
from hostagent.planning.device_checks import (
    display,
    named,
    passthrough,
    spice_channel,
    spice_display,
    tpm,
    user_network,
    vhost_user,
    virtiofs,
)

Found = Blocker | tuple[Blocker, ...] | None

_REBOOT = "reboot the guest instead"
_RAM = (RamBacking.SHARED_FILE, RamBacking.MEMFD, RamBacking.ANONYMOUS)
_FOR = ", for a migration"

# Elements of <devices> that have a state which migrates, or none.
_ELEMENTS = frozenset(
    (
        *("disk", "controller", "interface", "serial", "console", "channel", "input", "graphics", "video", "audio"),
        *("memballoon", "rng", "watchdog", "panic", "vmcoreinfo", "memory", "hub"),
    )
)
_DISKS = frozenset(("file", "block", "network"))
_NETWORKS = frozenset(("bridge", "network"))
_MARKS = frozenset(("shareable", "transient", "mirror", "reservations", "encryption", "slices", "throttling", "filter"))


def state(guest: Guest) -> Found:
    """A guest that its owner paused arrives paused, and nobody could tell whether it has gone on there."""
    if guest.state is GuestState.RUNNING:
        return None
    return Blocker(Reason.STATE, "a guest that runs" + _FOR, str(guest.state), "virsh resume, for the update")


def persistent(guest: Guest) -> Found:
    """That libvirt knows it no more is what tells that it has left."""
    if guest.persistent:
        return None
    return Blocker(Reason.STATE, "a persistent guest" + _FOR, "a transient one", "virsh define")


def snapshots(guest: Guest) -> Found:
    """What libvirt knows of them stays behind, and is lost as the guest leaves."""
    if not guest.snapshots:
        return None
    hint = "delete them (virsh snapshot-delete; --metadata keeps the files)"
    return Blocker(Reason.FEATURE, "no snapshots" + _FOR, f"{guest.snapshots}", hint)


def ram(guest: Guest) -> Found:
    """Huge pages have to be set aside on the other host, which nobody can ask it."""
    if guest.definition.ram in _RAM:
        return None
    return Blocker(
        Reason.RAM_FILE,
        f"RAM that is {' or '.join(_RAM)}" + _FOR,
        f"{guest.definition.ram} RAM",
        _REBOOT,
    )


def firmware(guest: Guest) -> Found:
    """Its variables are in a file of this host's."""
    if not guest.definition.own_firmware:
        return None
    return Blocker(Reason.FEATURE, "no firmware with variables of its own" + _FOR, "<nvram>, or pflash", _REBOOT)


def features(guest: Guest) -> Found:
    """Elements that nobody has tried."""
    return tuple(
        Blocker(Reason.FEATURE, "only elements that are known" + _FOR, f"<{name}>", _REBOOT)
        for name in sorted(guest.definition.features)
    )


# Reason, what it applies to, what was expected.
_REFUSED: tuple[tuple[Reason, Callable[[Device], bool], str], ...] = (
    (Reason.PASSTHROUGH, passthrough, "no passed-through device"),
    (Reason.VHOST_USER, vhost_user, "no vhost-user device"),
    (Reason.VIRTIOFS, virtiofs, "no virtiofs folder"),
    (Reason.TPM, tpm, "no TPM"),
    (Reason.SPICE, spice_display, "no SPICE display"),
    (Reason.SPICE, spice_channel, "no SPICE channel"),
    (Reason.GRAPHICS, display, "a VNC display or none"),
    (Reason.USER_NETWORK, user_network, "a network interface with a tap"),
)


def devices(guest: Guest) -> tuple[Blocker, ...]:
    """Every device that does not migrate, or that nobody has tried."""
    return tuple(
        blocker
        for device in guest.definition.devices
        for blocker in (_refused(device) or _untried(device) or _marked(device),)
        if blocker is not None
    )


def _refused(device: Device) -> Blocker | None:
    for reason, applies, expected in _REFUSED:
        if applies(device):
            return Blocker(reason, expected + _FOR, named(device), _REBOOT)
    return None


_KINDS: Mapping[str, tuple[Reason, frozenset[str], str]] = {
    "disk": (Reason.STORAGE, _DISKS, "a disk that is a file, a block device or on a network"),
    "interface": (Reason.OPTION, _NETWORKS, "an interface on a bridge or a libvirt network"),
}


def _untried(device: Device) -> Blocker | None:
    if device.element not in _ELEMENTS:
        return Blocker(Reason.OPTION, "only devices that are known" + _FOR, named(device), _REBOOT)
    if device.element in _KINDS:
        reason, tried, expected = _KINDS[device.element]
        if device.kind not in tried:
            return Blocker(reason, expected + _FOR, named(device), _REBOOT)
    return None


def _marked(device: Device) -> Blocker | None:
    found = sorted(device.marks & _MARKS)
    if not found:
        return None
    return Blocker(Reason.OPTION, "a device without such a setting" + _FOR, f"{found[0]} on {named(device)}", _REBOOT)


GUEST_CHECKS: tuple[Callable[[Guest], Found], ...] = (
    state,
    persistent,
    job,
    snapshots,
    checkpoints,
    ram,
    firmware,
    features,
    devices,
)


def migrate_blockers(guest: Guest) -> tuple[Blocker, ...]:
    """Every reason why the guest can migrate nowhere; none twice."""
    return tuple(dict.fromkeys(_all(guest)))


def _all(guest: Guest) -> Iterator[Blocker]:
    for check in GUEST_CHECKS:
        found = check(guest)
        if found is not None:
            yield from found if isinstance(found, tuple) else (found,)
