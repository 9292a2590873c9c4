"""RAM that no other process can map is copied into a file while the guest runs: an ordinary migration on one host.

It is begun by way of libvirt, whose daemon stays. Ballast (`Sender.put_ballast`) keeps it from ending by itself, so
that the guest does not stand still before libvirt is away; the last of it crosses in `crossing.switch`.

An emulating QEMU before 9.0 does not know of all that its guest writes meanwhile (`facts.loses_writes`). It knows of
what was written since it began to look, if the guest stood still then, and if it looks a second time only when the
guest stands still again: so such a guest does, at both moments.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hostagent.errors import Failed, HostagentError
from hostagent.hypervisor import Move, MoveStatus, Sender
from hostagent.update.crossing import check_set_back, check_unblocked, runs_as_noted, set_back, settable, too_busy
from hostagent.update.pause import Deadline
from hostagent.update.subject import AnyGuest
from hostagent.update.swap import LOCK_LATE, UNLIMITED, GuestSwap

WAIT_SECONDS = 0.25  # for one guest's copy at a time
SETTLE_SECONDS = 5.0  # a copy ends by itself once there is nobody to copy to
HOPELESS = 0.9  # of what is copied in the same time: nobody can catch up with a guest that writes more
_IDLING = 4096  # bytes/s: QEMU looks for more to send ten times a second then, not all the time


def begin_copy(swap: GuestSwap) -> None:
    """Everything that cannot be set while it goes on, then off it goes."""
    new = swap.new_monitor()
    with swap.sender() as old:
        runs_as_noted(swap, old)
        check_unblocked(swap, old)
        nobody_else_s_settings(swap, old)
        swap.note(capabilities=dict(old.capabilities()), parameters=settable(old))
        old.set_capabilities(swap.crossing_capabilities)
        old.set_parameters({"downtime-limit": 0, "max-bandwidth": UNLIMITED})
        new.set_capabilities({**swap.crossing_capabilities, **LOCK_LATE})
        new.put_ballast(bitmap=False)
        old.put_ballast(bitmap=True)
        receiving, sending = socket.socketpair()
        with receiving, sending, _book_of_writes(swap, old):
            new.receive_state(receiving.fileno())
            old.send_state(sending.fileno())
        with suppress(Failed):  # it is measured already, since a copy that was given up a moment ago
            old.watch_dirtying()
    swap.copy_began = swap.ports.monotonic()


@contextmanager
def _book_of_writes(swap: GuestSwap, old: Sender) -> Iterator[None]:
    """From within here on QEMU knows what the guest writes; one that would miss some has it stand still for that."""
    if not swap.notes.loses_writes or not swap.notes.was_running:
        yield
        return
    deadline = Deadline.begin(swap.budget_seconds, swap.ports.monotonic)
    swap.note(halted=True)
    try:
        runs_as_noted(swap, old)  # once more: whoever paused it meanwhile does not want it to run
        swap.ports.watcher.pausing(deadline.ends)
    except HostagentError:
        swap.note(halted=False)
        raise
    stopped = swap.ports.monotonic()
    old.halt()
    yield
    old.wait_begun(deadline.left())
    old.go_on()
    swap.measured({"halt_seconds": swap.ports.monotonic() - stopped})
    swap.ports.watcher.running()
    swap.note(halted=False)


def nobody_else_s_settings(swap: AnyGuest, old: Sender) -> None:
    """Capabilities that somebody left on would make it another migration than the one that has been tried."""
    on = [name for name, state in old.capabilities().items() if state and name != "events"]
    if on:
        raise Failed(
            f"{swap.name}: asking the old QEMU",
            expected="no migration capability on",
            found=", ".join(on),
            hint="turn them off (virsh qemu-monitor-command, migrate-set-capabilities), or restart the guest",
        )


def is_copying(swap: GuestSwap) -> bool:
    if not swap.new_is_alive():
        return False
    with swap.sender() as old:
        return old.move().status is MoveStatus.UNDER_WAY


def look_at_copy(swap: GuestSwap) -> Move:
    """Wait a little; sets `swap.copied` once all of the RAM has crossed for the first time.

    Raises Failed when it has broken off, takes too long, or cannot catch up with the guest.
    """
    doing = f"{swap.name}: copying its RAM while it runs"
    with swap.sender() as old:
        move = old.wait_sent(WAIT_SECONDS)
        if move.status is not MoveStatus.UNDER_WAY:
            raise Failed(doing, expected="the copy to go on", found=move.error or str(move.status))
        seconds = swap.ports.monotonic() - swap.copy_began
        if move.ram_left == 0:
            old.set_parameters({"max-bandwidth": _IDLING})
            _check_dirtying(swap, old, move.ram_total / max(seconds, 0.001))
            swap.measured({"copied_bytes": move.ram_total, "copy_seconds": seconds})
            swap.copied = True
        elif seconds > swap.ports.config.update.copy_seconds:
            left, total = (move.ram_left or 0) >> 20, move.ram_total >> 20
            raise Failed(
                doing,
                expected=f"all of it to cross in {swap.ports.config.update.copy_seconds:g} s",
                found=f"{left} of {total} MiB left",
                hint="allow more in the settings ([update] copy_seconds)",
            )
    return move


def _check_dirtying(swap: GuestSwap, old: Sender, speed: float) -> None:
    """Better said now than after libvirt's daemon was away for nothing."""
    dirtying = old.dirtying()
    if dirtying is not None and dirtying > speed * HOPELESS:
        raise too_busy(swap, f"about {dirtying / 2**20:.0f} MiB/s written and {speed / 2**20:.0f} MiB/s copied")


def end_copy(swap: GuestSwap) -> None:
    """The copy ends with the new QEMU; then what was set on the old one is taken back. Any number of times."""
    if swap.saved is None:
        return
    if swap.notes.halted and swap.old_is_alive():  # first: it waits for nothing, as the new one has no whole copy
        with swap.sender() as old:
            old.go_on()
        swap.ports.watcher.running()
    swap.end_new()
    if swap.notes.capabilities is None or not swap.old_is_alive():
        return
    with swap.sender() as old:
        ends = swap.ports.monotonic() + SETTLE_SECONDS
        while old.move().status is MoveStatus.UNDER_WAY and swap.ports.monotonic() < ends:
            old.wait_sent(WAIT_SECONDS)
        set_back(old, swap.notes)
        old.drop_ballast()
        check_set_back(swap, old)
    swap.close_monitors()
