"""hostagent inspect: the host and its guests as they are."""

from __future__ import annotations

from collections.abc import Sequence

import click

from hostagent import wiring
from hostagent.cli import words
from hostagent.cli.common import begin
from hostagent.cli.output import Cell, Column, Part, sentence, table
from hostagent.cli.plan import policies_of
from hostagent.cli.plan_view import blockers_json, reasons
from hostagent.cli.verbs import Asked, verb
from hostagent.errors import ExitCode
from hostagent.facts import Component, Freshness, Guest, Host, QemuTree
from hostagent.plan import Blocker, Technique, Way
from hostagent.planning.checks import handover_blockers, host_blockers
from hostagent.planning.copy_checks import ram_to_copy
from hostagent.planning.ladder import in_place_way
from hostagent.planning.planner import chosen_guests
from hostagent.trees.qemu_trees import SYSTEM

Seen = tuple[Guest, Way]

_COLUMNS = (
    Column("guest"),
    Column("state"),
    Column("QEMU"),
    Column("RAM", figures=True),
    Column("backed by"),
    Column("update in place"),
)


@verb("inspect", example="hostagent inspect --guest web1", operation="inspect")
@click.option("--guest", "guests", multiple=True, metavar="NAME", help="This guest only; may be repeated.")
def inspect(asked: Asked, guests: tuple[str, ...]) -> int:
    """See the host and its guests, and for each why it cannot be updated in place, if so.

    The QEMU that guests run on is kept, if it was not yet, so that there is a way back to it.
    """
    call = begin(asked)
    host = call.kept_host()
    policies = policies_of(call, None)
    ways = {guest.uuid: in_place_way(host, guest, policies.of(guest)) for guest in host.guests}
    seen = [(guest, ways[guest.uuid]) for guest in chosen_guests(host, guests or None)]
    held = any(way.technique is Technique.HOLD and not way.blockers for way in ways.values())
    against = host_blockers(host) + (() if held else handover_blockers(host))
    components = wiring.components_of(call.config, host)
    parts = [*_host_parts(host, against), *_component_parts(components), *_guest_parts(seen, against)]
    document = {
        **_host_json(host, against),
        "components": [_component_json(component) for component in components],
        "guests": [_guest_json(*one, against) for one in seen],
    }
    call.out.show(document, *parts)
    return ExitCode.DONE


def _host_parts(host: Host, against: tuple[Blocker, ...]) -> list[Part]:
    parts: list[Part] = [
        sentence(f"host {host.hostname}: libvirt {host.libvirt} at {host.libvirt_uri}, kernel {host.kernel}"),
        *(sentence(f"QEMU {tree_words(tree)}") for tree in host.qemu),
        "",
    ]
    if against:
        parts += [sentence("No guest of this host can be updated in place:", "bad"), *reasons(against), ""]
    return parts


_STYLES = {Freshness.CURRENT: "good", Freshness.OUTDATED: "wait"}


def _component_parts(components: Sequence[Component]) -> list[Part]:
    columns = (Column("component"), Column("runs"), Column("installed"), Column(""))
    rows = [
        (
            component.name,
            component.running or words.NONE,
            component.installed or words.NONE,
            Cell(component.freshness, _STYLES.get(component.freshness, "dim")),
        )
        for component in components
    ]
    return [table(columns, rows), ""]


def _component_json(component: Component) -> dict[str, object]:
    return {
        "name": component.name,
        "running": component.running,
        "installed": component.installed,
        "freshness": component.freshness,
    }


def tree_words(tree: QemuTree) -> str:
    """A QEMU in a line."""
    package = f" ({tree.package})" if tree.package else ""
    own = "the system's own" if tree.name == SYSTEM else f"tree {tree.name}"
    return f"{tree.version}{package}, {own}"


def _guest_parts(seen: Sequence[Seen], against: tuple[Blocker, ...]) -> list[Part]:
    if not seen:
        return ["No guests on this host.", ""]
    rows = [_row(*one, against) for one in seen]
    parts: list[Part] = [table(_COLUMNS, rows), ""]
    for guest, way in seen:
        if way.blockers and guest.state.active:
            parts += [sentence(f"{guest.name} cannot be updated in place:", "bad"), *reasons(way.blockers), ""]
    return parts


def _row(guest: Guest, way: Way, against: tuple[Blocker, ...]) -> tuple[str | Cell, ...]:
    state = f"{guest.state} ({guest.state_reason})" if guest.state_reason else str(guest.state)
    definition = guest.definition
    return (
        guest.name,
        state,
        _qemu(guest),
        words.size(definition.memory),
        str(definition.ram),
        _can(guest, way, against),
    )


def _can(guest: Guest, way: Way, against: tuple[Blocker, ...]) -> Cell:
    if not guest.state.active:
        return Cell("not running", "dim")
    if way.blockers:
        return Cell(f"no: {words.counted(len(way.blockers), 'reason')} below", "bad")
    if against:
        return Cell("no: see the host", "bad")
    if way.technique is Technique.HOLD:
        return Cell("yes, held", "good")
    return Cell("yes, RAM copied" if ram_to_copy(guest) else "yes", "good")


def _qemu(guest: Guest) -> str | Cell:
    process = guest.process
    if process is None:
        return words.NONE
    if guest.qemu is not None:
        version = str(guest.qemu.version)
        return Cell(f"{version}, replaced since", "wait") if process.exe_deleted else version
    return Cell("binary deleted" if process.exe_deleted else "not known", "bad")


def _host_json(host: Host, against: tuple[Blocker, ...]) -> dict[str, object]:
    return {
        "host": {
            "hostname": host.hostname,
            "kernel": host.kernel,
            "libvirt": str(host.libvirt),
            "libvirt_uri": host.libvirt_uri,
            "memory_backing_dir": host.memory_backing_dir,
            "qemu": [tree_json(tree) for tree in host.qemu],
            "blockers": blockers_json(against),
        }
    }


def tree_json(tree: QemuTree) -> dict[str, object]:
    """A QEMU for a program."""
    return {
        "name": tree.name,
        "version": str(tree.version),
        "package": tree.package,
        "emulator": tree.emulator,
    }


def _guest_json(guest: Guest, way: Way, against: tuple[Blocker, ...]) -> dict[str, object]:
    process, possible = guest.process, guest.state.active and not way.blockers and not against
    running = process and {
        "pid": process.pid,
        "exe": process.exe,
        "exe_deleted": process.exe_deleted,
        "tree": tree_json(guest.qemu) if guest.qemu else None,
    }
    return {
        "name": guest.name,
        "uuid": guest.uuid,
        "state": guest.state,
        "state_reason": guest.state_reason,
        "persistent": guest.persistent,
        "autostart": guest.autostart,
        "machine": guest.definition.machine,
        "vcpus": guest.definition.vcpus,
        "qemu": running,
        "ram": {"bytes": guest.definition.memory, "backing": guest.definition.ram},
        "in_place": {
            "possible": possible,
            "technique": way.technique if possible else None,
            "copies_ram": ram_to_copy(guest) > 0,
            "blockers": blockers_json(way.blockers),
        },
    }
