"""hostagent qemu: QEMU versions side by side."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from hostagent import wiring
from hostagent.cli.common import Call, begin, change
from hostagent.cli.inspect import tree_json, tree_words
from hostagent.cli.output import Column, indented, sentence, table
from hostagent.cli.verbs import Asked, Verbs, verb
from hostagent.errors import ExitCode, HostagentError, Refused
from hostagent.facts import Guest, QemuTree
from hostagent.planning.planner import choose_tree
from hostagent.session import require_nothing_open
from hostagent.trees import apt_packages, qemu_trees

_PLACES = {
    "add": ("hostagent.cli.qemu:add", "Add a version, from Debian packages or a directory."),
    "fetch": ("hostagent.cli.qemu:fetch", "Add a version from apt's sources, without installing it."),
    "keep": ("hostagent.cli.qemu:keep", "Keep the system's own as it is now, beside what replaces it."),
    "list": ("hostagent.cli.qemu:list_trees", "List the versions there are."),
    "remove": ("hostagent.cli.qemu:remove", "Remove a version that no guest uses."),
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


@verb("fetch", example="hostagent qemu fetch 10.0")
@click.argument("version", metavar="VERSION")
def fetch(asked: Asked, version: str) -> int:
    """Add the newest QEMU whose version begins with VERSION, from apt's sources; nothing is installed.

    Looks in the sources list that `apt_sources` in the configuration names, if there is such a file
    (/etc/hostagent/qemu.list), else in the system's own.
    """
    call = begin(asked)
    state = call.config.paths.state
    with (
        change(call, "qemu fetch") as work,
        work.signals.ordinary(),
        tempfile.TemporaryDirectory(prefix=".fetching-", dir=state) as folder,
    ):
        packages = apt_packages.download(version, sources=call.config.paths.apt_sources, folder=Path(folder))
        tree = qemu_trees.add(packages, state=state)
    next_step = f"See what it would do: hostagent plan qemu --to {tree.name}"
    call.out.show(tree_json(tree), sentence(f"QEMU {tree_words(tree)}, is ready."), sentence(next_step))
    return ExitCode.DONE


@verb("keep", example="hostagent qemu keep")
def keep(asked: Asked) -> int:
    """Keep the system's own QEMU as it is installed now: before an upgrade, so that there is a way back.

    Whatever looks at guests that run on it (inspect, plan, update) keeps it by itself. Nothing is done when it is kept
    already.
    """
    call = begin(asked)
    with change(call, "qemu keep") as work, work.signals.ordinary():
        tree = qemu_trees.keep(call.config.paths.state, call.config.paths.system_emulator)
    call.out.show(tree_json(tree), sentence(f"QEMU {tree_words(tree)}, is kept."))
    return ExitCode.DONE


@verb("remove", example="hostagent qemu remove 10.0.2+ds-2")
@click.argument("name", metavar="NAME")
def remove(asked: Asked, name: str) -> int:
    """Remove a QEMU of `hostagent qemu list`; refused while a guest runs, or is defined to run, on it."""
    call = begin(asked)
    with change(call, "qemu remove") as work:
        require_nothing_open(work.session)
        tree = choose_tree(wiring.trees_of(call.config), name)
        if tree.name != qemu_trees.SYSTEM:  # that is apt's to remove, as `remove` says
            _require_unused(tree, call.host().guests)
        qemu_trees.remove(tree.name, state=call.config.paths.state)
    call.out.show({"removed": tree.name}, sentence(f"QEMU {tree.name} is removed."))
    return ExitCode.DONE


def _require_unused(tree: QemuTree, guests: Sequence[Guest]) -> None:
    run = [
        f"{guest.name} runs on {_it(guest.qemu, tree)}"
        for guest in guests
        if guest.qemu and tree.is_build_of(guest.qemu)
    ]
    defined = [f"{guest.name} is defined to" for guest in guests if guest.definition.emulator == tree.emulator]
    if run or defined:
        hint = "bring them to another one first: hostagent update; virsh edit"
        found = "; ".join([*run, *defined])
        raise Refused(f"removing QEMU {tree.name}", expected="no guest that runs on it", found=found, hint=hint)


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


def _it(qemu: QemuTree, tree: QemuTree) -> str:
    return "it" if qemu == tree else f"this build ({qemu.emulator})"


def _users(call: Call) -> list[QemuTree | None] | None:
    """The QEMU of each running guest; None when libvirt does not say."""
    with contextlib.suppress(HostagentError):
        return [guest.qemu for guest in call.host().guests if guest.process]
    return None


def _used(tree: QemuTree, users: list[QemuTree | None] | None) -> int | None:
    return None if users is None else users.count(tree)


def _figure(count: int | None) -> str:
    return "?" if count is None else str(count)
