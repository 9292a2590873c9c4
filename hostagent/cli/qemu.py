"""hostagent qemu: QEMU versions side by side."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from hostagent import wiring
from hostagent.cli.common import Call, begin, change
from hostagent.cli.inspect import tree_json, tree_words
from hostagent.cli.output import Column, indented, sentence, table
from hostagent.cli.verbs import Asked, Verbs, verb
from hostagent.errors import ExitCode, HostagentError
from hostagent.facts import QemuTree
from hostagent.trees import qemu_trees

_PLACES = {
    "add": ("hostagent.cli.qemu:add", "Add a version, from Debian packages or a directory."),
    "list": ("hostagent.cli.qemu:list_trees", "List the versions there are."),
}


@click.group("qemu", cls=Verbs, places=_PLACES)
def qemu() -> None:
    """QEMU versions side by side, each in a tree of its own; the system's own is among them."""


@verb("add", example="hostagent qemu add qemu-system-x86_*.deb qemu-system-common_*.deb qemu-system-data_*.deb")
@click.argument("sources", nargs=-1, required=True, metavar="FILES.deb|DIR", type=click.Path(path_type=Path))
def add(asked: Asked, sources: tuple[Path, ...]) -> int:
    """Add a QEMU beside the others, from its Debian packages or from a directory.

    Guests are not touched by it, and the system's own QEMU stays as it is.
    """
    call = begin(asked)
    with change(call, "qemu add") as work, work.signals.ordinary():
        tree = qemu_trees.add(sources, state=call.config.paths.state)
    next_step = f"See what it would do: hostagent plan qemu --to {tree.name}"
    call.out.show(tree_json(tree), sentence(f"QEMU {tree_words(tree)}, is ready."), sentence(next_step))
    return ExitCode.DONE


@verb("list", example="hostagent qemu list")
def list_trees(asked: Asked) -> int:
    """List every QEMU on this host, and how many guests run on each."""
    call = begin(asked, root=False)
    trees = wiring.trees_of(call.config)
    users = _users(call)
    columns = [Column("name"), Column("version"), Column("package"), Column("guests", figures=True)]
    rows = [(tree.name, str(tree.version), tree.package, _figure(_used(tree, users))) for tree in trees]
    document = [{**tree_json(tree), "guests": _used(tree, users)} for tree in trees]
    emulators = [indented(tree.emulator, 2) for tree in trees]
    shown = [table(columns, rows), "", "Emulators:", *emulators] if trees else ["No QEMU on this host."]
    call.out.show({"qemu": document}, *shown)
    return ExitCode.DONE


def _users(call: Call) -> list[QemuTree | None] | None:
    """The QEMU of each running guest; None when libvirt does not say."""
    with contextlib.suppress(HostagentError):
        return [guest.qemu for guest in call.host().guests if guest.process]
    return None


def _used(tree: QemuTree, users: list[QemuTree | None] | None) -> int | None:
    return None if users is None else users.count(tree)


def _figure(count: int | None) -> str:
    return "?" if count is None else str(count)
