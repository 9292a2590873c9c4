"""Beside the running guest everything is written down and its RAM is pinned; then it stands still and is saved.

The pause begins in `pause`. libvirt writes the state and ends the QEMU; what it wrote is sealed (`saved_images`), so
that it can be restored on the old QEMU and on the new one, before anything else is done.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from hostagent.arguments.command_line import CommandLine
from hostagent.errors import Failed, HostagentError, NeedsOperator, OutcomeUnknown, Refused
from hostagent.facts import Guest, GuestState
from hostagent.hypervisor import ProcessId, Standing
from hostagent.libvirt_files.state_image import IGNORE_SHARED, finished
from hostagent.update import files
from hostagent.update.copying import nobody_else_s_settings
from hostagent.update.crossing import check_set_back, check_unblocked
from hostagent.update.guest_hold import GuestHold, HoldNotes, SavedImage, Side
from hostagent.update.held import Held, HeldRam, entry, release, tell_hook
from hostagent.update.pause import Deadline
from hostagent.update.saved_images import elsewhere, good_image, seal, seal_this
from hostagent.update.subject import ENDED_FOR_GOOD, KILL_SECONDS, Pin

ROOM_BYTES = 256 << 20  # device state is about a MiB, a display's memory 16 MiB and more; all of it three times
SAVE_SECONDS = 30.0  # libvirt itself waits so long for its turn with a guest
ABORT_SECONDS = 30.0
PASSED_ON = GuestState.RUNNING, GuestState.SHUTTING_DOWN, GuestState.CRASHED, GuestState.PM_SUSPENDED


# -- beside the running guest -----------------------------------------------------------------------------------


def prepare(hold: GuestHold) -> None:
    guest = _guest_as_planned(hold)
    room = shutil.disk_usage(hold.ports.config.paths.state).free
    if room < ROOM_BYTES:
        raise Failed(
            f"{hold.name}: preparing",
            expected=f"{ROOM_BYTES >> 20} MiB on the disk of {hold.ports.config.paths.state}",
            found=f"{room >> 20} MiB",
            hint="make room there",
        )
    with suppress(HostagentError):  # or libvirt examines that QEMU while the guest stands still
        definition = guest.definition
        hold.ports.libvirt.capability_cache(hold.tree.emulator, definition.virtualisation, definition.machine)
    hold.begin_notes(_first_notes(hold, guest))
    for pin in hold.notes.pins:
        files.pin(pin)
    tell_hook(hold.notes.held, hold.ports.config.paths.held)


def _guest_as_planned(hold: GuestHold) -> Guest:
    guest = hold.ports.libvirt.guest(hold.uuid)
    if guest is None or guest.state is not GuestState.RUNNING or guest.process is None:
        found = "no such guest" if guest is None else f"{guest.state} ({guest.state_reason})"
        raise Refused(f"{hold.name}: preparing", expected="it running", found=found, hint="plan again")
    nameless = CommandLine.parse(guest.arguments).nameless_ram()
    if nameless or not guest.ram_files:
        found = "RAM without a name" if nameless else "no RAM file"
        raise Refused(f"{hold.name}: preparing", expected="its RAM in files", found=found, hint="plan again")
    return guest


def _first_notes(hold: GuestHold, guest: Guest) -> HoldNotes:
    assert guest.process is not None  # noqa: S101 - _guest_as_planned() has looked
    ports, process = hold.ports, guest.process
    links = files.pin_folder(Path(guest.ram_files[0].path))
    tag = ports.token()
    pins = tuple(
        Pin(ram.path, str(links / f"{tag}-{number}"), ram.device, ram.inode, ram.size)
        for number, ram in enumerate(guest.ram_files)
    )
    folders = {Path(pin.ram).parent for pin in pins}
    if len(folders) > 1:
        raise Refused(f"{hold.name}: preparing", expected="its RAM files in one folder", found=f"{len(folders)}")
    folder = folders.pop()
    uid, gid = ports.qemu.owner(ProcessId(process.pid, process.start_ticks))
    kept = Path(ports.config.paths.state) / "held"
    images = [SavedImage(str(kept / f"{hold.update}-{hold.uuid}.{what}")) for what in ("plain", *Side)]
    return HoldNotes(
        old=ports.qemu.identify(process.pid),
        live_xml=ports.libvirt.live_xml(hold.uuid),
        emulator=guest.qemu.emulator if process.exe_deleted and guest.qemu else guest.definition.emulator,
        pins=pins,
        held=Held(
            guest=hold.name,
            update=hold.update,
            token=ports.secret(),
            folder=str(folder.parent),
            short_name=folder.name.partition("-")[2],
            uid=uid,
            gid=gid,
            ram=tuple(HeldRam(Path(pin.ram).name, pin.link) for pin in pins),
        ),
        plain=images[0],
        before=images[1],
        after=images[2],
    )


def is_prepared(hold: GuestHold) -> bool:
    return is_told(hold) and all(files.is_pinned(pin) for pin in hold.notes.pins)


def told_of(hold: GuestHold) -> Path:
    """Where the hook is told of it."""
    return entry(hold.name, hold.ports.config.paths.held)


def is_told(hold: GuestHold) -> bool:
    """Whether the hook knows of it; it does until the guest is let go of, or somebody gives its RAM up."""
    return told_of(hold).exists()


def unprepare(hold: GuestHold) -> None:
    """As if nothing had been prepared; only with the guest where it belongs, or gone for good."""
    if hold.saved is not None:
        discard(hold.name, hold.saved, hold.ports.config.paths.held)


def discard(name: str, notes: HoldNotes, told: Path) -> None:
    """Everything that was kept of the guest. Any number of times."""
    files.discard(*notes.files, str(elsewhere(name, told)))
    for pin in notes.pins:
        files.unpin(pin)
    release(name, told)


# -- it stands still --------------------------------------------------------------------------------------------


def pause(hold: GuestHold) -> None:
    ports = hold.ports
    ports.watcher.ready()
    with ports.libvirt.sender(hold.uuid) as old:
        check_unblocked(hold, old)
        nobody_else_s_settings(hold, old)
        old.set_capabilities({IGNORE_SHARED: True})
    now = hold.now()
    if now is None or now.state is not GuestState.RUNNING or now.job:
        found = f"{now.job or now.state}" if now else "it ended"
        raise Failed(f"{hold.name}: pausing it", expected="it running, and no job", found=found, hint="plan again")
    hold.note(began=ports.monotonic(), began_at=ports.clock.wall_ns() / 1e9)
    hold.deadline = Deadline.begin(hold.budget_seconds, ports.monotonic)
    ends = hold.deadline.ends
    if hold.barrier is None:
        ports.watcher.pausing(ends)
    else:
        hold.barrier.stands_still(ends, ports.watcher)
    ports.libvirt.suspend(hold.uuid)


def stands_still(hold: GuestHold) -> bool:
    now = hold.now()
    return now is not None and now.state is GuestState.PAUSED_BY_OWNER


def resume_as_before(hold: GuestHold) -> None:
    """What was saved is given up first: it must never be loaded once the guest has gone on."""
    libvirt = hold.ports.libvirt
    now = hold.now()
    if now is None:
        return  # ended by somebody else, which the batch has seen
    if now.process != hold.notes.old and now.state not in PASSED_ON and not hold.maps_its_ram(now):
        raise _not_there(hold, "before resuming it", "other RAM, or none yet")
    with suppress(HostagentError):
        files.discard(*hold.notes.files)
    gone_on = (*PASSED_ON, GuestState.PAUSED_BY_OWNER) if now.process != hold.notes.old else PASSED_ON
    if now.state not in gone_on:
        libvirt.resume(hold.uuid)
        hold.measured(paused_for(hold))
    if hold.barrier is None:
        hold.ports.watcher.running()
    if hold.old_is_alive():
        with libvirt.sender(hold.uuid) as old:
            old.set_capabilities({IGNORE_SHARED: False})
            check_set_back(hold, old)
    else:
        libvirt.unmark(hold.uuid)


def paused_for(hold: GuestHold) -> dict[str, object]:
    """Over a change of kernel only the wall clock goes on, by whatever the host sets it as it boots."""
    if hold.notes.landed:
        return {
            "pause_seconds": hold.ports.clock.wall_ns() / 1e9 - hold.notes.began_at,
            "pause_source": "wall-clock",
        }
    return {"pause_seconds": hold.ports.monotonic() - hold.notes.began, "pause_source": "outside"}


def _not_there(hold: GuestHold, when: str, found: str) -> NeedsOperator:
    return NeedsOperator(
        f"{hold.name}: looking at it {when}",
        expected="its QEMU, with the RAM that stayed",
        found=found,
        hint="hostagent recover looks again",
    )


# -- it is saved ------------------------------------------------------------------------------------------------


def save(hold: GuestHold) -> None:
    notes, path = hold.notes, Path(hold.notes.plain.path)
    if hold.old_is_alive():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            hold.ports.libvirt.save(hold.uuid, notes.old, path, SAVE_SECONDS, partial(_end_saved, hold))
        except HostagentError as error:
            may_be_saved = isinstance(error, OutcomeUnknown) or hold.notes.plain.digest
            if not may_be_saved or hold.old_is_alive() or _ended_for_good(hold):
                raise
        if not hold.ports.qemu.wait_gone(notes.old, SAVE_SECONDS):
            raise Failed(f"{hold.name}: saving it", expected="its QEMU to end", found="it is still there")
    if not hold.notes.plain.digest:
        seal(hold)


def _ended_for_good(hold: GuestHold) -> bool:
    """Whether its owner has ended it meanwhile."""
    try:
        hold.ports.libvirt.wait_ended(hold.uuid, KILL_SECONDS)
        now = hold.ports.libvirt.standing(hold.uuid)
    except HostagentError:
        return False  # libvirt's daemon is away: whoever brings it back will see
    return now is not None and now.reason in ENDED_FOR_GOOD


def _end_saved(hold: GuestHold, image: bytes, libvirt_waits: Callable[[], bool]) -> None:
    """End the QEMU once everything that brings the guest back is safe; libvirt has nothing to wait for then.

    A state that cannot be sealed ends the save instead, with the guest as it was. When libvirt's daemon is gone the
    next one may have been told to let the guest go on.
    """
    seal_this(hold, finished(image))
    if hold.deadline is not None:
        hold.deadline.check(f"{hold.name}: before ending its QEMU")
    if libvirt_waits():
        with suppress(HostagentError):  # libvirt sees to its end as well, and what stays is seen afterwards
            hold.ports.qemu.kill(hold.notes.old, KILL_SECONDS)


def is_saved(hold: GuestHold) -> bool:
    notes = hold.notes
    images = (notes.plain, notes.before, notes.after)
    return not hold.old_is_alive() and all(image.digest and Path(image.path).exists() for image in images)


def take_back(hold: GuestHold) -> None:
    """Undo the save: the guest is there again and stands still, on what it ran on."""
    if hold.old_is_alive():
        hold.ports.libvirt.abort_job(hold.uuid, ABORT_SECONDS)  # it may go on though nobody waits for it
    if hold.old_is_alive():
        if hold.now() is None:
            raise _not_there(hold, "before letting go of it", "that its QEMU was killed, and stays: its disk hangs")
        return
    now = hold.now()
    if now is not None:
        if now.state in PASSED_ON or now.state is GuestState.PAUSED_BY_OWNER:
            return  # somebody else had it go on
        if what_is_wrong(hold, now, Side.BEFORE) is None:
            return
        end(hold, now)  # with other RAM, say: nobody may have that go on
    bring_back(hold, Side.BEFORE)
    if (found := what_is_wrong(hold, hold.now(), Side.BEFORE)) is not None:
        now = hold.now()
        if now is not None:
            end(hold, now)
        raise found


# -- it comes back ----------------------------------------------------------------------------------------------


def end(hold: GuestHold, now: Standing) -> None:
    """End a QEMU that has not gone on, and see libvirt clean up behind it.

    Not through libvirt, which would say of the guest later that somebody destroyed it.
    """
    if now.process is None:
        raise _not_there(hold, "before ending it", "libvirt is still starting it")
    hold.ports.qemu.kill(now.process, KILL_SECONDS)
    if not hold.ports.libvirt.wait_ended(hold.uuid, KILL_SECONDS):
        raise Failed(f"{hold.name}: ending what was restored", expected="libvirt to see it gone", found="it there")


def bring_back(hold: GuestHold, side: Side) -> None:
    """Have libvirt restore it, with the RAM that stayed; it stands still."""
    if not is_told(hold):
        raise NeedsOperator(
            f"{hold.name}: restoring it",
            expected="libvirt's hook to know of it",
            found="that somebody gave its RAM up",
            hint="hostagent recover closes the update",
        )
    for pin in hold.notes.pins:
        if not files.is_pinned(pin):
            raise NeedsOperator(
                f"{hold.name}: restoring it", expected=f"its RAM at {pin.link}", found="none, or another file"
            )
    hold.ports.libvirt.restore(good_image(hold, side), hold.ports.config.update.start_seconds)


def what_is_wrong(hold: GuestHold, now: Standing | None, side: Side) -> Failed | None:
    """Why what libvirt has restored is not the guest; None when it is, standing still or resumed by somebody."""
    doing = f"{hold.name}: looking at what was restored"
    if now is None or now.process is None:
        return Failed(doing, expected="it there, standing still", found="libvirt does not run it")
    if now.emulator != hold.emulator(side):
        return Failed(doing, expected=f"it on {hold.emulator(side)}", found=now.emulator)
    mapped = hold.ports.qemu.ram_inodes(now.process)
    for pin in hold.notes.pins:
        if (pin.device, pin.inode) not in mapped:
            return Failed(doing, expected=f"the RAM that stayed at {pin.link}", found="other RAM")
    return None
