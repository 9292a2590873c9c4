"""Beside the running guest: everything is written down, the RAM is pinned, the new QEMU is started and waits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hostagent.arguments.command_line import CommandLine, DescriptorKind
from hostagent.errors import Failed, HostagentError, Refused
from hostagent.facts import Guest, GuestState, loses_writes
from hostagent.hypervisor import LaunchOrder, ProcessId, RunState
from hostagent.libvirt_files.record_shape import pid_file_name
from hostagent.libvirt_files.runtime_record import RuntimeRecord
from hostagent.update import agreement, files
from hostagent.update.subject import Pin
from hostagent.update.swap import LOCK_LATE, GuestSwap, NewRam, Notes, Socket

LEAVING_SECONDS = 2.0  # one that closes its monitor is on its way out


def prepare(swap: GuestSwap) -> None:
    guest = _guest_as_planned(swap)
    if guest.process is None or guest.domain_id is None:
        raise Failed(f"{swap.name}: preparing", expected="a running QEMU", found="none")
    record_path = Path(swap.ports.config.paths.libvirt_run) / f"{swap.name}.xml"
    record_bytes = files.read_private(record_path)
    record = RuntimeRecord.parse(record_bytes)
    if record.pid != guest.process.pid:
        raise Failed(f"{swap.name}: reading {record_path}", expected=f"pid {guest.process.pid}", found=str(record.pid))
    agreement.no_obstacles(swap, record.obstacles())
    swap.begin_notes(_first_notes(swap, guest, record, record_path))
    files.write_private(Path(swap.notes.kept_record), record_bytes)
    if swap.notes.new_ram:
        _make_room(swap, swap.notes.new_ram)
    for pin in swap.notes.pins:
        files.pin(pin)


def _make_room(swap: GuestSwap, new_ram: Sequence[NewRam]) -> None:
    """The files that its RAM will be in."""
    made = [(ram, *files.make_ram(ram)) for ram in new_ram]
    swap.note(pins=tuple(Pin(ram.path, ram.link, device, inode, ram.size) for ram, device, inode in made))


def _new_ram(swap: GuestSwap, line: CommandLine, record: RuntimeRecord, old: ProcessId) -> tuple[str, list[NewRam]]:
    """The folder and the files where libvirt would have put the RAM, had it been asked for such.

    No folder and no files for RAM that is kept.
    """
    nameless = line.nameless_ram()
    if bool(nameless) is not swap.copies:
        found = "RAM without a name" if nameless else "RAM in files"
        raise Refused(f"{swap.name}: preparing", expected="its RAM as planned", found=found, hint="plan again")
    if not nameless:
        return "", []
    folder = record.memory_backing_dir  # from libvirt 11.3, the guest's own
    if not folder:
        folder = f"{swap.ports.libvirt.memory_backing_dir()}/libvirt/qemu/{record.ram_folder}"
    uid, gid = swap.ports.qemu.owner(old)
    folder_is_new, token = not Path(folder).exists(), swap.ports.token()
    links = files.pin_folder(Path(folder) / nameless[0].file_name)
    return folder, [
        NewRam(
            path=f"{folder}/{ram.file_name}",
            link=f"{links}/{token}-{number}",
            size=ram.size,
            uid=uid,
            gid=gid,
            in_new_folder=folder_is_new and number == 0,  # it is made with the first of them
        )
        for number, ram in enumerate(nameless)
    ]


def _first_notes(swap: GuestSwap, guest: Guest, record: RuntimeRecord, record_path: Path) -> Notes:
    process, domain_id = guest.process, guest.domain_id
    assert process is not None and domain_id is not None  # noqa: S101 - prepare() has looked
    line = CommandLine.parse(guest.arguments)
    old = swap.ports.qemu.identify(process.pid)
    uses = line.descriptors()
    plugged = dict(guest.plugged_taps)
    taps = {
        use.number: swap.ports.qemu.tap_descriptor(old, plugged[use.number]) if use.number in plugged else use.number
        for use in uses
        if use.kind is DescriptorKind.TAP
    }
    logs = agreement.log_descriptors(swap.name, uses, swap.ports.qemu.log_pipes(old))
    channels = {
        f"char{device.alias}": device.source for device in guest.definition.devices if device.element == "channel"
    }
    channels["charmonitor"] = record.monitor_path
    folder, new_ram = _new_ram(swap, line, record, old)
    token = swap.ports.token()
    display = files.temporary_socket(record.monitor_path, f"{token}-vnc", 0) if line.has_display else ""
    return Notes(
        old=old,
        domain_id=domain_id,
        was_running=guest.state is GuestState.RUNNING,
        record=str(record_path),
        kept_record=str(Path(swap.ports.config.paths.state) / "held" / f"{swap.update}-{swap.uuid}.xml"),
        monitor=record.monitor_path,
        pins=tuple(
            Pin(
                ram.path,
                str(files.pin_folder(Path(ram.path)) / f"{token}-{number}"),
                ram.device,
                ram.inode,
                ram.size,
            )
            for number, ram in enumerate(guest.ram_files)
        ),
        sockets=tuple(
            Socket(
                use.number,
                channels[use.owner_id],
                files.temporary_socket(channels[use.owner_id], token, use.number),
            )
            for use in uses
            if use.kind is DescriptorKind.LISTENER
        ),
        taps=dict(swap.ports.qemu.tap_settings(old, tuple(taps.values()))),
        argv=line.handed_over(swap.tree.emulator, folder, display).argv,
        taken_over={**taps, **logs},
        vhosts=tuple(use.number for use in uses if use.kind is DescriptorKind.VHOST),
        new_record=str(record_path.with_suffix(f".{token}-record")),
        old_record=str(record_path.with_suffix(f".{token}-old-record")),
        pid_file=str(record_path.with_name(pid_file_name(swap.name))),
        new_pid_file=str(record_path.with_suffix(f".{token}-new")),
        old_pid_file=str(record_path.with_suffix(f".{token}-old")),
        flags=agreement.flags(swap, guest, record),
        live_xml=swap.ports.libvirt.live_xml(swap.uuid),
        display=display,
        new_ram=tuple(new_ram),
        loses_writes=bool(new_ram) and loses_writes(line.accelerator, guest.qemu),
    )


def is_pinned(swap: GuestSwap) -> bool:
    pins = swap.notes.pins
    return bool(pins) and all(files.is_pinned(pin) for pin in pins) and Path(swap.notes.kept_record).exists()


def unpin(swap: GuestSwap) -> None:
    """Give up what keeps the RAM; only when the guest's own file is certain again."""
    if swap.saved is not None:
        discard_held(swap.saved)


def unprepare(swap: GuestSwap) -> None:
    """As if nothing had been prepared; the guest does not use a file that its RAM was to be copied into."""
    for ram in reversed(swap.saved.new_ram if swap.saved is not None else ()):  # the first one's folder goes with it
        files.remove_ram(ram)
    unpin(swap)


def discard_held(notes: Notes) -> None:
    """What was kept for a way back."""
    for pin in notes.pins:
        files.unpin(pin)
    files.discard(notes.kept_record, notes.old_record, notes.old_pid_file)


def _guest_as_planned(swap: GuestSwap) -> Guest:
    guest = swap.ports.libvirt.guest(swap.uuid)
    if guest is None or guest.state not in {GuestState.RUNNING, GuestState.PAUSED_BY_OWNER}:
        found = "no such guest" if guest is None else f"{guest.state} ({guest.state_reason})"
        raise Refused(
            f"{swap.name}: preparing",
            expected="it running, or paused by its owner",
            found=found,
            hint="plan again",
        )
    return guest


def launch_order(notes: Notes) -> LaunchOrder:
    """How the new QEMU is to be started."""
    return LaunchOrder(
        old=notes.old,
        argv=notes.argv,
        listeners={entry.number: (Path(entry.temporary), Path(entry.path)) for entry in notes.sockets},
        taken_over=notes.taken_over,
        vhosts=notes.vhosts,
        pid_file=Path(notes.new_pid_file),
    )


def start_new(swap: GuestSwap) -> None:
    notes = swap.notes
    with swap.ports.qemu.launch(launch_order(notes)) as launch:
        swap.note(new=launch.process)
        with swap.ports.qemu.keeping_taps(notes.old, notes.taps):
            launch.go()
            try:
                monitor = swap.new_monitor()
            except HostagentError as error:
                raise _died(swap, error) from error
    state = monitor.run_state()
    if state is not RunState.INMIGRATE:
        raise Failed(
            f"{swap.name}: starting QEMU {swap.tree.version}",
            expected="it to wait for the state",
            found=state,
        )
    monitor.reconnect_questions()  # after the commit a refusal would make libvirt kill the guest
    monitor.set_capabilities({**swap.crossing_capabilities, **LOCK_LATE})
    swap.close_monitors()
    agreement.same_surroundings(swap)


def _died(swap: GuestSwap, error: HostagentError) -> Failed:
    """Why a new QEMU is not there: its own last words, if it left any."""
    doing = f"{swap.name}: starting QEMU {swap.tree.version}"
    gone = swap.ports.qemu.wait_gone(swap.new_process, LEAVING_SECONDS)
    words = swap.ports.qemu.last_words(swap.name, LEAVING_SECONDS if gone else 0.0)
    if not gone:
        return Failed(doing, expected="an answer from its monitor", found=str(error))
    return Failed(
        doing,
        expected="it to wait for the state",
        found=f"it left: {words}" if words else f"it left ({error})",
    )


def new_one_waits(swap: GuestSwap) -> bool:
    return swap.new_is_alive() and all(Path(entry.temporary).exists() for entry in swap.notes.sockets)


def stop_new(swap: GuestSwap) -> None:
    """End the new QEMU, see it gone, put the taps back as they were. Any number of times."""
    if swap.saved is None:
        return
    swap.end_new()
    made = (swap.notes.new_pid_file, swap.notes.new_record, *([swap.notes.display] if swap.notes.display else []))
    files.discard(*(entry.temporary for entry in swap.notes.sockets), *made)
    if swap.old_is_alive():
        swap.ports.qemu.put_taps(swap.notes.old, swap.notes.taps)
