"""The fake's migrations between hosts, as libvirt carries them out peer to peer (qemu_migration.c of 9.0).

One goes on by itself, a little at each look at it, and whether or not anybody waits. The guest stands still when it has
arrived. Where libvirt does not hear that it has, it lets the guest go on where it was: the copy then stands still.
"""

from __future__ import annotations

import json
import re

from hostagent.hypervisor import RunState
from hostagent.hypervisor.fake_disks import copied
from hostagent.hypervisor.fake_physics import (
    POLLING,
    RIGHT_TAP,
    THROTTLES,
    begins_to_run,
    dies,
    libvirt_cleans_up,
    make_ram,
    stands_still,
)
from hostagent.hypervisor.fake_qemu import booted
from hostagent.hypervisor.fake_saves import PIDS, filled, process_of
from hostagent.hypervisor.fake_world import LIBVIRT, FaultKind, Passing, PeerView, Process, State, View, World

HOME = ""
LOOKS = 3  # until a guest's RAM has crossed


def goes_on(world: World, state: State, uuid: str) -> None:
    """A little further, or to its end."""
    passing = state.passing.get(uuid)
    if passing is None or passing.done:
        return
    source = runs_on(state, uuid, passing.source)
    copy = state.processes.get(passing.copy)
    if source is None:
        ends(world, state, uuid, "the guest ended")
    elif copy is None or not copy.alive or not is_up(state, passing.target) or not is_up(state, passing.source):
        ends(world, state, uuid, "Lost connection to destination host")
    elif passing.left > 0:
        _crosses(world, state, uuid, passing)
    elif copy.state is RunState.INMIGRATE:
        _switches(world, state, uuid, source, copy)
    else:
        _leaves(world, state, uuid, source)


def runs_on(state: State, uuid: str, host: str) -> Process | None:
    """The QEMU that the libvirt of that host has for the guest."""
    view = state.peers[host].views.get(uuid) if host else state.daemon.views.get(uuid)
    found = state.processes.get(view.pid) if view else None
    return found if found is not None and found.alive else None


def is_up(state: State, host: str) -> bool:
    return state.peers[host].alive if host else state.daemon.up


def begins(world: World, state: State, uuid: str, passing: Passing) -> None:
    """The other host gets ready: a QEMU that waits for what crosses."""
    guest = state.guests[uuid]
    pid = state.next_pid
    state.next_pid += PIDS
    shape = json.loads(world.text(guest.shape))
    guest.domain_id = 1 + max(other.domain_id for other in state.guests.values())
    words = {"NAME": guest.name, "UUID": uuid, "ID": str(guest.domain_id), "PID": str(pid), "ROOT": str(world.root)}
    words |= {f"VCPU{n}": str(pid + 1 + n) for n in range(shape["vcpus"])}
    argv = (passing.emulator, *(filled(word, words) for word in shape["argv"][1:]))
    if passing.target:
        made = Process(pid, pid, uuid, world.keep_text(json.dumps(argv)), RunState.INMIGRATE)
        made.client, made.host = LIBVIRT, passing.target
        state.processes[pid] = booted(made)
        state.peers[passing.target].views[uuid] = PeerView(pid, "paused", "migration", passing.emulator)
    else:
        _prepares_home(world, state, uuid, argv=argv, record=filled(shape["record"], words), pid=pid)
    process = state.processes[pid]
    process.throttles, process.polling = dict(THROTTLES), dict(POLLING)
    passing.copy = pid
    state.passing[uuid] = passing


def _prepares_home(world: World, state: State, uuid: str, *, argv: tuple[str, ...], record: str, pid: int) -> None:
    guest = state.guests[uuid]
    record = re.sub(r"<emulator>.*?</emulator>", f"<emulator>{argv[0]}</emulator>", record)
    record = re.sub(r"state='\w+' reason='\w+'", "state='paused' reason='migration'", record, count=1)
    process = process_of(world, state, guest, argv=argv, record=record, pid=pid)
    process.state = RunState.INMIGRATE
    (world.libvirt_run / f"{guest.name}.xml").write_text(record)
    (world.libvirt_run / f"{guest.name}.pid").write_text(f"{pid}\n")
    process.copied = make_ram(argv)
    process.ram = [[device, inode] for _, device, inode, _ in process.copied]
    state.taps |= dict.fromkeys(process.taps.values(), RIGHT_TAP)
    state.daemon.views[uuid] = View(pid, pid, "paused", "migration", argv[0])


def _crosses(world: World, state: State, uuid: str, passing: Passing) -> None:
    if passing.disks_left and state.take(FaultKind.DISKS_BREAK, uuid):
        ends(world, state, uuid, "migration of disk vda failed: Input/output error")
    elif state.take(FaultKind.MIGRATE_BREAKS, uuid):
        ends(world, state, uuid, "unable to write to socket: Connection reset by peer")
    elif state.take(FaultKind.MIGRATE_DIES_EARLY, uuid):
        peer_dies(world, state, passing.source or passing.target)
        ends(world, state, uuid, "Lost connection to destination host")
    elif passing.hangs or (passing.disks_left and state.take(FaultKind.DISKS_HANG, uuid)):
        passing.hangs = True
    elif state.take(FaultKind.MIGRATE_STALLS, uuid):
        pass
    elif passing.disks_left:
        passing.disks_left -= 1
    else:
        passing.left -= 1


def _switches(world: World, state: State, uuid: str, source: Process, copy: Process) -> None:
    passing = state.passing[uuid]
    if source.state is not RunState.RUNNING:
        source.was_running = False
    else:
        source.was_running = True
        stands_still(state, source, RunState.POSTMIGRATE)
    source.disks = False
    _believes(state, uuid, passing.source, "paused", "migration")
    if state.take(FaultKind.MIGRATE_DIES_LATE, uuid):
        peer_dies(world, state, passing.source or passing.target)
        ends(world, state, uuid, "Lost connection to destination host")
        return
    copy.state, copy.holds = RunState.PAUSED, source.holds
    copied(state, uuid, passing.target)
    _believes(state, uuid, passing.target, "paused", "user")
    if passing.target:
        state.peers[passing.target].defined.append(uuid)
    else:
        state.guests[uuid].persistent, state.guests[uuid].autostart = True, False
    if state.take(FaultKind.FINISH_UNHEARD, uuid):
        passing.copy = 0  # nobody looks after it any more
        ends(world, state, uuid, "Lost connection to destination host")


def _leaves(world: World, state: State, uuid: str, source: Process) -> None:
    """The guest is known there alone from now on."""
    passing, guest = state.passing[uuid], state.guests[uuid]
    source.client = ""
    dies(world, state, source, tidily=True)
    if passing.source:
        state.peers[passing.source].views.pop(uuid)
        state.peers[passing.source].defined.remove(uuid)
        copy = state.processes[passing.copy]
        guest.ram, copy.copied = copy.copied or guest.ram, []
    else:
        libvirt_cleans_up(world, state, uuid, "")
        guest.persistent = guest.autostart = False
        guest.ram = []
    guest.ended = guest.off = ""
    passing.done = True
    passing.answered = not state.take(FaultKind.MIGRATE_UNHEARD, uuid)
    if state.take(FaultKind.MIGRATE_DIES_AFTER, uuid):
        peer_dies(world, state, passing.source or passing.target)


def ends(world: World, state: State, uuid: str, why: str) -> None:
    """It breaks off: the guest goes on where it was, if libvirt can see to that, and what was to be it is ended."""
    passing = state.passing[uuid]
    passing.done, passing.error = True, why
    copy = state.processes.get(passing.copy)
    if copy is not None and (copy.state is RunState.INMIGRATE or not copy.alive):
        copy.client = ""
        dies(world, state, copy, tidily=True)
        if passing.target:
            state.peers[passing.target].views.pop(uuid, None)
        elif state.daemon.up:
            ended, off = state.guests[uuid].ended, state.guests[uuid].off
            libvirt_cleans_up(world, state, uuid, "")
            state.guests[uuid].ended, state.guests[uuid].off = ended, off
    source = runs_on(state, uuid, passing.source)
    if source is None or not is_up(state, passing.source):
        return
    if source.state is RunState.POSTMIGRATE and source.was_running:
        begins_to_run(state, source)
        _believes(state, uuid, passing.source, "running", "migration canceled")


def peer_dies(world: World, state: State, name: str) -> None:
    """Its power is cut."""
    for process in state.living():
        if process.host == name:
            process.client = ""
            dies(world, state, process, tidily=False)
    state.peers[name].alive = False
    state.peers[name].views.clear()


def _believes(state: State, uuid: str, host: str, what: str, reason: str) -> None:
    view = state.peers[host].views.get(uuid) if host else state.daemon.views.get(uuid)
    if view is not None:
        view.state, view.reason = what, reason
