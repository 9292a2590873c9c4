"""The host's packages: what is installed, what an upgrade would change, and who carries it out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hostagent.components.conffiles import Conffile


@dataclass(frozen=True)
class Offer:
    """A package in one of its versions."""

    name: str  # as dpkg and apt call it; with ":i386" behind it where it is not of the host's own architecture
    version: str

    def __str__(self) -> str:
        return f"{self.name}={self.version}"


@dataclass(frozen=True)
class Installed:
    """A package that dpkg knows, in whatever state."""

    name: str
    version: str
    source: str
    state: str  # db:Status-Abbrev of dpkg-query(1): what is wanted, what is, and "R" when it must be installed again

    @property
    def is_whole(self) -> bool:
        """Whether it is installed and configured."""
        return self.state[1:].strip() == "i"

    @property
    def is_half_unpacked(self) -> bool:
        return self.state[1:2] == "H"

    @property
    def is_there(self) -> bool:
        """Whether files of it may be, beside its configuration."""
        return self.state[1:2] not in ("n", "c")

    @property
    def is_held(self) -> bool:
        """Whether its owner does not want it changed; apt-mark(8)."""
        return self.state.startswith("h")


@dataclass(frozen=True)
class Change:
    """What an upgrade does to one package."""

    name: str
    before: str  # its version, "" when it is not installed
    after: str  # "" when it is removed


@dataclass(frozen=True)
class Deb:
    """A package's file."""

    name: str
    version: str
    file: str


@dataclass(frozen=True)
class Staged:
    """An upgrade that can be made without the network, and taken back."""

    version: str  # of the source
    new: tuple[Deb, ...]
    old: tuple[Deb, ...]  # of the packages that it upgrades or removes
    added: tuple[str, ...]  # packages of the source that were not there before
    removed: tuple[str, ...]
    automatic: tuple[str, ...]  # packages that were, or come, only because others need them; apt-mark(8)
    diversions: tuple[str, ...]  # as they were before; dpkg-divert(1)
    conffiles: tuple[Conffile, ...]

    @property
    def added_of_others(self) -> tuple[str, ...]:
        """Packages of other sources that come along; they stay."""
        known = {*self.added, *(deb.name for deb in self.old)}
        return tuple(deb.name for deb in self.new if deb.name not in known)


class PackageManager(Protocol):
    """apt and dpkg. Raises Failed, with their last words, when they do."""

    def trouble(self) -> str:
        """What keeps them from work, in words; "" when nothing does."""
        ...

    def installed(self) -> tuple[Installed, ...]: ...

    def offered(self, names: Sequence[str]) -> tuple[Offer, ...]:
        """What the host's sources have of these, of each the newest first."""
        ...

    def is_older(self, one: str, other: str) -> bool:
        """Whether the first version comes before the second."""
        ...

    def simulate(self, wanted: Sequence[Offer], source: str) -> tuple[Change, ...]:
        """What installing these from the host's sources would change; others of that source in the same version."""
        ...

    def simulate_files(self, debs: Sequence[Deb]) -> tuple[Change, ...]:
        """What installing these would change, when there is nothing else."""
        ...

    def fetch(self, wanted: Sequence[Offer], into: Path) -> tuple[Offer, ...]:
        """Have the files of these in a folder; nothing is fetched when some cannot be had: those are returned."""
        ...

    def conffiles(self, names: Sequence[str]) -> tuple[str, ...]:
        """Paths of the configuration files of installed packages."""
        ...

    def diversions(self) -> tuple[str, ...]:
        """A line for each."""
        ...

    def automatic(self) -> frozenset[str]:
        """Packages that are installed only because others need them."""
        ...

    def mark_automatic(self, names: Sequence[str]) -> None: ...

    def install(self, debs: Sequence[Deb]) -> None:
        """Install files of packages. No service is started, stopped or restarted by it."""
        ...

    def put_back(self, staged: Staged, restore: Callable[[], None]) -> None:
        """Have the old packages in the place of the new ones, from whatever state; no service is touched.

        restore: puts configuration files back; called before packages are configured, which looks at them.
        """
        ...
