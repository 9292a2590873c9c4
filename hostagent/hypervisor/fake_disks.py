"""The fake's laws of disks that are each host's own: what a guest finds on them, and what a copy does to a file."""

from __future__ import annotations

from hostagent.hypervisor.fake_world import GuestLife, Process, State


def owner_of(state: State, path: str) -> GuestLife | None:
    """Whose disk is at that path, on whatever host."""
    return next((guest for guest in state.guests.values() if path in guest.disks), None)


def writes(state: State, process: Process) -> None:
    """The guest goes on: it must find what it has written last, and writes more."""
    guest = state.guests[process.guest]
    files = [state.files.get(f"{process.host}:{path}") for path in guest.disks]
    if any(file is None or file.holds != guest.wrote for file in files):
        state.violated(f"{guest.name} went on in process {process.pid} with a disk that is past")
    guest.wrote += bool(files)
    for file in files:
        if file is not None:
            file.holds = guest.wrote


def copying_begins(state: State, uuid: str, target: str, *, copies: bool) -> str:
    """libvirt writes into whatever file is there; why it does not begin, if it does not."""
    guest = state.guests[uuid]
    for path in guest.disks:
        file = state.files.get(f"{target}:{path}")
        if not copies:
            return f"Cannot access storage file '{path}': No such file or directory"
        if file is None:
            return "Storage pool not found: no storage pool with matching target path"
        if target and file.by != "hostagent":
            state.violated(f"{path} on {target} was written over, which is somebody's")
        if file.holds == guest.wrote:
            state.violated(f"the disk of {guest.name} was written over while it is the last")
        file.holds = -1
    return ""


def copied(state: State, uuid: str, target: str) -> None:
    """All that the guest has written is there as well, as it stands still."""
    guest = state.guests[uuid]
    for path in guest.disks:
        state.files[f"{target}:{path}"].holds = guest.wrote
