"""What the steps of a reboot do: the guest is asked to shut down, started anew, and seen to have booted."""

from __future__ import annotations

from contextlib import suppress

from hostagent.boot import boot_id_of
from hostagent.errors import Failed, HostagentError, NeedsOperator, OutcomeUnknown, Refused
from hostagent.facts import Guest, GuestState
from hostagent.hypervisor import ProcessId, ShutDownBy
from hostagent.policy import tcp_address
from hostagent.update.guest_reboot import GuestReboot, RebootNotes

ASK_SECONDS = 10.0  # libvirt itself waits a minute for an agent to obey
TERMINATE_SECONDS = 60.0  # a QEMU writes out what it holds of the disks
LOOK_SECONDS = 5.0  # between two looks at a guest that boots
KNOCK_SECONDS = 5.0


# -- beside the running guest -----------------------------------------------------------------------------------


def prepare(reboot: GuestReboot) -> None:
    """Nothing is asked of a guest whose boot could not be proved, or that the new QEMU does not know how to run."""
    ports, guest = reboot.ports, _guest_as_planned(reboot)
    definition = guest.definition
    ports.libvirt.capability_cache(reboot.tree.emulator, definition.virtualisation, definition.machine)
    seconds = ports.config.clock.agent_seconds
    agent, boot_id = ports.libvirt.wait_agent(reboot.uuid, seconds), ""
    if agent:
        with ports.libvirt.agent(reboot.uuid) as asked:
            boot_id = boot_id_of(asked, seconds)
    elif not _knock(reboot, reboot.boot_tcp, KNOCK_SECONDS):
        raise Refused(
            f"{reboot.name}: preparing its reboot",
            expected=f"its agent to answer, or {reboot.boot_tcp or 'a boot-tcp in its policy'}",
            found="neither: nobody could say whether it has booted",
            hint="see to its agent, or name a TCP port that it answers at: hostagent guest set NAME --boot-tcp",
        )
    assert guest.process is not None  # noqa: S101 - _guest_as_planned() has looked
    ran_on = guest.qemu.emulator if guest.qemu is not None else definition.emulator
    reboot.begin_notes(
        RebootNotes(
            old=ProcessId(guest.process.pid, guest.process.start_ticks),
            emulator=ran_on,
            boot_tcp="" if agent else reboot.boot_tcp,
            agent=agent,
            boot_id=boot_id,
        )
    )


def is_prepared(reboot: GuestReboot) -> bool:
    return reboot.saved is not None


def _guest_as_planned(reboot: GuestReboot) -> Guest:
    """Raises Refused unless it can be shut down and started anew."""
    guest, doing = reboot.ports.libvirt.guest(reboot.uuid), f"{reboot.name}: preparing its reboot"
    if guest is None or guest.state is not GuestState.RUNNING or guest.process is None:
        found = "no such guest" if guest is None else f"{guest.state} ({guest.state_reason})"
        raise Refused(doing, expected="it running", found=found, hint="plan again")
    against = {
        "a transient one": not guest.persistent,
        "a saved state of it": guest.managed_save,
        guest.job: bool(guest.job),
        f"<on_poweroff> {guest.definition.on_poweroff}": guest.definition.on_poweroff != "destroy",
    }
    if wrong := [words for words, holds in against.items() if holds]:
        raise Refused(doing, expected="a guest that can be rebooted", found=", ".join(wrong), hint="plan again")
    return guest


def _knock(reboot: GuestReboot, place: str, seconds: float) -> bool:
    address = tcp_address(place)
    return address is not None and reboot.ports.answers(*address, seconds)


# -- it shuts down ----------------------------------------------------------------------------------------------


def shut_down(reboot: GuestReboot) -> None:
    ports = reboot.ports
    ports.watcher.ready()
    guest = _guest_as_planned(reboot)
    if guest.process is None or ProcessId(guest.process.pid, guest.process.start_ticks) != reboot.notes.old:
        raise Failed(f"{reboot.name}: shutting it down", expected="the QEMU that it was planned with", found="another")
    reboot.note(asked=ports.monotonic())
    if not _shuts_itself_down(reboot):
        _end_it(reboot)
    if (gone := reboot.ended_by_others(())) is not None:
        raise Failed(f"{reboot.name}: shutting it down", found=str(gone.why))
    reboot.note_if_possible(ended=ports.monotonic())


def _shuts_itself_down(reboot: GuestReboot) -> bool:
    """Ask, and wait as long as it may take. Its agent first, if that has answered, and later its power button too."""
    half = reboot.ports.config.reboot.shutdown_seconds / 2
    told = _ask(reboot, ShutDownBy.AGENT) if reboot.notes.agent else _NotAsked(reboot.name)
    if told is None and _has_ended(reboot, half):
        return True
    refused = _ask(reboot, ShutDownBy.ACPI)
    if refused is None or told is None:
        return _has_ended(reboot, reboot.shutdown_left())
    # An agent that obeys may be cut off before it has answered, and nobody can press the button of what shuts down.
    if not isinstance(told, _NotAsked) and not _runs_on(reboot):
        return _has_ended(reboot, reboot.shutdown_left())
    reboot.note_if_possible(asked=0.0)  # nobody has asked it for anything
    raise refused


class _NotAsked(Failed):
    def __init__(self, name: str) -> None:
        super().__init__(f"{name}: asking it to shut itself down", expected="it running", found="that it is not")


def _runs_on(reboot: GuestReboot) -> bool:
    now = reboot.now()
    return now is not None and now.state is GuestState.RUNNING and now.process == reboot.notes.old


def _has_ended(reboot: GuestReboot, seconds: float) -> bool:
    """Wait for it; whether it has, also where its owner has started it anew meanwhile: that one nobody ends."""
    return reboot.ports.libvirt.wait_ended(reboot.uuid, seconds) or not reboot.old_is_alive()


def _ask(reboot: GuestReboot, by: ShutDownBy) -> HostagentError | None:
    """Why it was not asked; None when it was, or may have been."""
    try:
        asked = reboot.ports.libvirt.shut_down(reboot.uuid, by, ASK_SECONDS)
    except OutcomeUnknown:
        return None
    except HostagentError as error:
        return error
    return None if asked else _NotAsked(reboot.name)


def _end_it(reboot: GuestReboot) -> None:
    settings, libvirt = reboot.ports.config.reboot, reboot.ports.libvirt
    doing = f"{reboot.name}: shutting it down"
    if not settings.force:
        raise Failed(
            doing,
            expected=f"it to shut itself down within {settings.shutdown_seconds:g} s",
            found="that it runs on",
            hint="see why it does not heed its agent or its power button; it is not ended by force",
        )
    reboot.note(forced=True)
    if not reboot.old_is_alive():
        return
    with suppress(OutcomeUnknown):
        libvirt.terminate(reboot.uuid, TERMINATE_SECONDS)
    if not _has_ended(reboot, TERMINATE_SECONDS):
        raise Failed(doing, expected="its QEMU to end, as it was told to", found="it there")


def is_shut_down(reboot: GuestReboot) -> bool:
    if reboot.saved is None or not reboot.saved.asked or reboot.old_is_alive():
        return False
    now = reboot.now()
    return now is not None and (not now.state.active or now.process not in (None, reboot.notes.old))


def run_again(reboot: GuestReboot) -> None:
    """A guest that was shut down runs again, on what it ran on before, or as its definition says."""
    if reboot.saved is None or not reboot.saved.asked:
        return
    now = reboot.now()
    if now is None or reboot.ended_by_others(()) is not None:
        return  # nobody wants it to run
    if now.state.active:
        if now.process is None:
            raise _not_back(reboot, "libvirt is still starting it")
        reboot.undone = _CANNOT_BE_TAKEN_BACK.format(reboot.uuid) if now.process == reboot.notes.old else _STARTED
        return
    ran_on = reboot.notes.emulator
    for emulator in (ran_on, None):
        try:
            reboot.ports.libvirt.start(reboot.uuid, emulator, reboot.ports.config.update.start_seconds)
        except OutcomeUnknown:
            reboot.ports.libvirt.wait_started(reboot.uuid, reboot.ports.config.update.start_seconds)
        except HostagentError as error:
            if emulator is None:
                raise _not_back(reboot, str(error)) from error
            continue
        break
    if not reboot.is_there():
        raise _not_back(reboot, "that it does not run")
    reboot.undone = _STARTED if emulator == ran_on else f"{_STARTED}, on what its definition names"


def _not_back(reboot: GuestReboot, found: str) -> NeedsOperator:
    return NeedsOperator(
        f"{reboot.name}: starting it again, as it was shut down",
        expected=f"it to run on {reboot.notes.emulator}",
        found=found,
        hint=f"hostagent recover tries again; or virsh start {reboot.uuid}, and then hostagent recover",
    )


_STARTED = "it was shut down, and started again"
_CANNOT_BE_TAKEN_BACK = (
    "it runs, and was asked to shut down, which cannot be taken back: should it do so later, virsh start {}"
)


# -- it starts, and boots ---------------------------------------------------------------------------------------


def start(reboot: GuestReboot) -> None:
    now, ports = reboot.now(), reboot.ports
    if now is not None and now.state.active:
        if not reboot.went_forward():
            found = f"that somebody started it on {now.emulator}"
            raise Failed(f"{reboot.name}: starting it", expected="it shut off", found=found)
    else:
        ports.libvirt.start(reboot.uuid, reboot.tree.emulator, ports.config.update.start_seconds)
        reboot.started = ports.monotonic()
        if reboot.notes.ended:
            reboot.measured({"down_seconds": reboot.started - reboot.notes.ended})


def is_started(reboot: GuestReboot) -> bool:
    reboot.ports.libvirt.wait_started(reboot.uuid, reboot.ports.config.update.start_seconds)
    return reboot.went_forward()


def see_it_boot(reboot: GuestReboot) -> None:
    """Wait until something in it answers. It is never ended for being slow."""
    ports, doing = reboot.ports, f"{reboot.name}: waiting until it has booted"
    seconds = ports.config.reboot.boot_seconds
    ends = ports.monotonic() + seconds
    while (left := ends - ports.monotonic()) > 0:
        if has_booted(reboot, min(left, LOOK_SECONDS)):
            if reboot.started is not None:
                reboot.measured({"boot_seconds": ports.monotonic() - reboot.started})
            return
        if not reboot.went_forward():
            raise Failed(doing, expected=f"it to run on {reboot.tree.version}", found="that it does not")
    raise Failed(
        doing,
        expected=f"{reboot.notes.boot_tcp or 'its agent'} to answer within {seconds:g} s",
        found=f"that it runs on {reboot.tree.version}, and nothing answers",
        hint=f"look at its console (virsh console {reboot.uuid}); once it answers: hostagent recover",
    )


def has_booted(reboot: GuestReboot, seconds: float = 0.0) -> bool:
    """Whether it shows that it has, at once or within that time; raises Failed for the boot that was to end."""
    if reboot.proven:
        return True
    notes, libvirt = reboot.notes, reboot.ports.libvirt
    if notes.boot_tcp:
        shown = _knock(reboot, notes.boot_tcp, seconds)
    elif shown := libvirt.wait_agent(reboot.uuid, seconds):
        with libvirt.agent(reboot.uuid) as agent:
            boot_id = boot_id_of(agent, reboot.ports.config.clock.agent_seconds)
        if boot_id and boot_id == notes.boot_id:
            raise Failed(f"{reboot.name}: asking its agent", expected="another boot than before", found=boot_id)
    reboot.proven = shown and reboot.went_forward()
    return reboot.proven
