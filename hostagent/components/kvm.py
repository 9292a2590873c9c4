"""The KVM modules: those that are loaded, and those that would be.

modinfo(8) and the kernel both tell the srcversion, a checksum of a module's source.
"""

from __future__ import annotations

from pathlib import Path

from hostagent import processes
from hostagent.errors import HostagentError
from hostagent.facts import Component, Freshness

MODULES = ("kvm", "kvm_amd", "kvm_intel")
_SECONDS = 10.0


def look(loaded: Path = Path("/sys/module")) -> Component:
    """Every loaded module of KVM's against its file. One that is built into the kernel is the kernel's."""
    there = {name: _read(loaded / name / "srcversion") for name in MODULES if (loaded / name).is_dir()}
    if not there:
        return Component("kvm", "", "", Freshness.NOT_THERE)
    if not any(there.values()):
        return Component("kvm", "built into the kernel", "", Freshness.UNKNOWN)
    files = {name: _installed(name) for name in there}
    shown, would = (", ".join(f"{name} {found[name][:8]}" for name in there if found[name]) for found in (there, files))
    if not all(files.values()):
        return Component("kvm", shown, would, Freshness.UNKNOWN)
    return Component("kvm", shown, would, Freshness.CURRENT if files == there else Freshness.OUTDATED)


def _installed(name: str) -> str:
    try:
        return processes.run(["modinfo", "-F", "srcversion", name], within_seconds=_SECONDS).stdout.strip()
    except HostagentError:
        return ""  # no such program, or no such file: a kernel that runs on after its modules were removed


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
