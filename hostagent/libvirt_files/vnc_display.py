"""Where a guest's VNC display is, from libvirt's runtime record, which has the password too; pure.

A new QEMU cannot listen where the old one does, and nothing of a display crosses with the state.
"""

from dataclasses import dataclass, field

from hostagent.libvirt_files.xml_spans import Element


@dataclass(frozen=True)
class VncDisplay:
    """A display as libvirt has set it up."""

    address: str  # of the host, "" when it is a unix socket
    port: int
    socket: str
    password: str = field(default="", repr=False)
    valid_until: str = ""  # of the password, as libvirt writes it: 2030-01-31T12:00:00

    @property
    def place(self) -> str:
        """For people and for comparing: "127.0.0.1:5900" or a path."""
        return self.socket or f"{self.address}:{self.port}"


def vnc_display(devices: Element) -> VncDisplay | None:
    """The display below <devices>; None when there is none, or nobody can connect to it."""
    found = [item for item in devices.named("graphics") if item.get("type") == "vnc"]
    if len(found) != 1:
        return None
    graphics = found[0]
    listens = graphics.named("listen")
    password, until = graphics.get("passwd"), graphics.get("passwdValidTo")
    for listen in listens[:1]:
        if listen.get("type") == "socket":
            return VncDisplay("", 0, listen.get("socket") or graphics.get("socket"), password, until)
        address, port = listen.get("address") or graphics.get("listen"), graphics.get("port")
        if listen.get("type") in ("address", "network") and port.isdecimal():
            return VncDisplay(address or "127.0.0.1", int(port), "", password, until)
    return None
