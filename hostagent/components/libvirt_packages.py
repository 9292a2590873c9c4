"""libvirt's packages: another version of all of them, from the host's apt sources, and the old ones as the way back.

Everything is fetched and tried beforehand, and written down: neither the upgrade nor the way back needs the network, or
anything that apt knows of versions by then.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from hostagent.components import conffiles
from hostagent.components.apt_dpkg import FORCED, SILENT
from hostagent.components.packages import Change, Deb, Installed, Offer, PackageManager, Staged
from hostagent.durable import fsync
from hostagent.errors import Failed, NeedsOperator, Refused, UsageError
from hostagent.trees import deb_packages
from hostagent.trees.apt_packages import fits, source_version

SOURCE = "libvirt"
DRIVER = "libvirt-daemon-driver-qemu"  # its versions are libvirt's
_ADAPTER = TypeAdapter(Staged)
_ROOM_FACTOR = 8  # of the files' sizes: packages unpack to some four times that, old beside new


@dataclass(frozen=True)
class LibvirtPackages:
    """Those that are installed."""

    manager: PackageManager
    folder: Path  # of ours: what is staged

    def target(self, wanted: str) -> str:
        """The newest version there is that begins with what is wanted; "" when it is installed already.

        Raises UsageError, with the versions that there are, when none fits; Refused when it would be an older one.
        """
        doing = f"looking for libvirt {wanted!r}"
        mine = self._mine(doing)
        anchor = next((package for package in mine if package.name == DRIVER), mine[0])
        known = list(dict.fromkeys(source_version(offer.version) for offer in self.manager.offered([anchor.name])))
        if not known:
            raise Refused(
                doing, expected=f"{anchor.name} in the host's apt sources", found="none", hint="apt-get update"
            )
        fitting = [version for version in known if fits(version, wanted)]
        if not fitting:
            raise UsageError(
                doing,
                expected=f"the beginning of one of {', '.join(known)}",
                found=repr(wanted),
                hint="apt-get update looks for newer ones",
            )
        now = source_version(anchor.version)
        if fitting[0] == now:
            return ""
        if self.manager.is_older(fitting[0], now):
            raise Refused(
                doing,
                expected=f"a version not older than the installed {now}",
                found=fitting[0],
                hint="guests may use what only the newer one knows",
            )
        return fitting[0]

    def stage(self, wanted: str) -> None:
        """Fetch it, and what it takes the place of; nothing is installed. Refused when there would be no way back."""
        self.forget()
        version = self.target(wanted)
        if not version:
            return
        doing = f"getting libvirt {version} ready"
        if trouble := self.manager.trouble():
            raise Refused(doing, expected="packages that can be worked with", found=trouble)
        there = {package.name: package for package in self.manager.installed() if package.is_there}
        self._make_folder()
        named = self._named(doing, version)
        with _refusing(doing, f"apt-get -s install {' '.join(map(str, named))}"):
            changes = self.manager.simulate(named, SOURCE)
        _check(doing, changes, there)
        new = self._fetch(doing, [Offer(one.name, one.after) for one in changes if one.after], "new")
        old = self._fetch(doing, [Offer(one.name, one.before) for one in changes if one.before], "old")
        with _refusing(doing):
            again = self.manager.simulate_files([deb for deb, _ in new])
        if set(again) != set(changes):
            raise Refused(
                doing, expected="the same upgrade from what was fetched", found=_shown(set(again) ^ set(changes))
            )
        self._require_room(doing, [deb for deb, _ in (*new, *old)])
        names = [deb.name for deb, _ in old]
        arriving = [deb.name for deb, _ in new if deb.name not in there]
        automatic = self.manager.automatic()
        staged = Staged(
            version=version,
            new=tuple(deb for deb, _ in new),
            old=tuple(deb for deb, _ in old),
            added=tuple(deb.name for deb, source in new if deb.name in arriving and source == SOURCE),
            removed=tuple(one.name for one in changes if not one.after),
            automatic=(*(name for name in names if name in automatic), *arriving),
            diversions=self.manager.diversions(),
            conffiles=conffiles.keep(self.manager.conffiles(names), self.folder / "conf"),
        )
        self._write(staged)

    def staged(self) -> Staged | None:
        """What an update has staged, this process's or another one's; NeedsOperator when that cannot be read."""
        try:
            return _ADAPTER.validate_json(self._manifest.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise NeedsOperator(
                "reading what was kept of libvirt's packages", found=f"{self._manifest}: {error}"
            ) from error

    def install(self, staged: Staged) -> None:
        """Put the new ones in; services stay as they are."""
        self.manager.install(staged.new)
        self._mark(staged)

    def are_new(self, staged: Staged) -> bool:
        """Whether all of the new ones are in, and whole."""
        there = self._there()
        gone = all(name not in there for name in staged.removed)
        return gone and all(_is_in(deb, there) for deb in staged.new)

    def are_old(self, staged: Staged) -> bool:
        """Whether the old ones are in, and whole, and nothing is left of the new ones but whole packages of others."""
        there = self._there()
        named = {deb.name for deb in (*staged.new, *staged.old)}
        diverted = set(self.manager.diversions()) - set(staged.diversions)
        return (
            all(_is_in(deb, there) for deb in staged.old)
            and all(name not in there for name in staged.added)
            and all(there[name].is_whole for name in staged.added_of_others if name in there)
            and not any(line.rpartition(" by ")[2] in named for line in diverted)
        )

    def put_back(self, staged: Staged) -> None:
        """The old ones in the place of the new, with the configuration that there was. Any number of times."""
        self.manager.put_back(staged, lambda: conffiles.restore(staged.conffiles))
        self._mark(staged)

    def forget(self) -> None:
        try:
            self._manifest.unlink(missing_ok=True)  # first: without it there is nothing staged
            if self.folder.is_dir():
                shutil.rmtree(self.folder)
        except OSError as error:
            raise Failed(f"removing {self.folder}", found=error.strerror or str(error)) from error

    def way_back(self, staged: Staged) -> str:
        """The commands with which a person would go it."""
        silent = " ".join(f"{name}={value}" for name, value in SILENT.items())
        remove = f"{silent} dpkg --force-depends --remove {' '.join(staged.added)}; " if staged.added else ""
        install = f"{silent} dpkg --force-{FORCED} --install {self.folder / 'old'}/*.deb"
        return f"{remove}{install}, and this once more"

    # -- staging ---------------------------------------------------------------------------------------------

    @property
    def _manifest(self) -> Path:
        return self.folder / "staged.json"

    def _mine(self, doing: str) -> list[Installed]:
        mine = [one for one in self.manager.installed() if one.source == SOURCE and one.is_there]
        if not mine:
            raise Refused(doing, expected=f"installed packages of the source {SOURCE}", found="none")
        return mine

    def _named(self, doing: str, version: str) -> list[Offer]:
        """What is installed of it, in that version; what that does not have is left to apt."""
        mine = self._mine(doing)
        there = {offer.name: offer for offer in self.manager.offered([one.name for one in mine]) if _of(offer, version)}
        return [there[one.name] for one in mine if one.name in there]

    def _fetch(self, doing: str, wanted: Sequence[Offer], name: str) -> list[tuple[Deb, str]]:
        """The files of these, each with the source that it is of."""
        into = self.folder / name
        if missing := self.manager.fetch(wanted, into):
            what = "the old packages, without which there is no way back" if name == "old" else "the new packages"
            raise Refused(
                doing,
                expected=f"{what}, in the host's apt sources or in apt's archives",
                found=f"no {', '.join(str(one) for one in missing)}",
                hint="put their .deb files into /var/cache/apt/archives",
            )
        found = dict(_read(into))
        lacking = [str(one) for one in wanted if one not in found]
        if lacking or len(found) != len(wanted):
            raise Failed(doing, expected=", ".join(lacking) or "nothing else", found=", ".join(map(str, found)))
        return [found[one] for one in wanted]

    def _require_room(self, doing: str, debs: Sequence[Deb]) -> None:
        wanted = _ROOM_FACTOR * sum(Path(deb.file).stat().st_size for deb in debs)
        left = shutil.disk_usage("/usr").free
        if left < wanted:
            raise Refused(doing, expected=f"{wanted >> 20} MiB free below /usr", found=f"{left >> 20} MiB")

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.chmod(0o700)
        except OSError as error:
            raise Failed(f"making {self.folder}", found=error.strerror or str(error)) from error

    def _write(self, staged: Staged) -> None:
        """The last thing: from now on there is something to go back to."""
        try:
            fd = os.open(self._manifest, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(_ADAPTER.dump_json(staged, indent=1))
            fsync(self._manifest)
            fsync(self.folder)
        except OSError as error:
            raise Failed(f"writing {self._manifest}", found=error.strerror or str(error)) from error

    # -- what is there ---------------------------------------------------------------------------------------

    def _there(self) -> dict[str, Installed]:
        return {package.name: package for package in self.manager.installed() if package.is_there}

    def _mark(self, staged: Staged) -> None:
        """apt takes what it is told to install for what its owner wants to have."""
        there = self._there()
        with suppress(Failed):  # it changes nothing but what apt would one day propose to remove
            self.manager.mark_automatic([name for name in staged.automatic if name in there])


@contextmanager
def _refusing(doing: str, hint: str | None = None) -> Iterator[None]:
    try:
        yield
    except Failed as error:
        raise Refused(doing, expected="apt to be able to", found=str(error), hint=hint) from error


def _check(doing: str, changes: Sequence[Change], there: dict[str, Installed]) -> None:
    """Refused unless packages of libvirt are all that is upgraded or removed."""
    others = [one for one in changes if one.before and there[one.name].source != SOURCE]
    if removed := [one.name for one in others if not one.after]:
        raise Refused(doing, expected="only packages of libvirt to be removed", found=", ".join(removed))
    if others:
        raise Refused(
            doing,
            expected="only packages of libvirt to be upgraded: the way back leaves others alone",
            found=_shown(others),
            hint="upgrade those first",
        )
    if foreign := [one.name for one in changes if ":" in one.name]:
        raise Refused(doing, expected="packages of the host's own architecture", found=", ".join(foreign))
    if held := [one.name for one in changes if one.name in there and there[one.name].is_held]:
        raise Refused(
            doing,
            expected="packages that may be changed",
            found=f"{', '.join(held)} held",
            hint=f"apt-mark unhold {' '.join(held)}",
        )


def _read(folder: Path) -> Iterator[tuple[Offer, tuple[Deb, str]]]:
    for path in sorted(folder.glob("*.deb")):
        package = deb_packages.read(path)
        known = Offer(package.name, package.version)
        yield known, (Deb(known.name, known.version, str(path)), package.source)


def _of(offer: Offer, version: str) -> bool:
    return source_version(offer.version) == version


def _is_in(deb: Deb, there: dict[str, Installed]) -> bool:
    return deb.name in there and there[deb.name].is_whole and there[deb.name].version == deb.version


def _shown(changes: Sequence[Change] | set[Change]) -> str:
    each = sorted(changes, key=lambda one: one.name)
    return ", ".join(f"{one.name} {one.before or 'new'} -> {one.after or 'removed'}" for one in each)
