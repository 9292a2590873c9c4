"""QEMU: the builds that guests run on, and the system's own, on which they would be started."""

from __future__ import annotations

from collections import Counter

from hostagent.facts import Component, Freshness, Host, QemuTree


def look(host: Host) -> Component:
    """Every build that guests run on; outdated when one of them is not the system's own."""
    own, running = host.system_qemu, [guest for guest in host.guests if guest.process is not None]
    installed = _named(own) if own is not None else ""
    if not running:
        return Component("qemu", "", installed, Freshness.NOT_THERE)
    counted = Counter(_named(guest.qemu) if guest.qemu else "not known" for guest in running)
    shown = ", ".join(f"{name} x {count}" for name, count in sorted(counted.items()))
    if own is None or any(guest.qemu is None for guest in running):
        return Component("qemu", shown, installed, Freshness.UNKNOWN)
    current = all(guest.qemu is not None and guest.qemu.is_build_of(own) for guest in running)
    return Component("qemu", shown, installed, Freshness.CURRENT if current else Freshness.OUTDATED)


def _named(tree: QemuTree) -> str:
    return tree.package or str(tree.version)
