"""libvirt's daemon: the one that has the QEMU driver, and the program that would be started in its place."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path

from hostagent import processes
from hostagent.errors import HostagentError
from hostagent.facts import Component, Freshness, Version
from hostagent.file_identity import Identity, identity

_SECONDS = 10.0


def look(running: Version, pid: int | None, proc: Path = Path("/proc")) -> Component:
    """The daemon with that pid, which says that it is of that version; None: nobody knows the pid."""
    try:
        exe = os.readlink(proc / str(pid) / "exe") if pid else ""  # noqa: PTH115 - the target need not be there
    except OSError:
        exe = ""
    path = exe.removesuffix(" (deleted)")
    installed = _version_of(path) if path else None
    if installed is None:
        return Component("libvirtd", str(running), "", Freshness.UNKNOWN)
    if installed == running and exe == path:
        return Component("libvirtd", str(running), str(installed), Freshness.CURRENT)
    shown = f"{installed}, another build" if installed == running else str(installed)
    return Component("libvirtd", str(running), shown, Freshness.OUTDATED)


def _version_of(path: str) -> Version | None:
    """What the program says: ``libvirtd (libvirt) 9.0.0``."""
    try:
        seen = Path(path).stat()
        if seen.st_uid != os.geteuid() or seen.st_mode & 0o022:
            return None  # a program that others could write is not run as root
        said = _said_by(path, identity(Path(path)))
    except (OSError, HostagentError):
        return None
    found = re.match(r"\S+ \(libvirt\) (\d+\.\d+\.\d+)", said)
    return Version.parse(found[1]) if found else None


@lru_cache(maxsize=4)  # a service asks for it once a minute
def _said_by(path: str, _file: Identity) -> str:
    """Asked again only when it is another file."""
    return processes.run([path, "--version"], within_seconds=_SECONDS).stdout
