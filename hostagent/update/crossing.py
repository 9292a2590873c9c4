"""The crossing, with libvirt away: both QEMUs are asked whether they are the same guest, then its state goes over.

The pause begins in `switch`.
"""

from __future__ import annotations

import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hostagent.arguments.command_line import CommandLine
from hostagent.errors import Failed, HostagentError, NeedsOperator, OutcomeUnknown
from hostagent.hypervisor import Inventory, Moment, Monitor, MoveStatus, ProcessId, RunState, Sender
from hostagent.hypervisor.domain_xml import read_definition
from hostagent.libvirt_files.runtime_record import RuntimeRecord
from hostagent.update import agreement, files
from hostagent.update.pause import Deadline, measured
from hostagent.update.subject import KILL_SECONDS, AnyGuest
from hostagent.update.swap import LOCK_LATE, UNLIMITED, GuestSwap, Notes

FLUSH_SECONDS = 10.0  # a disk that takes longer would keep the guest standing still for as long
LEAVING_SECONDS = 0.3  # the guest may stand still meanwhile
_AGAIN_SECONDS = 0.05
SETTLE_SECONDS = 5.0  # a failed crossing on the old one ends by itself once the new one is gone

# How a crossing leaves a guest that ran. One that has shut itself down, or stopped for an error, is libvirt's to end.
OURS_TO_RESUME = {RunState.RUNNING, RunState.PAUSED, RunState.FINISH_MIGRATE, RunState.POSTMIGRATE}

# What the old one needs while the state crosses, so that it does not wait for a better moment: there is next to
# nothing to send. `downtime-limit` is in ms, `max-bandwidth` in bytes/s.
CROSSING_PARAMETERS = {"downtime-limit": 2000, "max-bandwidth": UNLIMITED}

# Capabilities that a crossing turns on, and that nobody may find on afterwards.
OURS_TO_TAKE_BACK = ("x-ignore-shared", "late-block-activate", "dirty-bitmaps")

# What the rest of a copy may take with the guest standing still, milliseconds; one after the other is tried.
REST_MS = (20, 100, 300)


def reconcile(swap: GuestSwap) -> None:
    old, new = swap.old_monitor(), swap.new_monitor()
    runs_as_noted(swap, old)
    _same_record(swap)
    check_unblocked(swap, old)
    ours, theirs = old.inventory(), new.inventory()
    agreement.same_guest(swap.name, ours, theirs, CommandLine.parse(swap.notes.argv))
    agreement.same_logs(swap, ours, theirs)
    if not swap.copies:
        _ram_is_the_file(swap, swap.notes.old, "the old QEMU")  # a DIMM may have been plugged out and in since
    _ram_is_the_file(swap, swap.new_process, "the new QEMU")
    live_xml = _live_xml(swap)
    agreement.same_cards(swap.name, swap.notes.live_xml, live_xml)
    swap.ports.qemu.flush(swap.notes.old, tuple(theirs.block_nodes.values()), FLUSH_SECONDS)
    if not swap.copies:  # of which nothing can be set any more
        swap.note(capabilities=dict(old.capabilities()), parameters=settable(old))
        old.set_capabilities(swap.crossing_capabilities)
        old.set_parameters(CROSSING_PARAMETERS)
        new.set_capabilities({**swap.crossing_capabilities, **LOCK_LATE})
    _set_again(swap, old, new, live_xml)
    swap.ports.qemu.place_threads(swap.notes.old, swap.new_process, agreement.thread_pairs(swap, ours, theirs))
    agreement.same_surroundings(swap)
    prepare_record(swap, theirs)


def _set_again(swap: GuestSwap, old: Monitor, new: Monitor, live_xml: str) -> None:
    """Before the state crosses: the guest never runs without its limits, and nothing of it is in the pause.

    As it is now: since the guest was looked at, its owner may have taken a link down.
    """
    wanted = old.uncarried()
    now = read_definition(live_xml)
    new.set_again(
        wanted,
        links_down=tuple(device.alias for device in now.devices if "link-down" in device.marks),
        reboot="shutdown" if now.on_reboot == "destroy" else "reset",
    )
    if (found := new.uncarried()) != wanted:
        raise Failed(f"{swap.name}: setting I/O limits and the like again", expected=str(wanted), found=str(found))


def _live_xml(swap: GuestSwap) -> str:
    """As libvirt left it when it went away."""
    return RuntimeRecord.parse(files.read_private(Path(swap.notes.kept_record))).live_xml


def check_unblocked(swap: AnyGuest, old: Sender) -> None:
    """Raises Failed when the old QEMU knows a reason against a migration."""
    reasons = old.blocked_reasons()
    if reasons:
        raise Failed(
            f"{swap.name}: asking the old QEMU", expected="no reason against a migration", found="; ".join(reasons)
        )


def runs_as_noted(swap: GuestSwap, old: Sender) -> None:
    """Its owner may have paused or resumed it, or it may have shut itself down, since it was looked at."""
    expected = RunState.RUNNING if swap.notes.was_running else RunState.PAUSED
    state = old.run_state()
    if state is not expected:
        raise Failed(f"{swap.name}: asking the old QEMU", expected=expected, found=state, hint="plan again")


def settable(monitor: Sender) -> dict[str, object]:
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
        for name, wanted in swap.crossing_capabilities.items()
    )


def give_settings_back(swap: GuestSwap) -> None:
    """Take back what was set on the old QEMU: a kept x-ignore-shared would lose the RAM at its next migration.

    What a copy needed was set before it began, and is taken back with it (copying.end_copy).
    """
    if swap.copies or swap.saved is None or swap.notes.capabilities is None or not swap.old_is_alive():
        return
    old = swap.old_monitor()
    set_back(old, swap.notes)
    check_set_back(swap, old)
    swap.close_monitors()


def set_back(monitor: Sender, notes: Notes) -> None:
    known = monitor.capabilities()
    wanted = {name: state for name, state in (notes.capabilities or {}).items() if known.get(name, state) is not state}
    extra = {name: False for name in OURS_TO_TAKE_BACK if known.get(name) and name not in wanted}
    monitor.set_capabilities({**extra, **wanted})
    monitor.set_parameters(notes.parameters or {})


def check_set_back(swap: AnyGuest, monitor: Sender) -> None:
    if monitor.capabilities().get("x-ignore-shared"):
        raise NeedsOperator(
            f"{swap.name}: taking x-ignore-shared back",
            expected="it to be off",
            found="it on: the next save or migration would lose the RAM",
            hint="hostagent recover",
        )


def prepare_record(swap: GuestSwap, theirs: Inventory) -> None:
    """Made before the pause, since reading and checking one takes longer than the rest of it."""
    notes, new = swap.notes, swap.new_process
    record = RuntimeRecord.parse(files.read_private(Path(notes.kept_record)))
    if swap.copies:
        record = record.adopted()
    threads = agreement.recorded_threads(record, theirs.vcpu_threads)
    terminals = agreement.recorded_terminals(record, theirs.terminals)
    swap.new_record = record.handed_over(new.pid, threads, swap.tree.emulator, notes.flags, terminals=terminals)
    files.replace(Path(notes.new_record), swap.new_record)


def switch(swap: GuestSwap) -> None:
    old, new = swap.old_monitor(), swap.new_monitor()
    deadline = _let_the_rest_cross(swap, old, new) if swap.copies else _send_state(swap, old, new)
    _has_moved(swap, deadline, old, "sending the device state")
    with _both_there(swap, "sending the device state"):
        swap.moved_bytes = sent = old.move().ram_bytes  # while the new one loads
    if not swap.copies:
        _little_was_sent(swap, sent)
    _has_moved(swap, deadline, new, "loading the device state")
    swap.crossed = True


def _send_state(swap: GuestSwap, old: Monitor, new: Monitor) -> Deadline:
    receiving, sending = socket.socketpair()
    with receiving, sending:
        new.receive_state(receiving.fileno())
        runs_as_noted(swap, old)
        deadline = _pause_begins(swap, old, new)
        old.send_state(sending.fileno())
    return deadline


def _pause_begins(swap: GuestSwap, old: Monitor, new: Monitor, stopped: Moment | None = None) -> Deadline:
    swap.deadline = deadline = Deadline.begin(swap.budget_seconds, swap.ports.monotonic, stopped)
    swap.ports.watcher.pausing(deadline.ends)
    for monitor in (old, new):
        monitor.answer_within(deadline.left)
    return deadline


def _let_the_rest_cross(swap: GuestSwap, old: Monitor, new: Monitor) -> Deadline:
    """What the guest has written since; it runs until QEMU can send all that is left in one go.

    That time is allowed to grow, so that a quiet guest gets a short pause. Raises Failed, and the guest never stood
    still, when what is left does not become little enough.
    """
    runs_as_noted(swap, old)
    if swap.notes.loses_writes:
        deadline = _pause_begins(swap, old, new)
        old.stop(deadline.left())
        old.set_parameters(CROSSING_PARAMETERS)
        return deadline
    patience = swap.ports.config.update.converge_seconds
    longest = swap.budget_seconds * 1000 / 2  # the other half is for the device state
    swap.ports.watcher.pausing(swap.ports.monotonic() + patience + swap.budget_seconds)
    for limit in REST_MS:
        old.set_parameters({"max-bandwidth": UNLIMITED, "downtime-limit": max(1, round(min(limit, longest)))})
        if not swap.notes.was_running or old.wait_stopped(patience / len(REST_MS)):
            return _pause_begins(swap, old, new, old.stopped_at())
    left = (old.move().ram_left or 0) >> 20
    raise too_busy(swap, f"{left} MiB were still left, or written again, after {patience:g} s")


def too_busy(swap: GuestSwap, found: str) -> Failed:
    """The guest writes to its RAM faster than that is copied."""
    return Failed(
        f"{swap.name}: copying its RAM while it runs",
        expected="it to write more slowly than is copied",
        found=found,
        hint="try when it has less to do, or give it such RAM at its next boot: "
        f"hostagent guest adopt {shlex.quote(swap.name)} --next-boot",
    )


def _has_moved(swap: GuestSwap, deadline: Deadline, monitor: Monitor, doing: str) -> None:
    """Wait for one side; raises Failed unless its part of the crossing is complete."""
    try:
        with _both_there(swap, doing):
            status = monitor.wait_moved(deadline.left())
            error_words = "" if status is MoveStatus.COMPLETED else monitor.move().error
    except OutcomeUnknown:
        deadline.check(f"{swap.name}: {doing}")
        raise
    if status is not MoveStatus.COMPLETED:
        found = _with_its_words(swap, error_words or str(status))
        raise Failed(f"{swap.name}: {doing}", expected="the new QEMU to take it", found=found)


@contextmanager
def _both_there(swap: GuestSwap, doing: str) -> Iterator[None]:
    """Where one ends the new one is heard out: if the old one had sent everything, it is all of the guest then."""
    try:
        yield
    except Failed as error:
        found = _with_its_words(swap, str(error))
        raise Failed(f"{swap.name}: {doing}", expected="both QEMUs there", found=found) from error


def _with_its_words(swap: GuestSwap, found: str) -> str:
    """What was seen, and what the new QEMU itself says to it: one that refuses the state says so as it leaves."""
    swap.ports.qemu.wait_gone(swap.new_process, LEAVING_SECONDS)
    words = swap.ports.qemu.last_words(swap.name)
    return f"{found}; {words}" if words else found


def _little_was_sent(swap: GuestSwap, sent: int) -> None:
    """A QEMU that copied the RAM, or dropped it, must not go on."""
    total = sum(pin.size for pin in swap.notes.pins)
    if sent > total // 8 + (64 << 20):
        raise Failed(
            f"{swap.name}: keeping the RAM",
            expected="next to nothing sent",
            found=f"{sent} of {total} bytes sent",
        )


def _ram_is_the_file(swap: GuestSwap, process: ProcessId, whose: str) -> None:
    """Whatever the arguments said: what it has mapped decides."""
    mapped = swap.ports.qemu.ram_inodes(process)
    for pin in swap.notes.pins:
        if (pin.device, pin.inode) not in mapped:
            raise Failed(
                f"{swap.name}: keeping the RAM",
                expected=f"{pin.ram} mapped by {whose}",
                found="another file",
            )


def loaded_and_paused(swap: GuestSwap) -> bool:
    """Both have said so where this process saw it cross: to ask them again would be in the pause.

    Whether the new one stands still and answers is asked right before the commit (taking_over.record_names_new).
    """
    if not swap.new_is_alive():
        return False
    if swap.crossed:
        return True
    new = swap.new_monitor()
    loaded = new.move().status is MoveStatus.COMPLETED and new.run_state() is RunState.PAUSED
    if not swap.old_is_alive():
        return loaded
    return loaded and swap.old_monitor().run_state() is RunState.POSTMIGRATE


def has_all_of_it(swap: GuestSwap) -> bool:
    """Whether the new one has, with the old one gone: as soon as it is done with what that had sent."""
    if swap.new_is_alive():
        with suppress(OutcomeUnknown):
            swap.new_monitor().wait_moved(SETTLE_SECONDS)
    return loaded_and_paused(swap)


def resume_old(swap: GuestSwap) -> None:
    """The new one is ended and seen gone; then the old one goes on where it stopped."""
    stopped = swap.stopped_at()
    swap.crossed = False
    swap.end_new()
    old = swap.old_monitor()
    with suppress(OutcomeUnknown):
        old.wait_moved(SETTLE_SECONDS)  # a crossing that was cut off ends as failed, and QEMU resumes by itself
    with suppress(HostagentError):  # its own undo comes later; a guest that cannot be resumed now has it right too
        set_back(old, swap.notes)
    if swap.notes.was_running and (state := old.run_state()) in OURS_TO_RESUME:
        swap.ports.qemu.put_taps(swap.notes.old, swap.notes.taps)  # the new one set them for itself as it loaded
        if state is not RunState.RUNNING:  # as it is once a crossing that failed is cleared up
            _have_it_go_on(swap, old)
    swap.ports.watcher.running()
    _note_undone_pause(swap, stopped or old.stopped_at(), old.resumed_at())


def _have_it_go_on(swap: GuestSwap, old: Monitor) -> None:
    """QEMU refuses `cont` while it clears up behind a crossing that failed, and says so: ask again."""
    ends, cleared_up = swap.ports.monotonic() + SETTLE_SECONDS, False
    while True:
        try:
            return old.resume(KILL_SECONDS)
        except Failed:
            if cleared_up or swap.ports.monotonic() > ends:
                raise
            cleared_up = old.run_state() is not RunState.FINISH_MIGRATE  # perhaps only since it refused
        old.wait_stopped(_AGAIN_SECONDS)


def _note_undone_pause(swap: GuestSwap, stopped: Moment | None, resumed: Moment | None) -> None:
    if stopped and resumed:
        pause = measured(stopped, resumed)
        swap.measured({"pause_seconds": pause.seconds, "pause_source": pause.source})
