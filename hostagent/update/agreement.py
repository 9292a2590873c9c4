"""Whether old and new QEMU are the same guest: comparisons of what both say, each a reason to turn back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hostagent.arguments.command_line import CommandLine, DescriptorKind, DescriptorUse
from hostagent.errors import Failed
from hostagent.facts import Guest
from hostagent.hypervisor import Inventory
from hostagent.hypervisor.domain_xml import network_cards
from hostagent.libvirt_files.capability_cache import CapabilityCache, flags_blocker
from hostagent.libvirt_files.runtime_record import RuntimeRecord
from hostagent.plan import Blocker
from hostagent.update.swap import GuestSwap


def flags(swap: GuestSwap, guest: Guest, record: RuntimeRecord) -> tuple[str, ...]:
    """The capability flags that the record will name for the new QEMU, from libvirt's own cache."""
    libvirt, definition = swap.ports.libvirt, guest.definition

    def cache_of(emulator: str) -> CapabilityCache:
        return libvirt.capability_cache(emulator, definition.virtualisation, definition.machine)

    replaced = guest.process is not None and guest.process.exe_deleted and guest.qemu is not None
    runs = guest.qemu.emulator if replaced and guest.qemu else definition.emulator  # a tree of the build that is gone
    blocker = flags_blocker(
        record,
        before=cache_of(runs),
        after=(after := cache_of(swap.tree.emulator)),
        capability_filters=libvirt.capability_filters(),
        replaced=replaced,
    )
    if blocker is not None:
        raise Failed(
            f"{swap.name}: reading libvirt's capability cache",
            expected=blocker.expected,
            found=blocker.found,
            hint=blocker.hint or None,
        )
    return after.flags


def log_descriptors(name: str, uses: Sequence[DescriptorUse], pipes: Sequence[int]) -> dict[int, int]:
    """Number in the argument list -> descriptor in the old QEMU, for each fdset.

    QEMU moves what -add-fd names to another number and does not say so while libvirt holds its monitor. The sets'
    pipes keep their order; `same_logs` verifies the guess once the monitor can be asked.
    """
    sets = [use for use in uses if use.kind is DescriptorKind.FDSET]
    if len(sets) != len(pipes):
        raise Failed(f"{name}: finding its log pipes", expected=f"{len(sets)} pipes to virtlogd", found=f"{len(pipes)}")
    return {use.number: fd for use, fd in zip(sets, pipes, strict=True)}


def same_logs(swap: GuestSwap, old: Inventory, new: Inventory) -> None:
    """The new QEMU's fdsets must be the old one's pipes."""
    process = swap.notes.new
    for number, fd in old.fdsets.items():
        theirs = new.fdsets.get(number)
        if process is None or theirs is None or not swap.ports.qemu.same_file(swap.notes.old, fd, process, theirs):
            raise Failed(
                f"{swap.name}: comparing fdset {number}",
                expected="the old QEMU's pipe to virtlogd",
                found="another",
            )


def same_guest(name: str, old: Inventory, new: Inventory, line: CommandLine) -> None:
    """Devices, images, consoles and threads of both, and of the argument list that the guest was booted with."""
    _equal(name, "devices", sorted(line.device_ids()), list(old.devices))
    _equal(name, "devices of the new QEMU", list(old.devices), list(new.devices))
    _equal(name, "block nodes", sorted(node.name for node in line.block_nodes()), sorted(old.block_nodes))
    _equal(name, "images", dict(old.block_nodes), dict(new.block_nodes))
    _equal(name, "character devices", list(old.chardevs), list(new.chardevs))
    _equal(name, "objects", list(old.objects), list(new.objects))
    _equal(name, "I/O threads", sorted(old.iothreads), sorted(new.iothreads))
    _equal(name, "vCPUs", sorted(old.vcpu_threads), sorted(new.vcpu_threads))
    _equal(name, "memory devices", list(old.memory_devices), list(new.memory_devices))
    _equal(name, "names of RAM blocks", dict(old.ram_named_by_path), dict(new.ram_named_by_path))
    _equal(name, "block jobs", [], list(old.jobs))


def same_cards(name: str, before: str, now: str) -> None:
    """Network cards by two live XMLs: one that was taken out and put in again has another tap, or another place."""
    _equal(name, "network cards", network_cards(before), network_cards(now))


def _equal(name: str, what: str, expected: object, found: object) -> None:
    if expected != found:
        raise Failed(
            f"{name}: comparing {what}",
            expected=str(expected),
            found=str(found),
            hint="restart the guest, then plan again",
        )


def thread_pairs(swap: GuestSwap, old: Inventory, new: Inventory) -> Mapping[int, int]:
    """Old thread -> new thread, for those that libvirt places one by one."""
    pairs = {old.vcpu_threads[index]: thread for index, thread in new.vcpu_threads.items()}
    pairs |= {old.iothreads[name]: thread for name, thread in new.iothreads.items()}
    if swap.notes.new is not None:
        pairs[swap.notes.old.pid] = swap.notes.new.pid
    return pairs


def recorded_threads(record: RuntimeRecord, vcpu_threads: Mapping[int, int]) -> dict[int, int]:
    """vCPU -> thread, for exactly the vCPUs that the record names."""
    try:
        return {vcpu: vcpu_threads[vcpu] for vcpu, _ in record.vcpu_threads}
    except KeyError as error:
        raise Failed(
            f"{record.name}: placing vCPU {error} in the record", expected="its thread", found="none"
        ) from error


def recorded_terminals(record: RuntimeRecord, terminals: Mapping[str, str]) -> dict[str, str]:
    """Alias -> pseudo terminal of the new QEMU, for exactly those that the record names."""
    try:
        return {alias: terminals[f"char{alias}"] for alias, _ in record.terminals}
    except KeyError as error:
        raise Failed(
            f"{record.name}: placing {error} in the record", expected="its pseudo terminal", found="none"
        ) from error


def no_obstacles(swap: GuestSwap, blockers: Sequence[Blocker]) -> None:
    """What the runtime record says against a handover."""
    if blockers:
        found = "; ".join(str(blocker) for blocker in blockers)
        raise Failed(f"{swap.name}: reading its runtime record", found=found, hint="plan again")


def same_surroundings(swap: GuestSwap) -> None:
    """What libvirt set up around the old QEMU must surround the new one: nobody sets it up again."""
    opened = tuple(ram.path for ram in swap.notes.new_ram)
    found = swap.ports.qemu.differences(swap.notes.old, swap.new_process, opened=opened)
    if found:
        raise Failed(f"{swap.name}: comparing surroundings", expected="the old QEMU's", found="; ".join(found))
