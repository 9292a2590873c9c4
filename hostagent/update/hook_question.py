"""Whether libvirt's daemon asks hostagent's hook: it looks for hooks only as it starts."""

from __future__ import annotations

from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from hostagent.errors import Failed, Refused
from hostagent.update.held import Held, release, tell_hook
from hostagent.update.subject import Ports

NAME = "hostagent-hook-question"


def require_hook(ports: Ports) -> None:
    """Raises Refused unless a start that the hook must refuse is refused; nothing is left of the attempt."""
    tell_hook(Held(NAME, "none", ports.secret(), "/nonexistent", NAME, 0, 0, ()), ports.config.paths.held)
    try:
        started = ports.libvirt.start_transient(_smallest_guest(NAME))
    except Failed as refused:
        if "it is held by hostagent" in str(refused):
            return
        raise
    finally:
        forget_question(ports)
    ports.libvirt.destroy(started.uuid)
    raise Refused(
        "asking whether libvirt asks hostagent's hook",
        expected="a start that it refuses to be refused",
        found="it was not asked",
        hint="hostagent setup, then restart libvirtd: it looks for hooks only as it starts",
    )


def forget_question(ports: Ports) -> None:
    """Also of an updater that died in the middle of it."""
    release(NAME, ports.config.paths.held)


def _smallest_guest(name: str) -> str:
    domain = Element("domain", type="qemu")
    SubElement(domain, "name").text = name
    SubElement(domain, "memory", unit="MiB").text = "1"
    SubElement(SubElement(domain, "os"), "type", arch="x86_64").text = "hvm"
    return ElementTree.tostring(domain, encoding="unicode")
