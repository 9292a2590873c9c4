"""AppArmor: the new QEMU runs under the profile that libvirt made for the guest, which is told what the new one opens.

libvirt makes a profile per guest, `libvirt-UUID`, and writes its rules anew at every hotplug, with what is plugged and
without what QEMU has open since its start (virt-aa-helper). A process that is started under it later is refused its
RAM file then; and a QEMU of a tree of its own is refused its modules and firmware in any case.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from hostagent import processes
from hostagent.arguments.command_line import CommandLine
from hostagent.errors import Failed

PROFILES = Path("/etc/apparmor.d/libvirt")
_PARSER_SECONDS = 60.0
_LABEL = re.compile(r"(libvirt-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?: \((?:enforce|complain)\))?")
_SYSTEM = Path("/usr")


def profile_of(label: str) -> str:
    """The profile of a label that libvirt gives its guests, "libvirt-UUID"; "" for any other label."""
    found = _LABEL.fullmatch(label)
    return found[1] if found else ""


def allow(label: str, argv: tuple[str, ...], profiles: Path = PROFILES) -> None:
    """Have the guest's profile allow what a QEMU with these arguments opens; Failed when it cannot be changed."""
    profile = profile_of(label)
    if not profile:
        raise Failed("extending the guest's AppArmor profile", expected="a label of libvirt's", found=repr(label))
    rules = profiles / f"{profile}.files"
    try:
        known = rules.read_text()
        more = [rule for rule in _rules(argv) if rule not in known]
        if more:
            with rules.open("a") as file:
                file.write("".join(f"  {rule}\n" for rule in more))
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise Failed(f"extending {rules}", found=error.strerror or str(error)) from error
    processes.run(["apparmor_parser", "-r", str(profiles / profile)], within_seconds=_PARSER_SECONDS)


def _rules(argv: tuple[str, ...]) -> Iterator[str]:
    line = CommandLine.parse(argv)
    yield '"/dev/net/tun" rw,'
    for backend in line.ram_backends():
        yield f"{_quoted(backend.path)} rw,"
    emulator = Path(line.binary)
    if not emulator.is_relative_to(_SYSTEM):
        tree = emulator.parents[2]  # TREE/usr/bin/qemu-system-x86_64
        yield f"{_quoted(str(emulator))} rmix,"
        yield f'{_quoted(f"{tree}/")[:-1]}**" rm,'


def _quoted(path: str) -> str:
    """A path that means itself alone (apparmor.d(5)): names of guests are in it."""
    if not path.startswith("/") or not path.isprintable():
        raise Failed("extending the guest's AppArmor profile", expected="a plain path", found=repr(path))
    return '"' + re.sub(r'([\\"*?\[\]{}^@,])', r"\\\1", path) + '"'


def exec_label_file() -> Path:
    """Where a process says under which profile its next program runs (the first on kernels with several modules)."""
    candidates: Iterable[str] = ("/proc/self/attr/apparmor/exec", "/proc/self/attr/exec")
    return next((Path(name) for name in candidates if Path(name).exists()), Path("/proc/self/attr/exec"))
