"""A held guest comes back: restored on what it was brought to, looked at, resumed. The pause ends in `resume`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from hostagent.errors import HostagentError, OutcomeUnknown
from hostagent.facts import GuestState
from hostagent.hypervisor.domain_xml import live_differences
from hostagent.update.guest_hold import GuestHold, Side
from hostagent.update.holding import PASSED_ON, bring_back, discard, end, is_told, paused_for, what_is_wrong


def restore(hold: GuestHold) -> None:
    if hold.deadline is not None:
        hold.deadline.check(f"{hold.name}: before restoring it")
    bring_back(hold, Side.AFTER)
    if (found := what_is_wrong(hold, hold.now(), Side.AFTER)) is not None:
        raise found
    hold.note(restored=True)


def is_restored(hold: GuestHold) -> bool:
    now = hold.now()
    return hold.was_restored(now) and what_is_wrong(hold, now, Side.AFTER) is None


def end_restored(hold: GuestHold) -> None:
    """It has not gone on: its RAM is as it was, and what was saved can be restored once more."""
    now = hold.now()
    if now is None or not (now.marked or hold.was_restored(now)) or now.state in PASSED_ON:
        return
    if now.emulator != hold.tree.emulator:
        return  # it was brought back already
    with suppress(HostagentError):
        hold.note(restored=False)  # that it ends is our doing
    end(hold, now)


def go_on(hold: GuestHold) -> None:
    """The pause ends here; only once the commit is in the journal."""
    try:
        hold.ports.libvirt.resume(hold.uuid)
    except OutcomeUnknown:
        if not is_resumed(hold):
            raise
        hold.pause = {**paused_for(hold), "pause_source": "between-looks"}  # that is what is known of it
        return
    hold.pause = paused_for(hold)


def resume(hold: GuestHold) -> None:
    if hold.pause is None:
        go_on(hold)
    if hold.barrier is None:
        hold.ports.watcher.running()
    note_pause(hold)


def note_pause(hold: GuestHold) -> None:
    """Once; nothing of a guest that went on in another process."""
    if hold.pause:
        hold.measured(hold.pause)
        hold.pause = {}


def is_resumed(hold: GuestHold) -> bool:
    """Its owner may have paused it since."""
    now = hold.now()
    return hold.was_restored(now) and now is not None and now.state in {*PASSED_ON, GuestState.PAUSED_BY_OWNER}


def look(hold: GuestHold) -> None:
    """What libvirt believes; then what was kept of the guest goes."""
    libvirt = hold.ports.libvirt
    libvirt.settled(hold.uuid)
    libvirt.unmark(hold.uuid)
    if not hold.rehearsal:
        told = live_differences(hold.notes.live_xml, libvirt.live_xml(hold.uuid), by_a_start=True)
        hold.measured({"xml_differences": list(told)})
    discard(hold.name, hold.notes, hold.ports.config.paths.held)


def is_let_go(hold: GuestHold) -> bool:
    kept = (*hold.notes.files, *(pin.link for pin in hold.notes.pins))
    return not is_told(hold) and not any(Path(path).exists() for path in kept)
