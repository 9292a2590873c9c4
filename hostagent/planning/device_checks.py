"""Devices of the live definition that the handover does not take, or whose settings it would lose; pure.

What the argument list shows is judged from there too (`tested_options.LIMITS`, with the same words); here are
the names that people know, and what no argument shows.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from hostagent.facts import Device, Guest
from hostagent.plan import Blocker, Reason

_RESTART = "live-migrate or restart the guest"
_DETACH = "detach it, or " + _RESTART


@dataclass(frozen=True)
class DeviceRule:
    """A kind of device that stops a handover."""

    applies: Callable[[Device], bool]
    reason: Reason
    expected: str
    hint: str


def spice_display(device: Device) -> bool:
    """Two processes cannot hold one SPICE listener, and nobody can open it again."""
    return device.element == "graphics" and device.kind == "spice"


def spice_channel(device: Device) -> bool:
    """The far end of the channel is the SPICE server inside QEMU."""
    return device.kind == "spicevmc"


def display(device: Device) -> bool:
    """VNC's listener moves from the old QEMU to the new one; nobody has tried others."""
    return device.element == "graphics" and device.kind not in ("spice", "vnc")


def passthrough(device: Device) -> bool:
    """State held inside a passed-through device cannot be saved."""
    return device.element == "hostdev" or bool(device.marks & {"hostdev", "vdpa", "nvme"})


def vhost_user(device: Device) -> bool:
    """Its other process serves one QEMU."""
    return "vhost-user" in device.marks


def virtiofs(device: Device) -> bool:
    """virtiofsd ends with its QEMU, and the guest's open files with it."""
    return device.element == "filesystem" and device.kind == "virtiofs"


def tpm(device: Device) -> bool:
    """swtpm ends with its QEMU."""
    return device.element == "tpm"


def user_network(device: Device) -> bool:
    """Connections inside slirp and passt end with their QEMU."""
    return device.element == "interface" and bool(device.marks & {"user", "passt"})


def untried_network(device: Device) -> bool:
    """The argument list does not tell a bridge's tap from macvtap or others that nobody has tried."""
    named_elsewhere = device.marks & {"user", "passt", "vhost-user", "hostdev", "vdpa"}
    tried = device.kind in ("bridge", "network", "ethernet")
    return device.element == "interface" and not tried and not named_elsewhere


DEVICE_RULES: tuple[DeviceRule, ...] = (
    DeviceRule(spice_display, Reason.SPICE, "no SPICE display", "use <graphics type='vnc'/> or none"),
    DeviceRule(spice_channel, Reason.SPICE, "no SPICE channel", "remove the SPICE channels"),
    DeviceRule(display, Reason.GRAPHICS, "a VNC display or none", f"use <graphics type='vnc'/>: {_RESTART}"),
    DeviceRule(passthrough, Reason.PASSTHROUGH, "no passed-through device", _DETACH),
    DeviceRule(vhost_user, Reason.VHOST_USER, "no vhost-user device", _DETACH),
    DeviceRule(virtiofs, Reason.VIRTIOFS, "no virtiofs folder", "unmount and detach it"),
    DeviceRule(tpm, Reason.TPM, "no TPM", _RESTART),
    DeviceRule(
        user_network,
        Reason.USER_NETWORK,
        "a network interface with a tap",
        "use a bridge or a libvirt network",
    ),
    DeviceRule(
        untried_network,
        Reason.OPTION,
        "a bridge, network or ethernet interface",
        f"use a bridge or a libvirt network, or {_RESTART}",
    ),
)


def refused_devices(guest: Guest) -> tuple[Blocker, ...]:
    """Every device that a rule applies to."""
    return tuple(
        Blocker(rule.reason, rule.expected, named(device), rule.hint)
        for device in guest.definition.devices
        for rule in DEVICE_RULES
        if rule.applies(device)
    )


# (element, mark) -> reason, what was expected, what to do.
MARKS: Mapping[tuple[str, str], tuple[Reason, str, str]] = {
    ("disk", "throttling"): (Reason.SETTING_NOT_CARRIED, "no throttle filters", f"use <iotune>: {_RESTART}"),
    ("disk", "shareable"): (
        Reason.OPTION,
        "a disk with a write lock",
        f"nothing but the lock would stop a second copy of the guest: {_RESTART}",
    ),
    ("disk", "transient"): (Reason.OPTION, "a disk that keeps what is written", _RESTART),
    ("disk", "reservations"): (Reason.OPTION, "a disk without reservations", _RESTART),
    ("disk", "encryption"): (Reason.OPTION, "a disk that QEMU does not decrypt", _RESTART),
    ("disk", "slices"): (Reason.OPTION, "a disk that is a whole image", _RESTART),
    ("memballoon", "free-page-reporting"): (Reason.OPTION, "a balloon without page reporting", _RESTART),
}


def marked_devices(guest: Guest) -> tuple[Blocker, ...]:
    """Settings made after start, which neither arguments nor state hold, and settings nobody has tried."""
    return tuple(
        Blocker(reason, expected, f"{mark} on {named(device)}", hint)
        for device, mark in _marks(guest)
        for reason, expected, hint in filter(None, (MARKS.get((device.element, mark)),))
    )


def _marks(guest: Guest) -> Iterator[tuple[Device, str]]:
    return ((device, mark) for device in guest.definition.devices for mark in sorted(device.marks))


def named(device: Device) -> str:
    """A device as people find it in the XML: "interface bridge net0"."""
    return " ".join(filter(None, (device.element, device.kind, device.alias or device.detail)))
