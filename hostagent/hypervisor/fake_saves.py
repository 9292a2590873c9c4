"""The fake's libvirt as it saves guests and brings them back: virDomainSave, virDomainRestoreFlags, and the hook.

A save without the RAM is the moment of the guest's life that it can go on from; the RAM stays in its files, as long as
somebody else has a name for them: libvirt removes its own.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hostagent.errors import Failed, HostagentError
from hostagent.hypervisor import RunState, fake_image
from hostagent.hypervisor.fake_physics import (
    POLLING,
    RIGHT_TAP,
    THROTTLES,
    begins_from_image,
    dies,
    make_ram,
    ram_paths,
    ram_sizes,
    stands_still,
)
from hostagent.hypervisor.fake_qemu import booted
from hostagent.hypervisor.fake_world import LIBVIRT, FaultKind, GuestLife, Process, State, View, World
from hostagent.libvirt_files.held_definition import NAMESPACE
from hostagent.libvirt_files.state_image import IGNORE_SHARED, RamBlock, StateImage

VRAM = RamBlock("0000:00:01.0/vga.vram", 16 << 20, 0xFD000000)
MACHINE = "pc-q35-7.2"
PIDS = 100  # of a process and its threads
TAP = 31


def writes_state(world: World, state: State, guest: GuestLife, path: Path, xml: str) -> None:
    """Write the guest's state; the image is not marked as whole yet."""
    process = state.processes[state.daemon.views[guest.uuid].monitor_pid]
    was_running = process.state is RunState.RUNNING
    stands_still(state, process, RunState.PAUSED)
    kept = process.capabilities[IGNORE_SHARED]
    if not kept:
        state.violated(f"{guest.name} was saved with all of its RAM")
    argv = world.argv(process)
    ram = [RamBlock(Path(name).name, size, 0) for name, size in zip(ram_paths(argv), ram_sizes(argv), strict=True)]
    data = fake_image.image(
        xml=xml,
        machine=MACHINE,
        capabilities=(IGNORE_SHARED,) if kept else (),
        ram=(*ram, VRAM),
        rest=_sealed(_Saved(guest.uuid, process.holds)),
        was_running=was_running,
        padding=512,
    )
    try:
        path.write_bytes(fake_image.unfinished(data))
    except OSError as error:
        raise Failed(f"{guest.name}: saving it", found=str(error)) from error
    state.images[str(path)] = [guest.uuid, process.holds]


def guest_of_image(path: Path) -> str:
    """The uuid of the guest that was saved; "" for one that cannot be read."""
    try:
        return _unsealed(StateImage.parse(path.read_bytes()).rest).uuid
    except (OSError, HostagentError, ValueError):
        return ""


def restores(world: World, state: State, path: Path) -> None:
    """Start the guest of an image; it stands still."""
    doing = f"restoring a guest from {path}"
    try:
        image = StateImage.parse(path.read_bytes())
        told = _unsealed(image.rest)
    except (OSError, HostagentError, ValueError) as error:
        state.violated(f"a damaged image was loaded: {path.name}")
        raise Failed(doing, found=str(error)) from error
    guest, life = state.guests[told.uuid], told.life
    if guest.uuid in state.daemon.views:
        raise Failed(doing, found=f"domain '{guest.name}' is already active")
    if life != guest.life:
        state.violated(f"{guest.name} was loaded from a state that is past")
    emulator = re.search(r"<emulator>(.*?)</emulator>", image.xml)
    assert emulator is not None  # noqa: S101 - it came out of here
    process = starts(world, state, guest, image.xml, emulator[1])
    if image.capabilities or state.take(FaultKind.RESTORE_FAILS, guest.uuid):
        dies(world, state, process, tidily=True)
        guest.off = "failed"
        raise Failed(doing, found="operation failed: load of migration failed: Invalid argument")
    begins_from_image(state, process, life)


def starts(world: World, state: State, guest: GuestLife, xml: str, emulator: str) -> Process:
    """A QEMU for it, as libvirt starts one; Failed when the hook refuses."""
    pid = state.next_pid
    state.next_pid += PIDS
    guest.domain_id = 1 + max(other.domain_id for other in state.guests.values())
    asks_hook(world, guest, xml)
    shape = json.loads(world.text(guest.shape))
    words = {"NAME": guest.name, "UUID": guest.uuid, "ID": str(guest.domain_id), "PID": str(pid)}
    words |= {f"VCPU{n}": str(pid + 1 + n) for n in range(shape["vcpus"])}
    words["ROOT"] = str(world.root)
    argv = (emulator, *(filled(word, words) for word in shape["argv"][1:]))
    record = filled(shape["record"], words)
    record = re.sub(r"<emulator>.*?</emulator>", f"<emulator>{emulator}</emulator>", record)
    record = re.sub(r"state='\w+' reason='\w+'", "state='paused' reason='migration'", record, count=1)
    process = process_of(world, state, guest, argv=argv, record=record, pid=pid)
    (world.libvirt_run / f"{guest.name}.xml").write_text(record)
    (world.libvirt_run / f"{guest.name}.pid").write_text(f"{pid}\n")
    opened = make_ram(argv)
    process.ram = [[device, inode] for _, device, inode, _ in opened]
    # Where it is looked for from now on; what it is does not change by that.
    guest.ram = [(now[0], *was[1:]) for now, was in zip(opened, guest.ram, strict=True)]
    process.throttles, process.polling = dict(THROTTLES), dict(POLLING)
    state.taps |= dict.fromkeys(process.taps.values(), RIGHT_TAP)
    marked = NAMESPACE in xml
    state.daemon.views[guest.uuid] = View(pid, pid, "paused", "migration", emulator, marked=marked)
    return process


def process_of(
    world: World, state: State, guest: GuestLife, *, argv: tuple[str, ...], record: str, pid: int
) -> Process:
    """The process that libvirt has started for a guest, with its sockets, tap and log."""
    sockets = re.findall(r"path='([^']*(?:monitor\.sock|guest_agent\.0))'", record)
    for name in sockets:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(str(pid))
    log = next((int(n) for word in argv for n in re.findall(r"^set=0,fd=(\d+)", word)), 27)
    taps = {TAP: f"vnet{guest.domain_id - 1}"} if "-netdev" in argv else {}
    xml = world.text(guest.xml)
    process = booted(
        Process(
            pid,
            start_ticks=pid,
            guest=guest.uuid,
            argv=world.keep_text(json.dumps(argv)),
            state=RunState.PRELAUNCH,
            vcpus=json.loads(world.text(guest.shape))["vcpus"],
            client=LIBVIRT,
            sockets=sockets,
            taps=taps,
            pipes={log + 1: f"log-{guest.name}"},
            fdsets={0: log + 1},
            links_down=["net0"] * ("<link state='down'/>" in xml),
            reboot="shutdown" if "<on_reboot>destroy<" in xml else "reset",
        )
    )
    state.processes[pid] = process
    return process


def asks_hook(world: World, guest: GuestLife, xml: str) -> None:
    """dist/libvirt-hook-qemu, at `prepare begin`."""
    try:
        lines = (world.held / f"{guest.name}.held").read_text().splitlines()
    except OSError:
        return
    told = [line.partition(" ")[::2] for line in lines]
    words = dict(told)
    if f'"{words["token"]}"' not in xml:
        found = f"it is held by hostagent (update {words['update']}), and its RAM with it: run hostagent recover"
        raise Failed(f"starting {guest.name}", found=f"Hook script execution failed: {guest.name}: {found}")
    folder = Path(words["folder"]) / f"{guest.domain_id}-{words['name']}"
    folder.mkdir()
    for word, value in told:
        if word == "ram":
            file, _, link = value.partition(" ")
            try:
                (folder / file).hardlink_to(link)
            except OSError as error:
                raise Failed(f"starting {guest.name}", found=f"its RAM cannot be put at {folder / file}") from error


def filled(text: str, words: Mapping[str, str]) -> str:
    """With each @WORD@ replaced."""
    return re.sub(r"@([A-Z]+\d*)@", lambda found: words[found[1]], text)


@dataclass(frozen=True)
class _Saved:
    """What is in an image instead of devices' state."""

    uuid: str
    life: int


def _sealed(told: _Saved) -> bytes:
    body = json.dumps(vars(told)).encode()
    return f"{zlib.crc32(body):08x}".encode() + body


def _unsealed(rest: bytes) -> _Saved:
    crc, body = rest[13:21], rest[21:]  # after the end of the RAM's section
    if f"{zlib.crc32(body):08x}".encode() != crc:
        raise ValueError("a damaged state")
    return _Saved(**json.loads(body))
