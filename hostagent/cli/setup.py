"""hostagent setup: what in-place updates need of a host."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from hostagent import wiring
from hostagent.cli.common import Call, begin, change
from hostagent.cli.output import Cell, Column, Part, indented, sentence, table
from hostagent.cli.verbs import Asked, verb
from hostagent.errors import ExitCode, HostagentError, Refused, UsageError
from hostagent.session import require_nothing_open
from hostagent.setup import setup_host
from hostagent.setup.host_files import HostFiles, SystemMounts
from hostagent.setup.kernel_swaps import GIVE_BACK, REBOOT, KernelFacts, gives_back
from hostagent.setup.setup_tasks import Need, Task


@verb("setup", example="hostagent setup --check")
@click.option("--check", "only_check", is_flag=True, help="Change nothing; exit code 3 when something is missing.")
@click.option("--undo", is_flag=True, help="Take away what setup put in place.")
@click.option("--kernel-swaps", is_flag=True, help="Also have guests' RAM outlive the host's kernel.")
@click.option("--reserve", metavar="SIZE", help="Memory for guests then, like 64G; half of the host's if not given.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def setup(asked: Asked, *, only_check: bool, undo: bool, kernel_swaps: bool, reserve: str | None, yes: bool) -> int:
    """Give this host what in-place updates need: shown first, then done. Any number of times.

    Guests' RAM goes into files in memory, on a tmpfs that only QEMU's user can enter; hostagent gets directories of
    its own. With --kernel-swaps that memory is one that no kernel takes for its own, from the next boot on. --undo
    takes everything away again, of both; not while guests have their RAM there.
    """
    for other, given in (("--check", only_check), ("--kernel-swaps", kernel_swaps)):
        if undo and given:
            raise UsageError(
                "reading the command line", found=f"both {other} and --undo", hint="hostagent setup --help"
            )
    if reserve is not None and not kernel_swaps:
        raise UsageError("reading the command line", expected="--kernel-swaps with --reserve", found="--reserve alone")
    call = begin(asked)
    if undo:
        return _undo(call, yes=yes)
    size = _bytes(reserve) if reserve is not None else None
    swaps = kernel_swaps or bool(call.config.setup.ram_device)
    needs = setup_host.check(_tasks(call, size, swaps=swaps))
    missing = [need for need in needs if not need.satisfied]
    if only_check or not missing:
        verdict = sentence(f"Missing: {len(missing)} of {len(needs)}." if missing else "Everything is in place.")
        call.out.show({"needs": [_need_json(need) for need in needs]}, *_parts(needs), "", verdict)
        return ExitCode.REFUSED if missing else ExitCode.DONE
    call.out.say(*_parts(needs), "")
    _confirm(call, "Make these changes?", yes=yes)
    with change(call, "setup"):
        report = setup_host.apply(_tasks(call, size, swaps=swaps))
    after = setup_host.check(_tasks(call, size, swaps=swaps))
    if not report.done:  # taking the host to oneself has made hostagent's own directory
        satisfied = {need.name for need in after if need.satisfied}
        report = replace(report, done=tuple(need.change for need in missing if need.name in satisfied))
    if any(REBOOT in need.change for need in after):
        return _told(call, report, after, [REBOOT])
    return _told(call, report, after, [setup_host.RESTART] if report.restart_libvirtd else [])


def _undo(call: Call, *, yes: bool) -> int:
    call.out.say("This takes away what setup put in place. Nothing else is touched.")
    _confirm(call, "Undo the setup?", yes=yes)
    files, kernel = HostFiles(), _kernel(call)
    with change(call, "setup --undo") as work:
        require_nothing_open(work.session)  # held guests, a leap: what they need is taken away below
        wanted = setup_host.wanted_on_this_host(call.config, files)
        report = setup_host.undo(setup_host.tasks_to_undo(wanted, files, SystemMounts(), kernel))
    following = [setup_host.RESTART] if report.restart_libvirtd else []
    return _told(call, report, (), [*following, *([GIVE_BACK] if gives_back(files, kernel) else [])])


def _told(call: Call, report: setup_host.Report, needs: Sequence[Need], following: Sequence[str]) -> int:
    """following: what a person has to do next."""
    parts: list[Part] = [indented(f"done: {words}", 2) for words in report.done] or ["Nothing had to be done."]
    for words in following:
        parts += ["", sentence(f"Next: {words}", "wait")]
    document = {
        "done": list(report.done),
        "restart_libvirtd": report.restart_libvirtd,
        "reboot": bool({REBOOT, GIVE_BACK} & set(following)),
        "needs": [_need_json(need) for need in needs],
    }
    call.out.show(document, *parts)
    return ExitCode.DONE


def _tasks(call: Call, size: int | None, *, swaps: bool) -> tuple[Task, ...]:
    """swaps: guests' RAM is to outlive the kernel; size: of that memory, in bytes."""
    files, mounts = HostFiles(), SystemMounts()
    wanted = setup_host.wanted_on_this_host(call.config, files)
    if not swaps:
        return setup_host.tasks(wanted, files, mounts, _ram_paths(call))
    return setup_host.kernel_swap_tasks(wanted, files, mounts, _ram_paths(call), size=size, kernel=_kernel(call))


def _kernel(call: Call) -> KernelFacts:
    return KernelFacts(wiring.kernel_of(call.config).was_leapt_to)


def _bytes(text: str) -> int:
    found = re.fullmatch(r"([1-9][0-9]{0,6})([MGT])i?B?", text, re.ASCII)
    if found is None:
        raise UsageError("reading --reserve", expected="a size like 512M, 64G or 2T", found=repr(text))
    return int(found[1]) << {"M": 20, "G": 30, "T": 40}[found[2]]


def _ram_paths(call: Call) -> list[Path]:
    """The RAM files of all running guests, which must not be moved away from."""
    try:
        return [Path(ram.path) for guest in call.host().guests for ram in guest.ram_files]
    except HostagentError as error:
        if any(call.config.paths.libvirt_run.glob("*.pid")):
            raise Refused(
                "setting up",
                expected="libvirt to say where its guests' RAM is",
                found=str(error),
                hint="start libvirt's daemon first",
            ) from error
        return []  # libvirt is not there yet, nor is any guest


def _confirm(call: Call, question: str, *, yes: bool) -> None:
    if yes:
        return
    if not call.out.can_ask():
        raise UsageError("setting up", expected="a terminal to ask on, or --yes", found="neither")
    if not call.out.ask(question):
        raise Refused("setting up", found="the answer was no; nothing was touched")


def _parts(needs: Sequence[Need]) -> list[Part]:
    """What there is and what is missing; below it, what would be done about it."""
    rows = [(Cell("ok", "good") if need.satisfied else Cell("missing", "wait"), need.name, need.why) for need in needs]
    parts: list[Part] = [table((Column(""), Column("need"), Column("what for")), rows)]
    missing = [need for need in needs if not need.satisfied]
    if missing:
        parts += ["", "What would be done:"]
    for need in missing:
        parts.append(indented(need.change, 2))
        if need.in_the_way:
            parts.append(indented(f"but in the way is: {need.in_the_way}", 4, "bad"))
    return parts


def _need_json(need: Need) -> dict[str, object]:
    return {
        "name": need.name,
        "why": need.why,
        "satisfied": need.satisfied,
        "change": need.change,
        "in_the_way": need.in_the_way,
    }
