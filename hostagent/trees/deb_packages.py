"""Debian packages as a source of QEMU: which of them belong together, and unpacking without installing."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hostagent import processes
from hostagent.errors import Failed, Refused, UsageError

EMULATOR_PACKAGE = "qemu-system-x86"
# Source packages whose binaries hold nothing but firmware, and may have a version of their own.
FIRMWARE_SOURCES = frozenset({"seabios", "ipxe", "edk2"})
_READ_SECONDS = 30.0
_UNPACK_SECONDS = 120.0


@dataclass(frozen=True)
class Package:
    """One .deb's own words about itself."""

    path: Path
    name: str
    version: str
    source: str
    source_version: str
    needs: tuple[str, ...]  # names of packages from qemu that it depends on
    architecture: str = ""


def unpack(doing: str, paths: Sequence[Path], workshop: Path) -> tuple[Path, ...]:
    """Unpack each package into a folder of its own: links of one cannot lead the files of another astray.

    Refused when they make no QEMU together.
    """
    packages = [read(path) for path in paths]
    check(doing, packages)
    folders = []
    for number, package in enumerate(packages):
        folder = workshop / f"package-{number}"
        argv = ["dpkg-deb", "-x", str(package.path.absolute()), str(folder)]
        try:
            processes.run(argv, within_seconds=_UNPACK_SECONDS)
        except Failed as error:
            expected = "a whole Debian package, and room for it"
            raise Failed(f"unpacking {package.path}", expected=expected, found=error.found) from error
        folders.append(folder)
    return tuple(folders)


def read(path: Path) -> Package:
    """The control fields of a .deb; UsageError when it is none."""
    wanted = ("Package", "Version", "Architecture", "Source", "Depends")
    try:
        said = processes.run(["dpkg-deb", "-f", str(path.absolute()), *wanted], within_seconds=_READ_SECONDS).stdout
    except Failed as error:
        found = f"one that dpkg-deb cannot read ({error.found})"
        raise UsageError(f"reading {path}", expected="a whole Debian package", found=found) from error
    return parse(path, said)


def parse(path: Path, control: str) -> Package:
    """Fields as ``dpkg-deb -f`` prints them; deb-control(5)."""
    fields: dict[str, str] = dict(re.findall(r"^([A-Za-z-]+): *(.*)$", control, re.MULTILINE))
    name, version = fields.get("Package", ""), fields.get("Version", "")
    # "Source: qemu (1:10.0.2+ds-2)" where the version differs, no Source where even the name is the same.
    source = re.fullmatch(r"(\S+)(?: \((\S+)\))?", fields.get("Source") or name)
    depends = re.findall(r"(?:^|, *)(qemu-[a-z0-9.+-]+)", fields.get("Depends", ""))
    return Package(
        path=path,
        name=name,
        version=version,
        source=source[1] if source else name,
        source_version=(source[2] if source else None) or version,
        needs=tuple(depends),
        architecture=fields.get("Architecture", ""),
    )


def check(doing: str, packages: Sequence[Package]) -> None:
    """Refused unless one is the emulator's, and its siblings are of its version and all there."""
    names = [package.name for package in packages]
    emulator = next((package for package in packages if package.name == EMULATOR_PACKAGE), None)
    if emulator is None:
        raise Refused(doing, expected=f"the package {EMULATOR_PACKAGE} among them", found=", ".join(names))
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise Refused(doing, expected="each package once", found=f"{', '.join(twice)} twice")
    for package in packages:
        if package.source in FIRMWARE_SOURCES:
            continue
        if package.source != emulator.source:
            raise Refused(
                doing,
                expected=f"packages of the source {emulator.source}, or firmware",
                found=f"{package.name} of {package.source}",
            )
        if package.source_version != emulator.source_version:
            raise Refused(
                doing,
                expected=f"one version, {emulator.source_version}",
                found=f"{package.name} {package.source_version}",
            )
    if missing := [name for name in emulator.needs if name not in names]:
        raise Refused(
            doing,
            expected=f"the packages {emulator.name} depends on",
            found=f"no {', '.join(missing)}",
            hint=f"apt-get download {' '.join(f'{name}={emulator.version}' for name in missing)}",
        )
