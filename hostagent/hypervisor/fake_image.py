"""Save images as libvirt and QEMU write them: see libvirt_files/state_image.py."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from hostagent.libvirt_files.state_image import IGNORE_SHARED, RamBlock

PADDING = 64 * 1024


def name(text: str) -> bytes:
    """As QEMU writes one."""
    return bytes((len(text),)) + text.encode()


def image(
    *,
    xml: str,
    machine: str,
    capabilities: Sequence[str],
    ram: Sequence[RamBlock],
    rest: bytes,
    was_running: bool = False,
    cookie: str = "",
    padding: int = PADDING,
) -> bytes:
    """One with these contents; `rest` is what follows the list of RAM blocks."""
    text, more = xml.encode() + b"\0", cookie.encode() + b"\0" if cookie else b""
    length = len(text) + len(more) + padding
    header = struct.pack("<5I", 2, length, was_running, 0, len(text) if cookie else 0)
    data = b"LibvirtQemudSave" + header + bytes(56) + (text + more).ljust(length, b"\0")
    data += b"QEVM" + struct.pack(">IBI", 3, 7, len(machine)) + machine.encode()
    if capabilities:
        data += b"\x05" + name("configuration/capabilities") + struct.pack(">II", 1, len(capabilities))
        data += b"".join(map(name, capabilities))
    data += struct.pack(">BI", 1, 2) + name("ram") + struct.pack(">IIQ", 0, 4, sum(one.size for one in ram) | 4)
    for block in ram:
        data += name(block.name) + struct.pack(">Q", block.size)
        if IGNORE_SHARED in capabilities:
            data += struct.pack(">Q", block.address or 0)
    return data + struct.pack(">QBI", 16, 0x7E, 2) + rest


def unfinished(data: bytes) -> bytes:
    """An image before libvirt has marked it as whole."""
    return data.replace(b"LibvirtQemudSave", b"LibvirtQemudPart", 1)
