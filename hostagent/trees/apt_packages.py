"""QEMU's Debian packages through apt, into a folder: nothing is installed, apt's lists and cache stay as they are.

apt-get(8), apt-cache(8) and apt.conf(5) name the options.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from hostagent import processes
from hostagent.errors import Failed, Refused, UsageError

PACKAGES = ("qemu-system-x86", "qemu-system-common", "qemu-system-data")
FIRMWARE = ("seabios",)  # of another source: the newest there is, or else the system's
_LOOK_SECONDS = 60.0
_NETWORK_SECONDS = 600.0
_REBUILT = re.compile(r"\+b[0-9]+$")  # built again from the same source; packages for all architectures are not


def download(wanted: str, *, sources: Path, folder: Path) -> list[Path]:
    """The packages of the newest version that begins with what is wanted ("10.0", "1:10.0.2+ds-2").

    sources: apt's list to look in, if there is such a file; else the system's own. The folder is empty and ours.
    Raises UsageError, with the versions that there are, when none fits; Failed when apt does.
    """
    doing = f"fetching QEMU {wanted!r}"
    if not wanted.strip():
        raise UsageError(doing, expected='a version, or how it begins ("10.0")', found="none")
    apt = _options(sources, folder)
    processes.run(["apt-get", "-q", *apt, "update"], within_seconds=_NETWORK_SECONDS)
    there = {package: _versions(package, apt) for package in PACKAGES}
    known = list(dict.fromkeys(source_version(version) for version in there[PACKAGES[0]]))
    if not known:
        where = str(sources) if sources.is_file() else "the system's apt sources"
        raise Refused(
            doing,
            expected=f"{PACKAGES[0]} in {where}",
            found="none",
            hint=f"name an archive that has it in {sources}, or give its packages to hostagent qemu add",
        )
    fitting = [version for version in known if fits(version, wanted)]
    if not fitting:
        raise UsageError(doing, expected=f"the beginning of one of {', '.join(known)}", found=repr(wanted))
    named = [f"{package}={_of(doing, package, fitting[0], there[package])}" for package in PACKAGES]
    named += [f"{package}={newest[0]}" for package in FIRMWARE if (newest := _versions(package, apt))]
    into = folder / "packages"
    into.mkdir()
    processes.run(["apt-get", "-q", *apt, "download", *named], within_seconds=_NETWORK_SECONDS, cwd=str(into))
    found = sorted(into.glob("*.deb"))
    if len(found) != len(named):
        raise Failed(doing, expected=", ".join(named), found=", ".join(path.name for path in found) or "no package")
    return found


def _options(sources: Path, folder: Path) -> list[str]:
    """apt with lists and cache of our own; as root, who alone can enter the folder."""
    settings = {
        "Dir::State::Lists": f"{folder}/lists",
        "Dir::Cache": f"{folder}/cache",
        "APT::Sandbox::User": "root",
    }
    if sources.is_file():
        settings |= {"Dir::Etc::SourceList": str(sources), "Dir::Etc::SourceParts": "/dev/null"}
    for place in ("lists/partial", "cache/archives/partial"):
        (folder / place).mkdir(parents=True)
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def offered(packages: Sequence[str], apt: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Packages and versions that there are to download, of each the newest first.

    As apt-cache(8) says it: "qemu-system-x86 | 1:10.0.2+ds-2 | http://... Packages".
    """
    said = processes.run(["apt-cache", *apt, "madison", *packages], within_seconds=_LOOK_SECONDS).stdout
    rows = [[cell.strip() for cell in line.split("|")] for line in said.splitlines()]
    return [(row[0], row[1]) for row in rows if len(row) == 3 and row[2].endswith("Packages")]


def _versions(package: str, apt: Sequence[str]) -> list[str]:
    return [version for _, version in offered([package], apt)]


def source_version(version: str) -> str:
    """The version of the source that a package of that version was built from."""
    return _REBUILT.sub("", version)


def fits(version: str, wanted: str) -> bool:
    """Whether it begins with that, at the end of a number: 10.0 is no beginning of 10.01."""
    beginning = re.compile(re.escape(wanted) + r"(?![0-9:])")
    return any(beginning.match(text) for text in (version, version.split(":", 1)[-1]))


def _of(doing: str, package: str, wanted: str, there: list[str]) -> str:
    for version in there:
        if source_version(version) == wanted:
            return version
    raise Refused(doing, expected=f"{package} of {wanted}", found=", ".join(there) or "none")
