"""The handover: a new QEMU takes a guest over from the old one, with the RAM where it is.

Read the tables at the end first. Each step function does one thing; the `is_done` beside it asks the world. Before the
commit (`resume`) everything can be undone; from it on the old QEMU never runs again.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from hostagent.command_line import CommandLine, DescriptorKind
from hostagent.errors import Failed, HostagentError, NeedsOperator, OutcomeUnknown, Refused
from hostagent.facts import Guest, GuestState
from hostagent.hypervisor import LaunchOrder, Monitor, MoveStatus, ProcessId, RunState
from hostagent.hypervisor.domain_xml import live_differences
from hostagent.plan import Blocker
from hostagent.runtime_record import RuntimeRecord
from hostagent.update import agreement, files
from hostagent.update.pause import Deadline, measured
from hostagent.update.saga import Step
from hostagent.update.swap import GuestSwap, HostSwap, Notes, Pin, Socket

QUIT_SECONDS = 10.0  # a QEMU that was asked to leave flushes its disks; then it is killed
KILL_SECONDS = 10.0
SETTLE_SECONDS = 5.0  # a failed crossing on the old one ends by itself once the new one is gone

# What the old one needs while the state crosses: `downtime-limit` (ms) and `max-bandwidth` (bytes/s; 0 has no limit
# only for the rate limiter) keep QEMU from waiting for a better moment; there is next to nothing to send.
_CROSSING_PARAMETERS = {"downtime-limit": 2000, "max-bandwidth": 1 << 40}
_KEEP_RAM = {"x-ignore-shared": True, "events": True}
_LOCK_LATE = {"late-block-activate": True}


# -- prepare: everything is written down, the RAM is pinned -----------------------------------------------------------


def prepare(swap: GuestSwap) -> None:
    guest = _guest_as_planned(swap)
    if guest.process is None or guest.domain_id is None:
        raise Failed(f"{swap.name}: preparing", expected="a running QEMU", found="none")
    record_path = Path(swap.ports.config.paths.libvirt_run) / f"{swap.name}.xml"
    record_bytes = files.read_private(record_path)
    record = RuntimeRecord.parse(record_bytes)
    if record.pid != guest.process.pid:
        raise Failed(f"{swap.name}: reading {record_path}", expected=f"pid {guest.process.pid}", found=str(record.pid))
    _refuse(swap, record.obstacles())
    swap.begin_notes(_first_notes(swap, guest, record, record_path))
    files.write_private(Path(swap.notes.kept_record), record_bytes)
    for pin in swap.notes.pins:
        files.pin(pin)


def _first_notes(swap: GuestSwap, guest: Guest, record: RuntimeRecord, record_path: Path) -> Notes:
    process, domain_id = guest.process, guest.domain_id
    assert process is not None and domain_id is not None  # noqa: S101 - prepare() has looked
    line = CommandLine.parse(process.argv)
    old = swap.ports.qemu.identify(process.pid)
    uses = line.descriptors()
    taps = tuple(use.number for use in uses if use.kind is DescriptorKind.TAP)
    logs = agreement.log_descriptors(swap.name, uses, swap.ports.qemu.log_pipes(old))
    channels = {f"char{device.alias}": device.source for device in guest.definition.devices if device.element == "channel"}
    channels["charmonitor"] = record.monitor_path
    token = swap.ports.token()
    return Notes(
        old=old,
        domain_id=domain_id,
        was_running=guest.state is GuestState.RUNNING,
        record=str(record_path),
        kept_record=str(Path(swap.ports.config.paths.state) / "held" / f"{swap.update}-{swap.uuid}.xml"),
        monitor=record.monitor_path,
        pins=tuple(
            Pin(ram.path, str(files.pin_folder(Path(ram.path)) / f"{token}-{number}"), ram.device, ram.inode, ram.size)
            for number, ram in enumerate(guest.ram_files)
        ),
        sockets=tuple(
            Socket(use.number, channels[use.owner_id], files.temporary_socket(channels[use.owner_id], token, use.number))
            for use in uses
            if use.kind is DescriptorKind.LISTENER
        ),
        taps=dict(swap.ports.qemu.tap_settings(old, taps)),
        argv=line.handed_over(swap.tree.emulator).argv,
        taken_over={**{number: number for number in taps}, **logs},
        vhosts=tuple(use.number for use in uses if use.kind is DescriptorKind.VHOST),
        pid_file=str(record_path.with_suffix(".pid")),
        new_pid_file=str(record_path.with_suffix(f".{token}-new")),
        old_pid_file=str(record_path.with_suffix(f".{token}-old")),
        flags=agreement.flags(swap, guest, record),
        live_xml=swap.ports.libvirt.live_xml(swap.uuid),
    )


def is_pinned(swap: GuestSwap) -> bool:
    return all(files.is_pinned(pin) for pin in swap.notes.pins) and Path(swap.notes.kept_record).exists()


def unpin(swap: GuestSwap) -> None:
    """Give up what keeps the RAM; only when the guest's own file is certain again."""
    if swap.saved is None:
        return
    for pin in swap.notes.pins:
        files.unpin(pin)
    for path in (swap.notes.kept_record, swap.notes.old_pid_file):
        Path(path).unlink(missing_ok=True)


# -- start: the new QEMU waits beside the old one ---------------------------------------------------------------------


def start_new(swap: GuestSwap) -> None:
    notes = swap.notes
    launch = swap.ports.qemu.launch(
        LaunchOrder(
            old=notes.old,
            argv=notes.argv,
            listeners={entry.number: (Path(entry.temporary), Path(entry.path)) for entry in notes.sockets},
            taken_over=notes.taken_over,
            vhosts=notes.vhosts,
            pid_file=Path(notes.new_pid_file),
        )
    )
    swap.note(new=launch.process)
    with swap.ports.qemu.keeping_taps(notes.old, notes.taps):
        launch.go()
        try:
            monitor = swap.new_monitor()
        except HostagentError as error:
            raise _died(swap, error) from error
    state = monitor.run_state()
    if state is not RunState.INMIGRATE:
        raise Failed(f"{swap.name}: starting QEMU {swap.tree.version}", expected="it to wait for the state", found=state)
    monitor.set_capabilities({**_KEEP_RAM, **_LOCK_LATE})
    swap.close_monitors()
    _no_differences(swap)


def _died(swap: GuestSwap, error: HostagentError) -> Failed:
    """Why a new QEMU is not there: its own last words, if it left any."""
    words = swap.ports.qemu.last_words(swap.name)
    doing = f"{swap.name}: starting QEMU {swap.tree.version}"
    if swap.new_is_alive():
        return Failed(doing, expected="an answer from its monitor", found=str(error))
    return Failed(doing, expected="it to wait for the state", found=f"it left: {words}" if words else f"it left ({error})")


def new_one_waits(swap: GuestSwap) -> bool:
    return swap.new_is_alive() and all(Path(entry.temporary).exists() for entry in swap.notes.sockets)


def stop_new(swap: GuestSwap) -> None:
    """End the new QEMU, see it gone, put the taps back as they were. Any number of times."""
    if swap.saved is None:
        return
    _end_new(swap)
    for path in (*(entry.temporary for entry in swap.notes.sockets), swap.notes.new_pid_file):
        Path(path).unlink(missing_ok=True)
    if swap.old_is_alive():
        swap.ports.qemu.put_taps(swap.notes.old, swap.notes.taps)


def _end_new(swap: GuestSwap) -> None:
    swap.close_monitors()
    if swap.notes.new is not None:
        swap.ports.qemu.kill(swap.notes.new, KILL_SECONDS)


# -- reconcile: with libvirt away, old and new are asked whether they are the same guest ---------------------------------


def reconcile(swap: GuestSwap) -> None:
    old, new = swap.old_monitor(), swap.new_monitor()
    expected = RunState.RUNNING if swap.notes.was_running else RunState.PAUSED
    state = old.run_state()
    if state is not expected:
        raise Failed(f"{swap.name}: asking the old QEMU", expected=expected, found=state, hint="plan again")
    _same_record(swap)
    reasons = old.blocked_reasons()
    if reasons:
        raise Failed(f"{swap.name}: asking the old QEMU", expected="no reason against a migration", found="; ".join(reasons))
    ours, theirs = old.inventory(), new.inventory()
    agreement.same_guest(swap.name, ours, theirs, CommandLine.parse(swap.notes.argv))
    agreement.same_logs(swap, ours, theirs)
    swap.note(capabilities=dict(old.capabilities()), parameters=_settable(old))
    old.set_capabilities(_KEEP_RAM)
    old.set_parameters(_CROSSING_PARAMETERS)
    new.set_capabilities({**_KEEP_RAM, **_LOCK_LATE})
    swap.ports.qemu.place_threads(swap.notes.old, _new(swap), agreement.thread_pairs(swap, ours, theirs))
    _no_differences(swap)


def _settable(monitor: Monitor) -> dict[str, object]:
    """The parameters that a crossing changes, as they are."""
    now = monitor.parameters()
    return {name: now[name] for name in _CROSSING_PARAMETERS if name in now}


def _same_record(swap: GuestSwap) -> None:
    """libvirt may have written the record once more as it left: what it says now is what is kept."""
    now = files.read_private(Path(swap.notes.record))
    if now == files.read_private(Path(swap.notes.kept_record)):
        return
    record = RuntimeRecord.parse(now)
    _refuse(swap, record.obstacles())
    if record.pid != swap.notes.old.pid:
        raise Failed(f"{swap.name}: reading {swap.notes.record}", expected=f"pid {swap.notes.old.pid}", found=str(record.pid))
    files.write_private(Path(swap.notes.kept_record), now)


def are_reconciled(swap: GuestSwap) -> bool:
    return all(
        monitor.capabilities().get(name) is wanted
        for monitor in (swap.old_monitor(), swap.new_monitor())
        for name, wanted in _KEEP_RAM.items()
    )


def give_settings_back(swap: GuestSwap) -> None:
    """Take back what was set on the old QEMU: a kept x-ignore-shared would lose the RAM at its next migration."""
    if swap.saved is None or swap.notes.capabilities is None or not swap.old_is_alive():
        return
    old = swap.old_monitor()
    _set_back(old, swap.notes)
    _check_set_back(swap, old)
    swap.close_monitors()


def _set_back(monitor: Monitor, notes: Notes) -> None:
    known = monitor.capabilities()
    wanted = {name: state for name, state in (notes.capabilities or {}).items() if known.get(name, state) is not state}
    extra = {name: False for name in ("x-ignore-shared", "late-block-activate") if known.get(name) and name not in wanted}
    monitor.set_capabilities({**extra, **wanted})
    monitor.set_parameters(notes.parameters or {})


def _check_set_back(swap: GuestSwap, monitor: Monitor) -> None:
    if monitor.capabilities().get("x-ignore-shared"):
        raise NeedsOperator(
            f"{swap.name}: taking x-ignore-shared back",
            expected="it to be off",
            found="it on: the next save or migration would lose the RAM",
            hint="hostagent recover",
        )


# -- switch: the pause begins; the device state crosses -----------------------------------------------------------------


def switch(swap: GuestSwap) -> None:
    old, new = swap.old_monitor(), swap.new_monitor()
    receiving, sending = socket.socketpair()
    with receiving, sending:
        new.receive_state(receiving.fileno())
        swap.deadline = Deadline.begin(swap.budget_seconds, swap.ports.monotonic)
        swap.ports.watcher.pausing(swap.deadline.ends)
        old.send_state(sending.fileno())
    moved = old.wait_moved(swap.deadline.left)
    if moved.status is not MoveStatus.COMPLETED:
        raise Failed(f"{swap.name}: sending the device state", expected="it to cross", found=moved.error or moved.status)
    arrived = new.wait_moved(swap.deadline.left)
    if arrived.status is not MoveStatus.COMPLETED:
        words = swap.ports.qemu.last_words(swap.name)
        found = "; ".join(part for part in (arrived.error or str(arrived.status), words) if part)
        raise Failed(f"{swap.name}: loading the device state", expected="the new QEMU to take it", found=found)
    _ram_was_kept(swap, moved.ram_bytes)


def _ram_was_kept(swap: GuestSwap, sent: int) -> None:
    """A QEMU that ignored the RAM wrongly, or copied it, must not go on: compare bytes and the files themselves."""
    total = sum(pin.size for pin in swap.notes.pins)
    if sent > total // 8 + (64 << 20):
        raise Failed(f"{swap.name}: keeping the RAM", expected="next to nothing sent", found=f"{sent} of {total} bytes sent")
    mapped = swap.ports.qemu.ram_inodes(_new(swap))
    for pin in swap.notes.pins:
        if (pin.device, pin.inode) not in mapped:
            raise Failed(f"{swap.name}: keeping the RAM", expected=f"{pin.ram} mapped by the new QEMU", found="another file")
    swap.moved_bytes = sent


def loaded_and_paused(swap: GuestSwap) -> bool:
    if not swap.new_is_alive():
        return False
    new = swap.new_monitor()
    loaded = new.move().status is MoveStatus.COMPLETED and new.run_state() is RunState.PAUSED
    if not swap.old_is_alive():
        return loaded
    return loaded and swap.old_monitor().run_state() is RunState.POSTMIGRATE


def resume_old(swap: GuestSwap) -> None:
    """The new one is ended and seen gone; then the old one goes on where it stopped."""
    _end_new(swap)
    old = swap.old_monitor()
    try:
        old.wait_moved(SETTLE_SECONDS)  # a crossing that was cut off ends as failed, and QEMU resumes by itself
    except OutcomeUnknown:
        pass  # it never began
    if swap.notes.was_running:
        old.resume(KILL_SECONDS)
        swap.ports.watcher.running()
        _note_undone_pause(swap, old)


def _note_undone_pause(swap: GuestSwap, old: Monitor) -> None:
    stopped, resumed = old.stopped_at(), old.resumed_at()
    if stopped and resumed:
        pause = measured(stopped, resumed)
        swap.measured({"pause_seconds": pause.seconds, "pause_source": pause.source})


# -- record: what libvirt will believe ----------------------------------------------------------------------------------


def rewrite_record(swap: GuestSwap) -> None:
    notes, new = swap.notes, _new(swap)
    record = RuntimeRecord.parse(files.read_private(Path(notes.kept_record)))
    threads = agreement.recorded_threads(record, swap.new_monitor().inventory().vcpu_threads)
    files.replace(Path(notes.record), record.handed_over(new.pid, threads, swap.tree.emulator, notes.flags))
    files.swap_in(notes.pid_file, new=notes.new_pid_file, old=notes.old_pid_file)
    if swap.deadline is not None:
        swap.deadline.check(f"{swap.name}: before resuming")


def record_names_new(swap: GuestSwap) -> bool:
    return RuntimeRecord.parse(files.read_private(Path(swap.notes.record))).pid == _new(swap).pid


def restore_record(swap: GuestSwap) -> None:
    _end_new(swap)
    notes = swap.notes
    files.replace(Path(notes.record), files.read_private(Path(notes.kept_record)))
    files.swap_back(notes.pid_file, new=notes.new_pid_file, old=notes.old_pid_file)


# -- resume: the commit ---------------------------------------------------------------------------------------------------


def resume_new(swap: GuestSwap) -> None:
    new = swap.new_monitor()
    if swap.notes.was_running:
        new.resume(KILL_SECONDS)
        swap.ports.watcher.running()
        _note_pause(swap, new)
    else:
        swap.ports.watcher.running()


def _note_pause(swap: GuestSwap, new: Monitor) -> None:
    values: dict[str, object] = {"moved_bytes": swap.moved_bytes}
    stopped = swap.old_monitor().stopped_at() if swap.old_is_alive() else None
    resumed = new.resumed_at()
    if stopped and resumed:
        pause = measured(stopped, resumed)
        values |= {"pause_seconds": pause.seconds, "pause_source": pause.source}
    swap.measured(values)


def new_one_runs(swap: GuestSwap) -> bool:
    wanted = RunState.RUNNING if swap.notes.was_running else RunState.PAUSED
    return swap.new_is_alive() and swap.new_monitor().run_state() is wanted


# -- retire: the old one leaves, the new one gets its names and ordinary settings ------------------------------------------


def quit_old(swap: GuestSwap) -> None:
    notes = swap.notes
    if swap.old_is_alive():
        swap.old_monitor().quit()
        if not swap.ports.qemu.wait_gone(notes.old, QUIT_SECONDS):
            swap.ports.qemu.kill(notes.old, KILL_SECONDS)
    swap.close_monitors()
    for entry in notes.sockets:  # only now: a QEMU that leaves unlinks the name its socket was bound to
        if Path(entry.temporary).exists():
            os.rename(entry.temporary, entry.path)  # noqa: PTH104 - replaces what is there, never follows it
    monitor = swap.new_monitor()
    _set_back(monitor, notes)
    monitor.set_capabilities({"events": True})


def old_one_is_gone(swap: GuestSwap) -> bool:
    if swap.old_is_alive() or any(Path(entry.temporary).exists() for entry in swap.notes.sockets):
        return False
    capabilities = swap.new_monitor().capabilities()
    return not capabilities.get("x-ignore-shared") and bool(capabilities.get("events"))


def prove(swap: GuestSwap) -> None:
    """Ask what libvirt will ask, as a fresh client: an error there makes it kill the guest."""
    swap.close_monitors()
    monitor = swap.new_monitor()
    monitor.reconnect_questions()
    swap.close_monitors()


def is_proven(swap: GuestSwap) -> bool:
    record = RuntimeRecord.parse(files.read_private(Path(swap.notes.record)))
    return record.pid == _new(swap).pid and swap.new_is_alive() and all(files.is_named(pin) for pin in swap.notes.pins)


# -- after libvirt is back --------------------------------------------------------------------------------------------------


def look_at_guest(swap: GuestSwap) -> None:
    """What libvirt believes must be true before the pins go."""
    guest = swap.ports.libvirt.guest(swap.uuid)
    wanted = GuestState.RUNNING if swap.notes.was_running else GuestState.PAUSED_BY_OWNER
    doing = f"{swap.name}: looking at it through libvirt"
    if guest is None or guest.process is None:
        raise NeedsOperator(doing, expected=wanted, found="libvirt does not run it", hint=f"virsh dominfo {swap.uuid}")
    if guest.process.pid != _new(swap).pid or guest.domain_id != swap.notes.domain_id:
        raise NeedsOperator(
            doing,
            expected=f"pid {_new(swap).pid}, id {swap.notes.domain_id}",
            found=f"pid {guest.process.pid}, id {guest.domain_id}",
        )
    if guest.state is not wanted:
        raise NeedsOperator(doing, expected=wanted, found=f"{guest.state} ({guest.state_reason})", hint=f"virsh resume {swap.uuid}")
    if not swap.rehearsal:
        changed = live_differences(swap.notes.live_xml, swap.ports.libvirt.live_xml(swap.uuid))
        swap.measured({"xml_differences": list(changed)})
    unpin(swap)


def is_unpinned(swap: GuestSwap) -> bool:
    return not any(Path(pin.link).exists() for pin in swap.notes.pins)


# -- the host's steps ---------------------------------------------------------------------------------------------------------


def detach(host: HostSwap) -> None:
    """Stop libvirt's daemon and keep it out. QEMU processes stay."""
    ports = host.ports
    ports.libvirt.disconnect()
    ports.daemon.stop(ports.config.libvirt.daemon.ready_seconds)
    if not ports.lock.acquire():
        raise Failed("taking libvirt's driver lock", expected="it free, with the daemon stopped", found=f"pid {ports.lock.holder()} has it")
    ports.watcher.hold(ports.lock)


def is_detached(host: HostSwap) -> bool:
    return host.ports.lock.held()


def attach(host: HostSwap) -> None:
    """Give the lock up and start the daemon; it comes back to every guest as after any restart."""
    ports = host.ports
    for swap in host.guests:
        swap.close_monitors()
    ports.lock.release()
    try:
        ports.daemon.start(ports.config.libvirt.daemon.ready_seconds)
    except HostagentError as error:
        raise NeedsOperator(
            "starting libvirt's daemon again", expected="it to answer", found=str(error), hint=ports.daemon.restart_hint()
        ) from error


def is_attached(host: HostSwap) -> bool:
    return host.ports.libvirt.usable()


# -- small things ---------------------------------------------------------------------------------------------------------------


def _new(swap: GuestSwap) -> ProcessId:
    new = swap.notes.new
    if new is None:
        raise NeedsOperator(f"{swap.name}: reading the journal", expected="the new QEMU's pid", found="none")
    return new


def _guest_as_planned(swap: GuestSwap) -> Guest:
    guest = swap.ports.libvirt.guest(swap.uuid)
    if guest is None or guest.state not in {GuestState.RUNNING, GuestState.PAUSED_BY_OWNER}:
        found = "no such guest" if guest is None else f"{guest.state} ({guest.state_reason})"
        raise Refused(f"{swap.name}: preparing", expected="it running, or paused by its owner", found=found, hint="plan again")
    return guest


def _refuse(swap: GuestSwap, blockers: tuple[Blocker, ...]) -> None:
    if blockers:
        raise Failed(f"{swap.name}: reading its runtime record", found="; ".join(str(blocker) for blocker in blockers))


def _no_differences(swap: GuestSwap) -> None:
    found = swap.ports.qemu.differences(swap.notes.old, _new(swap))
    if found:
        raise Failed(f"{swap.name}: comparing surroundings", expected="the old QEMU's", found="; ".join(found))


# -- the tables -------------------------------------------------------------------------------------------------------------------

# Side by side with the old QEMU and libvirt, then, with libvirt away, one guest after the other, then with libvirt back.
BESIDE = (
    Step("prepare", prepare, is_pinned, undo=unpin),
    Step("start", start_new, new_one_waits, undo=stop_new),
)
DETACH = (Step("detach", detach, is_detached, undo=attach),)
SWAP = (
    Step("reconcile", reconcile, are_reconciled, undo=give_settings_back),
    Step("switch", switch, loaded_and_paused, undo=resume_old),
    Step("record", rewrite_record, record_names_new, undo=restore_record),
    Step("resume", resume_new, new_one_runs, commits=True),
    Step("retire", quit_old, old_one_is_gone),
    Step("prove", prove, is_proven),
)
ATTACH = (Step("attach", attach, is_attached),)
AFTER = (Step("look", look_at_guest, is_unpinned),)

GUEST_STEPS = (*BESIDE, *SWAP, *AFTER)
