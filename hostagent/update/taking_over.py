"""Taking over: what libvirt will believe, the commit, and the old QEMU's end. The pause ends in `resume_new`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from hostagent.errors import HostagentError, NeedsOperator
from hostagent.hypervisor import Monitor, RunState
from hostagent.libvirt_files.runtime_record import RuntimeRecord
from hostagent.libvirt_files.vnc_display import VncDisplay
from hostagent.update import files
from hostagent.update.crossing import OURS_TO_TAKE_BACK, set_back
from hostagent.update.pause import measured
from hostagent.update.subject import KILL_SECONDS
from hostagent.update.swap import GuestSwap


def rewrite_record(swap: GuestSwap) -> None:
    notes = swap.notes
    files.swap_in(notes.record, new=notes.new_record, old=notes.old_record)
    files.swap_in(notes.pid_file, new=notes.new_pid_file, old=notes.old_pid_file)
    if swap.deadline is not None:
        swap.deadline.check(f"{swap.name}: before resuming")


def record_names_new(swap: GuestSwap) -> bool:
    """Asked right before the commit: the new one must still be there and answer."""
    if swap.new_monitor().run_state() is not RunState.PAUSED:
        return False
    there = files.read_private(Path(swap.notes.record))
    if swap.new_record is not None:
        return there == swap.new_record
    return RuntimeRecord.parse(there).pid == swap.new_process.pid


def restore_record(swap: GuestSwap) -> None:
    """By renaming: a full disk cannot hold the guest up. And first, in case the new one cannot be ended."""
    notes = swap.notes
    if Path(notes.old_record).exists() and not record_is_ours(swap):
        raise NeedsOperator(
            f"{swap.name}: putting libvirt's record back",
            expected="the one that names the old or the new QEMU",
            found="another one or none: the guest was ended, and perhaps started anew, meanwhile",
            hint=f"if that was meant: kill -9 {notes.old.pid}, then: hostagent recover",
        )
    files.swap_back(notes.record, new=notes.new_record, old=notes.old_record)
    files.swap_back(notes.pid_file, new=notes.new_pid_file, old=notes.old_pid_file)
    swap.end_new()


def record_is_ours(swap: GuestSwap) -> bool:
    """Whether libvirt's record is of this life of the guest: nobody ended it, and perhaps started it anew."""
    ours = {process.pid for process in (swap.notes.old, swap.notes.new) if process}
    try:
        return RuntimeRecord.parse(files.read_private(Path(swap.notes.record))).pid in ours
    except HostagentError:
        return False


def went_back(swap: GuestSwap) -> bool:
    """Whether the old one is the guest in spite of the intent.

    A disk can fail at the intent and have it all the same: the updater turned back then. Or somebody started libvirt's
    daemon after everybody had died, and resumed what it showed him.
    """
    if not swap.old_is_alive():
        return False
    if swap.new_is_alive():
        if not swap.notes.new_monitor.exists():
            return False  # it has been given the old one's names already: it runs, or did
        with suppress(HostagentError):
            if swap.new_monitor().run_state() is RunState.RUNNING:
                return False
    if RuntimeRecord.parse(files.read_private(Path(swap.notes.record))).pid == swap.notes.old.pid:
        return True
    return swap.old_monitor().run_state() is RunState.RUNNING


def resume_new(swap: GuestSwap) -> None:
    new = swap.new_monitor()
    new.answer_within(lambda: KILL_SECONDS)  # there is no way back to hurry for
    if swap.notes.was_running:
        new.resume(KILL_SECONDS)
    swap.ports.watcher.running()
    swap.measured({"moved_bytes": swap.moved_bytes, **_pause(swap, new)})


def _pause(swap: GuestSwap, new: Monitor) -> dict[str, object]:
    """What is known of it; nothing for a guest that its owner had paused."""
    if not swap.notes.was_running:
        return {}
    try:
        stopped = swap.old_monitor().stopped_at() if swap.old_is_alive() else None
    except HostagentError:
        return {}  # the guest runs: that its pause is not known changes nothing
    resumed = new.resumed_at()
    if stopped and resumed:
        pause = measured(stopped, resumed)
        return {"pause_seconds": pause.seconds, "pause_source": pause.source}
    return {}


def new_one_runs(swap: GuestSwap) -> bool:
    wanted = RunState.RUNNING if swap.notes.was_running else RunState.PAUSED
    return swap.new_is_alive() and swap.new_monitor().run_state() is wanted


def end_old(swap: GuestSwap) -> None:
    put_settings_right(swap)
    bury_old(swap)
    open_display(swap)


def put_settings_right(swap: GuestSwap) -> None:
    """The new one's, before libvirt has it: with x-ignore-shared on, its next save would lose the RAM."""
    monitor = swap.new_monitor()
    monitor.drop_ballast()  # first: of the rest `old_one_is_gone` sees whether it was done
    set_back(monitor, swap.notes)
    monitor.set_capabilities({"events": True})


def bury_old(swap: GuestSwap) -> None:
    """The old one never runs again, and libvirt finds the new one's sockets; needs no answer of either.

    It is killed, not asked: one that leaves by itself unlinks the names its sockets were bound to, which are the new
    one's by then. So libvirt's names are never missing, whenever its daemon comes. It has given up its disks with its
    state, and has nothing left to write.
    """
    swap.close_monitors()
    for entry in swap.notes.sockets:
        files.give_name(entry.temporary, entry.path)
    swap.ports.qemu.kill(swap.notes.old, KILL_SECONDS)


def open_display(swap: GuestSwap) -> None:
    """The new one's display goes where the old one's was, with its password, which only libvirt's record has."""
    display = _display(swap)
    if display is not None:
        swap.new_monitor().open_display(display)
        files.discard(swap.notes.display)


def _display(swap: GuestSwap) -> VncDisplay | None:
    return RuntimeRecord.parse(files.read_private(Path(swap.notes.record))).display if swap.notes.display else None


def old_one_is_gone(swap: GuestSwap) -> bool:
    if swap.old_is_alive() or any(Path(entry.temporary).exists() for entry in swap.notes.sockets):
        return False
    display = _display(swap)
    if display is not None and swap.new_monitor().display() != display.place:
        return False
    capabilities, before = swap.new_monitor().capabilities(), swap.notes.capabilities or {}
    ours = [name for name in OURS_TO_TAKE_BACK if capabilities.get(name) and not before.get(name)]
    return not ours and bool(capabilities.get("events"))


def prove(swap: GuestSwap) -> None:
    """Ask what libvirt will ask, as a fresh client: an error there makes it kill the guest."""
    swap.close_monitors()
    try:
        swap.new_monitor().reconnect_questions()
    except HostagentError as error:
        swap.unproven = NeedsOperator(
            f"keeping libvirt's daemon away: it would kill {swap.name} as it comes back to it",
            expected="its QEMU to answer what libvirt will ask",
            found=str(error),
            hint="the guests run, and nobody may start the daemon now; hostagent recover asks again; "
            f"{swap.ports.daemon.restart_hint()} gives {swap.name} up",
        )
        raise swap.unproven from error
    swap.proven, swap.unproven = True, None
    swap.close_monitors()


def is_proven(swap: GuestSwap) -> bool:
    record = RuntimeRecord.parse(files.read_private(Path(swap.notes.record)))
    return (
        swap.proven
        and record.pid == swap.new_process.pid
        and swap.new_is_alive()
        and all(files.is_named(pin) for pin in swap.notes.pins)
    )
