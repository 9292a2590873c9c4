"""The fake's laws of nature: what QEMU processes do when they run, move their state, or die; and what must never be.

The laws are QEMU's (migration/, system/runstate.c, monitor/qmp-cmds.c of 7.2 and 10.0), as far as an update meets
them. Each `must never` that happens is kept in `State.violations`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from hostagent.errors import Failed
from hostagent.hypervisor import MoveStatus, RunState
from hostagent.hypervisor.fake_disks import writes
from hostagent.hypervisor.fake_world import LIBVIRT, FaultKind, GuestLife, Process, State, View, World
from hostagent.libvirt_files.state_image import finished

STATE_BYTES = 350_000  # of device state
DEFAULT_TAP = "10 0"  # what a starting QEMU leaves a tap with, until it loads state
RIGHT_TAP = "12 25"
THROTTLES, POLLING = {"virtio-disk0": 100}, {"balloon0": 5}  # as the owner of every guest has set them
MINUTE_NS = 60_000_000_000
SHUTDOWN_NS = 2_000_000_000  # what a guest takes to shut itself down
_SAME_ON_BOTH = "x-ignore-shared"
_BALLAST = "hostagent-ballast"


def time_passes(world: World, state: State) -> None:
    """What goes on without being asked."""
    for uuid, view in list(state.daemon.views.items()):
        if not view.marks_next:
            continue
        waits = world.holds_up(uuid) if view.held_up_by == os.getpid() else _exists(view.held_up_by)
        if not waits:
            ends_saved(world, state, uuid, view)
    for process in state.living():
        if process.waits_for and not _exists(process.waits_for):
            process.alive = False  # its pipe closed: nothing was started
        if process.client not in ("", LIBVIRT) and not _exists(int(process.client.partition("/")[0])):
            process.client = ""
        if process.state is RunState.RUNNING:
            executed = state.guests[process.guest].executed
            executed[str(process.pid)] = executed.get(str(process.pid), 0) + 1
        if process.ends_at_ns and process.state is RunState.RUNNING and state.now_ns >= process.ends_at_ns:
            dies(world, state, process, tidily=True)
            state.guests[process.guest].ended = state.guests[process.guest].off = "shut down"
    for process in state.living():
        peer = state.processes.get(process.peer)
        if process.move is MoveStatus.UNDER_WAY and peer is not None:
            _cross(world, state, process, peer)


def look_for_violations(world: World, state: State) -> None:
    """Promises that hold at any moment."""
    for guest in state.guests.values():
        living = state.living(guest.uuid)
        running = [one.pid for one in living if one.state is RunState.RUNNING]
        if len(running) > 1:
            state.violated(f"{guest.name} runs in processes {running} at once")
        if sum(one.disks for one in living) > 1:
            state.violated(f"the disks of {guest.name} are open for writing twice")
        saved = [
            path for path, told in state.images.items() if told == [guest.uuid, guest.life] and Path(path).exists()
        ]
        if (saved or any(one.holds == guest.life and not one.host for one in living)) and not _named(world, guest):
            state.violated(f"the RAM of {guest.name} was discarded while the guest could go on")


def _copies(image: Path) -> Iterator[Path]:
    """An image, and what was made of it."""
    return image.parent.glob(f"{image.stem}.*")


def _named(world: World, guest: GuestLife) -> bool:
    return all(
        _is(path, device, inode) or any(_is(pin, device, inode) for pin in (world.root / "ram" / "hostagent").glob("*"))
        for path, device, inode, _ in guest.ram
    )


def _is(path: str | Path, device: int, inode: int) -> bool:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (device, inode)


def _exists(pid: int) -> bool:
    """Whether a real process exists; a zombie does not."""
    if pid == os.getpid():
        return True
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}


# -- running ----------------------------------------------------------------------------------------------------------


def begins_to_run(state: State, process: Process) -> None:
    """From here on this process is the guest."""
    guest = state.guests[process.guest]
    if process.copied:
        guest.ram, process.copied = process.copied, []
    if state.modules == "gone":
        state.violated(f"{guest.name} went on without what the host needs for that")
    if process.holds != guest.life:
        state.violated(f"{guest.name} went on in process {process.pid} from a state that is past")
    if process.ram != [[device, inode] for _, device, inode, _ in guest.ram]:
        state.violated(f"{guest.name} went on in process {process.pid} with other RAM")
    writes(state, process)
    guest.life += 1
    process.holds = guest.life
    process.state, process.disks, process.resumed_ns = RunState.RUNNING, True, state.now_ns
    guest.executed.setdefault(str(process.pid), 0)
    if guest.stands_since_ns:
        guest.lag_ns += state.now_ns - guest.stands_since_ns
        guest.stands_since_ns = 0
    for tap in process.taps.values():
        state.taps[tap] = RIGHT_TAP


def begins_from_image(state: State, process: Process, life: int) -> None:
    """It has loaded what a save wrote, and stands still."""
    process.state, process.disks, process.holds = RunState.PAUSED, True, life


def stands_still(state: State, process: Process, becomes: RunState) -> None:
    """Its vCPUs stop."""
    if process.state is RunState.RUNNING:
        process.stopped_ns = state.now_ns
        state.guests[process.guest].stands_since_ns = state.now_ns
    process.state = becomes


def go_on(world: World, state: State, process: Process) -> None:
    """QMP's `cont`; raises Failed where QEMU refuses."""
    doing = f"asking QEMU {process.pid}: cont"
    if process.state is RunState.RUNNING:
        return
    if process.state is RunState.INMIGRATE:
        process.autostart = True
        return
    if process.state is RunState.FINISH_MIGRATE:
        raise Failed(doing, found="Migration is not finalized yet")
    others = [one for one in state.living(process.guest) if one.disks and one is not process]
    if others:
        raise Failed(doing, found='Failed to get "write" lock')
    begins_to_run(state, process)
    if state.take(FaultKind.CONT_EXITS, process.guest):
        dies(world, state, process, tidily=False)


def dies(world: World, state: State, process: Process, *, tidily: bool) -> None:
    """The process ends; tidily: it unlinks the names that its sockets were bound to, whatever is there now."""
    if not process.alive:
        return
    stands_still(state, process, RunState.OTHER)
    process.alive = process.disks = False
    connected, process.client = process.client == LIBVIRT, ""
    if tidily:
        for name in process.sockets:
            Path(name).unlink(missing_ok=True)
    guest = state.guests[process.guest]
    left = [one for one in state.living(process.guest) if one.holds == guest.life]
    if len(left) == 1 and left[0].copied:  # the copy is all there is now
        guest.ram, left[0].copied = left[0].copied, []
    for sender in state.living(process.guest):
        if sender.peer == process.pid and sender.move is MoveStatus.UNDER_WAY:
            _failed_to_send(state, sender, "Broken pipe")
    if connected:
        for uuid, view in list(state.daemon.views.items()):
            if view.monitor_pid == process.pid and not view.marks_next:
                libvirt_cleans_up(world, state, uuid, "its QEMU ended while libvirt looked after it")


def ends_saved(world: World, state: State, uuid: str, view: View) -> None:
    """libvirt marks the image as whole, ends the QEMU, and cleans up after it."""
    path, process = Path(view.marks_next), state.processes[view.monitor_pid]
    with suppress(OSError):
        path.write_bytes(finished(path.read_bytes()))
    process.client = ""  # libvirt has heard the last of it
    if not process.stays:  # which libvirt does not mind
        dies(world, state, process, tidily=True)
    libvirt_cleans_up(world, state, uuid, "saved")
    state.guests[uuid].off = "saved"


def libvirt_cleans_up(world: World, state: State, uuid: str, why: str) -> None:
    """What libvirt does once it believes that a guest is gone (qemuProcessStop)."""
    guest = state.guests[uuid]
    state.daemon.views.pop(uuid, None)
    shutil.rmtree(world.ram_dir(guest), ignore_errors=True)  # whatever is in it
    for name in (f"{guest.name}.xml", f"{guest.name}.pid"):
        (world.libvirt_run / name).unlink(missing_ok=True)
    shutil.rmtree(world.lib_dir(guest), ignore_errors=True)
    guest.ended, guest.off = why, "crashed"


# -- starting ---------------------------------------------------------------------------------------------------------


def becomes_qemu(world: World, state: State, process: Process) -> None:
    """It has executed QEMU, which opens what its argument list names."""
    process.waits_for = 0
    argv = world.argv(process)
    guest = state.guests[process.guest]
    for tap in process.taps.values():
        state.taps[tap] = DEFAULT_TAP
    if state.take(FaultKind.NEW_EXITS, process.guest):
        state.words[guest.name] = "could not start: out of everything"
        return dies(world, state, process, tidily=True)
    if state.take(FaultKind.NEW_REFUSES_MACHINE, process.guest):
        state.words[guest.name] = "unsupported machine type"
        return dies(world, state, process, tidily=True)
    process.state = RunState.INMIGRATE if "-incoming" in argv else RunState.PRELAUNCH
    process.autostart = "-S" not in argv
    process.hung = state.take(FaultKind.NEW_HANGS, process.guest)
    process.ram = [list(_open_ram(Path(path))) for path in ram_paths(argv)]
    return None


@cache
def ram_paths(argv: tuple[str, ...]) -> tuple[str, ...]:
    """The RAM's files, as the argument list names them."""
    objects = [json.loads(word) for word in argv if word.startswith('{"qom-type":"memory-backend-file"')]
    return tuple(str(one["mem-path"]) for one in objects)


@cache
def ram_sizes(argv: tuple[str, ...]) -> tuple[int, ...]:
    """Their sizes, bytes."""
    return tuple(int(size) for word in argv for size in re.findall(r'"memory-backend-file".*"size":(\d+)', word))


def make_ram(argv: tuple[str, ...]) -> list[tuple[str, int, int, int]]:
    """The RAM's files, as a starting guest gets them; what is there already is left alone."""
    made = []
    for name, size in zip(ram_paths(argv), ram_sizes(argv), strict=True):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with path.open("xb") as file:
                file.truncate(size)
        with suppress(OSError):
            path.chmod(0o644)
        found = path.stat()
        made.append((name, found.st_dev, found.st_ino, size))
    return made


def _open_ram(path: Path) -> tuple[int, int]:
    """As QEMU does: a file that is not there is made, and is then empty RAM."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    found = os.fstat(fd)
    os.close(fd)
    return found.st_dev, found.st_ino


# -- moving the state -------------------------------------------------------------------------------------------


def _cross(world: World, state: State, old: Process, new: Process) -> None:
    """One crossing, seen to its end, unless it hangs."""
    if new.hung or not new.alive:
        return None
    name = state.guests[old.guest].name
    if old.bitmap and not new.ballast:
        state.words[name] = f"Error: block device {_BALLAST} not found"
        return dies(world, state, new, tidily=True)
    if old.bitmap and not _copied(world, state, old, new):
        return None
    old.was_running = old.state is RunState.RUNNING
    if old.capabilities[_SAME_ON_BOTH] != new.capabilities[_SAME_ON_BOTH]:
        state.words[name] = "Capability x-ignore-shared is off, but received capability is on"
        dies(world, state, new, tidily=True)  # which ends the crossing on the old one, too
    elif state.take(FaultKind.LOAD_EXITS_EARLY, old.guest):
        state.words[name] = "load of migration failed: Invalid argument"
        dies(world, state, new, tidily=True)
    elif state.take(FaultKind.LOAD_HANGS_EARLY, old.guest):
        stands_still(state, old, RunState.FINISH_MIGRATE)
        old.disks, new.hung = False, True
    else:
        _sends_all(world, state, old, new)
        if state.take(FaultKind.LOAD_EXITS_LATE, old.guest):
            state.words[name] = "load of migration failed: Invalid argument"
            dies(world, state, new, tidily=True)
        elif state.take(FaultKind.LOAD_HANGS_LATE, old.guest):
            new.hung = True
        else:
            _loads(world, state, old, new)
    return None


def _copied(world: World, state: State, old: Process, new: Process) -> bool:
    """One look at a copy that has ballast: whether the rest of it may cross now."""
    total = sum(ram_sizes(world.argv(new)))
    if state.take(FaultKind.COPY_BREAKS, old.guest):
        state.words[state.guests[old.guest].name] = "out of memory"
        dies(world, state, new, tidily=True)
        return False
    if old.ram_left < 0:
        old.ram_left = total
    elif not state.take(FaultKind.COPY_SLOW, old.guest):
        old.ram_left = max(0, old.ram_left - total // 2)
    if old.ram_left or old.parameters["downtime-limit"] == 0:
        return False
    return old.state is not RunState.RUNNING or not state.take(FaultKind.COPY_STALLS, old.guest)


def _sends_all(world: World, state: State, old: Process, new: Process) -> None:
    stands_still(state, old, RunState.POSTMIGRATE)
    if state.take(FaultKind.LOAD_SLOW, old.guest):
        state.now_ns += MINUTE_NS
    old.disks, old.move = False, MoveStatus.COMPLETED
    copies = state.take(FaultKind.LOAD_COPIES, old.guest) or not old.capabilities[_SAME_ON_BOTH]
    old.moved_bytes = STATE_BYTES + copies * sum(ram_sizes(world.argv(new)))


def _loads(world: World, state: State, old: Process, new: Process) -> None:
    new.move, new.listens = MoveStatus.COMPLETED, False
    new.holds, new.moved_bytes = old.holds, old.moved_bytes
    new.state, new.bitmap = RunState.PAUSED, old.bitmap
    if not old.capabilities[_SAME_ON_BOTH]:
        argv = world.argv(new)
        files = zip(ram_paths(argv), new.ram, ram_sizes(argv), strict=True)
        new.copied = [(path, device, inode, size) for path, (device, inode), size in files]
    for tap in new.taps.values():
        state.taps[tap] = RIGHT_TAP
    if not new.capabilities["late-block-activate"]:
        new.disks = True
    if new.autostart:
        begins_to_run(state, new)


def _failed_to_send(state: State, old: Process, why: str) -> None:
    """The old one goes on by itself, if it ran before."""
    old.move, old.move_error, old.ram_left = MoveStatus.FAILED, why, -1
    if old.state in {RunState.RUNNING, RunState.PAUSED}:
        return  # it was not stopped for it yet
    if old.was_running:
        begins_to_run(state, old)
    else:
        old.state, old.disks = RunState.PAUSED, True
