"""The crossing, with libvirt away: both QEMUs are asked whether they are the same guest, then its state goes over.

The pause begins in `switch`.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

from hostagent.arguments.command_line import CommandLine
from hostagent.errors import Failed, HostagentError, NeedsOperator, OutcomeUnknown
from hostagent.hypervisor import Moment, Monitor, Move, MoveStatus, RunState
from hostagent.libvirt_files.runtime_record import RuntimeRecord
from hostagent.update import agreement, files
from hostagent.update.pause import Deadline, measured
from hostagent.update.swap import KEEP_RAM, KILL_SECONDS, LOCK_LATE, GuestSwap, Notes

FLUSH_SECONDS = 10.0  # a disk that takes longer would keep the guest standing still for as long
LEAVING_SECONDS = 0.3  # the guest may stand still meanwhile
SETTLE_SECONDS = 5.0  # a failed crossing on the old one ends by itself once the new one is gone

# How a crossing leaves a guest that ran. One that has shut itself down, or stopped for an error, is libvirt's to end.
OURS_TO_RESUME = {RunState.RUNNING, RunState.PAUSED, RunState.FINISH_MIGRATE, RunState.POSTMIGRATE}

# What the old one needs while the state crosses, so that it does not wait for a better moment: there is next to
# nothing to send. `downtime-limit` is in ms, `max-bandwidth` in bytes/s.
CROSSING_PARAMETERS = {"downtime-limit": 2000, "max-bandwidth": 1 << 40}


def reconcile(swap: GuestSwap) -> None:
    old, new = swap.old_monitor(), swap.new_monitor()
    _runs_as_noted(swap, old)
    _same_record(swap)
    reasons = old.blocked_reasons()
    if reasons:
        raise Failed(
            f"{swap.name}: asking the old QEMU",
            expected="no reason against a migration",
            found="; ".join(reasons),
        )
    ours, theirs = old.inventory(), new.inventory()
    agreement.same_guest(swap.name, ours, theirs, CommandLine.parse(swap.notes.argv))
    agreement.same_logs(swap, ours, theirs)
    swap.ports.qemu.flush(swap.notes.old, tuple(theirs.block_nodes.values()), FLUSH_SECONDS)
    swap.note(capabilities=dict(old.capabilities()), parameters=_settable(old))
    old.set_capabilities(KEEP_RAM)
    old.set_parameters(CROSSING_PARAMETERS)
    new.set_capabilities({**KEEP_RAM, **LOCK_LATE})
    swap.ports.qemu.place_threads(swap.notes.old, swap.new_process, agreement.thread_pairs(swap, ours, theirs))
    agreement.same_surroundings(swap)
    prepare_record(swap)


def _runs_as_noted(swap: GuestSwap, old: Monitor) -> None:
    """Its owner may have paused or resumed it, or it may have shut itself down, since it was looked at."""
    expected = RunState.RUNNING if swap.notes.was_running else RunState.PAUSED
    state = old.run_state()
    if state is not expected:
        raise Failed(f"{swap.name}: asking the old QEMU", expected=expected, found=state, hint="plan again")


def _settable(monitor: Monitor) -> dict[str, object]:
    """The parameters that a crossing changes, as they are."""
    now = monitor.parameters()
    return {name: now[name] for name in CROSSING_PARAMETERS if name in now}


def _same_record(swap: GuestSwap) -> None:
    """libvirt may have written the record once more as it left: what it says now is what is kept."""
    now = files.read_private(Path(swap.notes.record))
    if now == files.read_private(Path(swap.notes.kept_record)):
        return
    record = RuntimeRecord.parse(now)
    agreement.no_obstacles(swap, record.obstacles())
    if record.pid != swap.notes.old.pid:
        raise Failed(
            f"{swap.name}: reading {swap.notes.record}",
            expected=f"pid {swap.notes.old.pid}",
            found=str(record.pid),
        )
    files.write_private(Path(swap.notes.kept_record), now)


def are_reconciled(swap: GuestSwap) -> bool:
    return Path(swap.notes.new_record).exists() and all(
        monitor.capabilities().get(name) is wanted
        for monitor in (swap.old_monitor(), swap.new_monitor())
        for name, wanted in KEEP_RAM.items()
    )


def give_settings_back(swap: GuestSwap) -> None:
    """Take back what was set on the old QEMU: a kept x-ignore-shared would lose the RAM at its next migration."""
    if swap.saved is None or swap.notes.capabilities is None or not swap.old_is_alive():
        return
    old = swap.old_monitor()
    set_back(old, swap.notes)
    _check_set_back(swap, old)
    swap.close_monitors()


def set_back(monitor: Monitor, notes: Notes) -> None:
    known = monitor.capabilities()
    wanted = {name: state for name, state in (notes.capabilities or {}).items() if known.get(name, state) is not state}
    extra = {
        name: False for name in ("x-ignore-shared", "late-block-activate") if known.get(name) and name not in wanted
    }
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


def prepare_record(swap: GuestSwap) -> None:
    """Made before the pause, since reading and checking one takes longer than the rest of it."""
    notes, new = swap.notes, swap.new_process
    record = RuntimeRecord.parse(files.read_private(Path(notes.kept_record)))
    threads = agreement.recorded_threads(record, swap.new_monitor().inventory().vcpu_threads)
    swap.new_record = record.handed_over(new.pid, threads, swap.tree.emulator, notes.flags)
    files.replace(Path(notes.new_record), swap.new_record)


def switch(swap: GuestSwap) -> None:
    old, new = swap.old_monitor(), swap.new_monitor()
    receiving, sending = socket.socketpair()
    with receiving, sending:
        new.receive_state(receiving.fileno())
        _runs_as_noted(swap, old)
        swap.deadline = Deadline.begin(swap.budget_seconds, swap.ports.monotonic)
        swap.ports.watcher.pausing(swap.deadline.ends)
        for monitor in (old, new):
            monitor.answer_within(swap.deadline.left)
        old.send_state(sending.fileno())
    sent = _moved(swap, swap.deadline, old, "sending the device state")
    _moved(swap, swap.deadline, new, "loading the device state")
    _ram_was_kept(swap, sent.ram_bytes)


def _moved(swap: GuestSwap, deadline: Deadline, monitor: Monitor, doing: str) -> Move:
    """Wait for one side; raises Failed unless its part of the crossing is complete."""
    try:
        move = monitor.wait_moved(deadline.left())
    except OutcomeUnknown:
        deadline.check(f"{swap.name}: {doing}")
        raise
    except Failed as error:  # one of them has left
        found = _with_its_words(swap, str(error))
        raise Failed(f"{swap.name}: {doing}", expected="both QEMUs there", found=found) from error
    if move.status is not MoveStatus.COMPLETED:
        found = _with_its_words(swap, move.error or str(move.status))
        raise Failed(f"{swap.name}: {doing}", expected="the new QEMU to take it", found=found)
    return move


def _with_its_words(swap: GuestSwap, found: str) -> str:
    """What was seen, and what the new QEMU itself says to it: one that refuses the state says so as it leaves."""
    swap.ports.qemu.wait_gone(swap.new_process, LEAVING_SECONDS)
    words = swap.ports.qemu.last_words(swap.name)
    return f"{found}; {words}" if words else found


def _ram_was_kept(swap: GuestSwap, sent: int) -> None:
    """A QEMU that ignored the RAM wrongly, or copied it, must not go on: compare bytes and the files themselves."""
    total = sum(pin.size for pin in swap.notes.pins)
    if sent > total // 8 + (64 << 20):
        raise Failed(
            f"{swap.name}: keeping the RAM",
            expected="next to nothing sent",
            found=f"{sent} of {total} bytes sent",
        )
    mapped = swap.ports.qemu.ram_inodes(swap.new_process)
    for pin in swap.notes.pins:
        if (pin.device, pin.inode) not in mapped:
            raise Failed(
                f"{swap.name}: keeping the RAM",
                expected=f"{pin.ram} mapped by the new QEMU",
                found="another file",
            )
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
    stopped = swap.stopped_at()
    swap.end_new()
    old = swap.old_monitor()
    with suppress(OutcomeUnknown):
        old.wait_moved(SETTLE_SECONDS)  # a crossing that was cut off ends as failed, and QEMU resumes by itself
    with suppress(HostagentError):  # its own undo comes later; a guest that cannot be resumed now has it right too
        set_back(old, swap.notes)
    if swap.notes.was_running and old.run_state() in OURS_TO_RESUME:
        swap.ports.qemu.put_taps(swap.notes.old, swap.notes.taps)  # the new one set them for itself as it loaded
        old.resume(KILL_SECONDS)
    swap.ports.watcher.running()
    _note_undone_pause(swap, stopped or old.stopped_at(), old.resumed_at())


def _note_undone_pause(swap: GuestSwap, stopped: Moment | None, resumed: Moment | None) -> None:
    if stopped and resumed:
        pause = measured(stopped, resumed)
        swap.measured({"pause_seconds": pause.seconds, "pause_source": pause.source})
