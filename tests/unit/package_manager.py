"""A package manager made up: versions of libvirt to be had, what is installed, and what goes wrong."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hostagent.components.packages import Change, Deb, Installed, Offer, Staged
from hostagent.errors import Failed

OLD, NEW = "9.0.0-4+deb12u2", "11.3.0-2~bpo12+1"
DRIVER = "libvirt-daemon-driver-qemu"
MINE = ("libvirt0", "libvirt-daemon", DRIVER)


def whole(name: str, version: str = OLD, source: str = "libvirt") -> Installed:
    return Installed(name, version, source, "ii ")


@dataclass
class Packages:
    """As the protocol has it. libvirt's newer version has a package more, and needs one of another source."""

    folder: Path
    there: dict[str, Installed] = field(default_factory=lambda: {name: whole(name) for name in MINE})
    offers: list[Offer] = field(
        default_factory=lambda: [Offer(name, version) for name in MINE for version in (NEW, OLD)]
    )
    comes_along: list[Change] = field(
        default_factory=lambda: [Change("libvirt-common", "", NEW), Change("mdevctl", "", "1.2-3")]
    )
    fails_after: int | None = None  # of an installation: so many packages are in by then
    put_back_fails: bool = False
    busy: str = ""
    diverted: list[str] = field(default_factory=list)
    marked: list[str] = field(default_factory=list)
    settings: Path | None = None  # a configuration file, which an upgrade that fails takes away
    log: list[str] = field(default_factory=list)

    def trouble(self) -> str:
        return self.busy

    def installed(self) -> tuple[Installed, ...]:
        return tuple(self.there.values())

    def offered(self, names: Sequence[str]) -> tuple[Offer, ...]:
        return tuple(offer for offer in self.offers if offer.name in names)

    def is_older(self, one: str, other: str) -> bool:
        return _key(one) < _key(other)

    def simulate(self, wanted: Sequence[Offer], source: str) -> tuple[Change, ...]:
        changes = [Change(one.name, self.there[one.name].version, one.version) for one in wanted]
        return (*changes, *self.comes_along)

    def simulate_files(self, debs: Sequence[Deb]) -> tuple[Change, ...]:
        known = {deb.name: self.there[deb.name].version if deb.name in self.there else "" for deb in debs}
        removed = [change for change in self.comes_along if not change.after]
        return (*(Change(deb.name, known[deb.name], deb.version) for deb in debs), *removed)

    def fetch(self, wanted: Sequence[Offer], into: Path) -> tuple[Offer, ...]:
        missing = [one for one in wanted if one.name in MINE and one not in self.offers]
        if missing:
            return tuple(missing)
        into.mkdir(parents=True)
        for one in wanted:
            make_deb(into, one, self.folder)
        return ()

    def conffiles(self, names: Sequence[str]) -> tuple[str, ...]:
        return (str(self.settings),) if self.settings else ()

    def diversions(self) -> tuple[str, ...]:
        return tuple(self.diverted)

    def automatic(self) -> frozenset[str]:
        return frozenset({"libvirt0"})

    def mark_automatic(self, names: Sequence[str]) -> None:
        self.marked = list(names)

    def install(self, debs: Sequence[Deb]) -> None:
        self.log.append("install")
        for number, deb in enumerate(debs):
            if number == self.fails_after:
                self.there[deb.name] = Installed(deb.name, deb.version, "libvirt", "iHR")
                self.diverted.append(f"diversion of /lib/x to /lib/x.usr-is-merged by {deb.name}")
                if self.settings:
                    self.settings.unlink(missing_ok=True)
                raise Failed("running apt-get", found="exit 100: dpkg was killed")
            self.there[deb.name] = whole(deb.name, deb.version, _source(deb.name))

    def put_back(self, staged: Staged, restore: Callable[[], None]) -> None:
        self.log.append("put back")
        if self.put_back_fails:
            raise Failed("putting packages back", found="no space left on device")
        for name in staged.added:
            self.there.pop(name, None)
        for deb in staged.old:
            self.there[deb.name] = whole(deb.name, deb.version)
        for name in staged.added_of_others:
            if name in self.there:
                self.there[name] = whole(name, self.there[name].version, _source(name))
        self.diverted = list(staged.diversions)
        restore()


def make_deb(folder: Path, offer: Offer, workshop: Path) -> None:
    """A package without files, as dpkg-deb(1) makes it."""
    root = workshop / f"{offer.name}_{offer.version}"
    (root / "DEBIAN").mkdir(parents=True, exist_ok=True)
    control = {
        "Package": offer.name,
        "Version": offer.version,
        "Architecture": "all",
        "Source": _source(offer.name),
        "Maintainer": "nobody <nobody@localhost>",
        "Description": "made up",
    }
    (root / "DEBIAN/control").write_text("".join(f"{name}: {value}\n" for name, value in control.items()))
    argv = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(root), str(folder)]
    subprocess.run(argv, check=True, capture_output=True)


def _source(name: str) -> str:
    return "libvirt" if name.startswith("libvirt") else name


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("-")[0].split("."))
