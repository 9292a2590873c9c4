"""Guests that ran in the bench, as samples; see samples/README.md."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from hostagent.arguments.command_line import CommandLine
from hostagent.facts import (
    Component,
    Freshness,
    Guest,
    GuestState,
    Host,
    QemuProcess,
    QemuTree,
    RamFile,
    RamRoom,
    Version,
)
from hostagent.hypervisor.domain_xml import changed_since_boot, read_definition
from hostagent.planning.guest_policy import Policies
from hostagent.policy import PolicyPart

SAMPLES = Path(__file__).parent / "samples"
# Guests of which nothing stops a handover.
GOOD = (
    *("q35-plain", "q35-none", "q35-2cpu", "q35-rich", "pc-plain", "pc-none", "pc-2cpu", "pc-rich"),
    *("pc-noacpi", "pc-timers", "cpu-hostmodel", "cpu-custom", "tuned", "hot-before", "commit-after"),
    *("q35-pty", "noreboot", "vnc", "vcpu-current", "numa"),
    *("q35-rich-11.3", "pc-rich-11.3", "pc-timers-11.3", "cpu-hostmodel-11.3"),
)
ALL = tuple(sorted(path.stem for path in SAMPLES.glob("*.xml")))


def argv(name: str) -> list[str]:
    """The guest's argument list."""
    found: list[str] = json.loads((SAMPLES / f"{name}.argv.json").read_text("utf-8"))
    return found


def xml(name: str) -> str:
    """The guest's live XML."""
    return (SAMPLES / f"{name}.xml").read_text("utf-8")


TREE = QemuTree("system", Version(7, 2, 22), "1:7.2+dfsg-7", "/usr/bin/qemu-system-x86_64")


def guest(name: str = "q35-rich", **changed: Any) -> Guest:
    """The facts of a guest that ran in the bench."""
    line = CommandLine.parse(argv(name))
    plain = Guest(
        name=name,
        uuid="03848e6a-a2b0-5eae-9a24-fb77046ecdbd",
        domain_id=5,
        state=GuestState.RUNNING,
        state_reason="",
        persistent=True,
        autostart=False,
        definition=read_definition(xml(name)),
        process=QemuProcess(100, 1, TREE.emulator, exe_deleted=False, argv=line.argv),
        qemu=TREE,
        ram_files=tuple(RamFile(ram.id, ram.path, 1, 2, ram.size) for ram in line.ram_backends()),
        drift=changed_since_boot(xml(name), line),
    )
    return dataclasses.replace(plain, **changed)


def host(**changed: Any) -> Host:
    """A host with one guest that nothing stops."""
    plain = Host(
        hostname="h1",
        kernel="6.1",
        boot_id="b",
        libvirt=Version(9, 0),
        libvirt_uri="qemu:///system",
        qemu=(TREE,),
        guests=(guest(),),
        lock_manager="",
        memory_backing_dir="/var/lib/libvirt/qemu/ram",
        ram_room=RamRoom("tmpfs", unpromised=64 << 30, available=64 << 30),
    )
    return dataclasses.replace(plain, **changed)


def component(name: str) -> Component:
    """Something of the host that is outdated."""
    return Component(name, "1", "2", Freshness.OUTDATED)


def within(seconds: float) -> Policies:
    """What holds for guests if all that is said is how long they may stand still."""
    return Policies(asked=PolicyPart(budget_seconds=seconds))
