"""What of QEMU's argument list a handover is known not to take, with the reason that a person knows it by.

Looked at before `tested_options`: "SPICE" beats "an untested option".
"""

from dataclasses import dataclass

from hostagent.plan import Reason


@dataclass(frozen=True)
class Limit:
    """Something known that the handover does not take, with a reason of its own."""

    option: str
    kind: str  # a pattern; "" for options without kinds
    reason: Reason
    expected: str
    hint: str = ""
    property: str = ""  # "": the option or the kind as a whole
    values: str = ".*"  # the property's values that are meant


SHARED_FILE_HINT = (
    "set <memoryBacking><source type='file'/><access mode='shared'/></memoryBacking> and restart the guest"
)
_LATER = "a later version takes it; shut the guest down or live-migrate it instead"

# Looked at before the allow-list: a reason that a person knows beats "option".
LIMITS: tuple[Limit, ...] = (
    Limit("spice", "", Reason.SPICE, "no SPICE display", "use <graphics type='vnc'/> or none"),
    Limit("chardev", "spice.*", Reason.SPICE, "no SPICE channel", "remove the SPICE channels"),
    Limit("audiodev", "spice", Reason.SPICE, "no SPICE sound", "use <audio type='none'/>"),
    Limit(
        "cpu",
        "max",
        Reason.OPTION,
        "a CPU model that means the same to every QEMU",
        "use <cpu mode='host-model'/> or a named model and restart the guest",
    ),
    Limit("display", "(?!none$).*", Reason.GRAPHICS, "no graphical display", _LATER),
    Limit(
        "device", "qxl|qxl-vga", Reason.SPICE, "VGA, cirrus-vga or virtio-vga", "use <model type='virtio'/> or 'vga'"
    ),
    Limit(
        "device",
        r".*-gl|virtio-gpu.*|bochs-display|ramfb|vmware-svga",
        Reason.GRAPHICS,
        "VGA, cirrus-vga or virtio-vga",
        _LATER,
    ),
    Limit(
        "device",
        r"vfio-.*|usb-host|scsi-generic|.*vdpa.*",
        Reason.PASSTHROUGH,
        "no passed-through device",
        "detach it, or live-migrate or restart the guest",
    ),
    Limit("netdev", "vhost-vdpa", Reason.PASSTHROUGH, "no passed-through device", "detach it"),
    Limit("device", "vhost-user-fs.*", Reason.VIRTIOFS, "no virtiofs folder", "unmount and detach it"),
    Limit("device", "vhost-user-(?!fs).*", Reason.VHOST_USER, "no vhost-user device", "detach it"),
    Limit("netdev", "vhost-user", Reason.VHOST_USER, "no vhost-user device", "use a bridge"),
    Limit("device", "tpm-.*", Reason.TPM, "no TPM", "live-migrate or restart the guest"),
    Limit("tpmdev", ".*", Reason.TPM, "no TPM", "live-migrate or restart the guest"),
    Limit(
        "netdev",
        "user|stream|dgram|socket|l2tpv3|vde",
        Reason.USER_NETWORK,
        "a network interface with a tap",
        "connections inside slirp and passt end with their QEMU: use a bridge or a libvirt network",
    ),
    Limit(
        "object",
        "memory-backend-file",
        Reason.RAM_NOT_SHARED,
        "RAM in a shared file",
        SHARED_FILE_HINT,
        property="share",
        values="off",
    ),
    Limit(
        "object",
        "memory-backend-.*",
        Reason.RAM_DISCARD,
        "RAM that its QEMU keeps as it quits",
        "remove <discard/> from <memoryBacking> and restart the guest",
        property="discard-data",
        values="on",
    ),
    Limit(
        "object",
        "memory-backend-file",
        Reason.RAM_FILE,
        "RAM that is filled as the guest uses it",
        "remove <allocation mode='immediate'/> and huge pages from <memoryBacking> and restart the guest",
        property="prealloc",
        values="on",
    ),
    Limit(
        "object",
        "(sev|tdx|s390-pv).*",
        Reason.FEATURE,
        "no launch security",
        "encrypted memory cannot be mapped by another process",
    ),
)
