"""Things plugged into a guest while it runs, with what the guest has to do for it."""

import time
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import libvirt

from tests.guests.watched import Watched

SECONDS = 300.0
_USE = (
    "for block in /sys/devices/system/memory/memory*/state; do"
    " grep -q offline $block && echo online_movable > $block; done; true"
)
_TOTAL = "while read name number rest; do test $name = MemTotal: && echo $number; done < /proc/meminfo; true"


def inside(guest: Watched, script: str) -> str:
    """What a shell in the guest says."""
    return guest.proof.run_in_guest("/bin/sh", "-c", script).strip()


def wait_for(guest: Watched, condition: str) -> None:
    """Wait until a shell in the guest finds it true."""
    deadline = time.monotonic() + SECONDS
    while inside(guest, f"if {condition}; then echo yes; fi") != "yes":
        assert time.monotonic() < deadline, condition
        time.sleep(0.2)


def plug_memory(guest: Watched, mib: int, *, node: int) -> None:
    """A DIMM, which the guest uses from then on, and can give back."""
    memory = Element("memory", model="dimm")
    target = SubElement(memory, "target")
    SubElement(target, "size", unit="MiB").text = str(mib)
    SubElement(target, "node").text = str(node)
    before = int(inside(guest, _TOTAL))
    guest.domain.attachDeviceFlags(ElementTree.tostring(memory, encoding="unicode"), libvirt.VIR_DOMAIN_AFFECT_LIVE)
    deadline = time.monotonic() + SECONDS
    while int(inside(guest, f"{_USE}; {_TOTAL}")) < before + (mib << 10):
        assert time.monotonic() < deadline, "expected the guest to use its new memory"
        time.sleep(0.2)
