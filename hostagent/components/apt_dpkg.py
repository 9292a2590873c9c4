"""apt and dpkg on the host: an upgrade from files, and the way back, with every service left as it is.

Maintainer scripts start, stop and restart services by systemctl; with SYSTEMD_OFFLINE=1 in its environment (systemd,
docs/ENVIRONMENT.md) it leaves the manager alone, for as long as the package manager's processes live and no longer
(docs/decisions/0007). apt-get(8), apt.conf(5), dpkg(1), dpkg-query(1), dpkg-divert(1) name the options.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hostagent import processes
from hostagent.components.packages import Change, Deb, Installed, Offer, Staged
from hostagent.errors import Failed, HostagentError
from hostagent.locks import OpenFileLock
from hostagent.trees import apt_packages

SILENT = {"SYSTEMD_OFFLINE": "1"}
"""What has maintainer scripts leave services alone."""
FORCED = "depends,breaks,conflicts,overwrite"
"""What dpkg is told not to mind on the way back: while packages are exchanged they do not fit together."""

_ENVIRONMENT = {
    **SILENT,
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "DEBIAN_FRONTEND": "noninteractive",
    "APT_LISTCHANGES_FRONTEND": "none",
    "APT_LISTBUGS_FRONTEND": "none",
    "NEEDRESTART_SUSPEND": "1",  # needrestart's apt-pinvoke
}
_OWNERS_FILES = ("--force-confdef", "--force-confold")  # of configuration, where both have changed them
_POLICY = Path("/usr/sbin/policy-rc.d")
_DENIED = 101  # policy-rc.d's "do not"; /usr/share/doc/init-system-helpers/README.policy-rc.d
_ADMIN = Path("/var/lib/dpkg")
_ARCHIVES = Path("/var/cache/apt/archives")
_INIT_IS_SYSTEMD = Path("/run/systemd/system")  # sd_booted(3)
_LOOK_SECONDS = 60.0
_NETWORK_SECONDS = 600.0
_WORK_SECONDS = 900.0
_LOCK_SECONDS = 600.0  # whoever works with packages now may be what a killed update has left, and goes on to its end
_ANY = range(256)


@dataclass(frozen=True)
class AptDpkg:
    """The host's own."""

    workshop: Path  # a folder of ours, for lists and caches that have nothing in them

    # -- looking ---------------------------------------------------------------------------------------------

    def trouble(self) -> str:
        for lock in _locks():
            if not lock.is_free():
                return f"somebody works with packages ({lock.path}{_by(lock)})"
        unfinished = _dpkg("--audit").splitlines()
        if unfinished:
            return f"packages that are half installed (dpkg --audit): {unfinished[0]}"
        if not _INIT_IS_SYSTEMD.is_dir() and not _policy_denies():
            return f"no systemd, and no {_POLICY} that keeps packages from restarting services"
        return ""

    def installed(self) -> tuple[Installed, ...]:
        native = _dpkg("--print-architecture").strip()
        shown = r"${db:Status-Abbrev}\t${Package}\t${Architecture}\t${Version}\t${source:Package}\n"
        rows = (line.split("\t") for line in _query("--showformat", shown).splitlines())
        return tuple(
            Installed(name if machine in (native, "all", "") else f"{name}:{machine}", version, source, state)
            for state, name, machine, version, source in rows
        )

    def offered(self, names: Sequence[str]) -> tuple[Offer, ...]:
        return tuple(Offer(name, version) for name, version in apt_packages.offered(names))

    def is_older(self, one: str, other: str) -> bool:
        argv = ["dpkg", "--compare-versions", one, "lt", other]
        return processes.run(argv, within_seconds=_LOOK_SECONDS, accept=(0, 1)).exit_status == 0

    def simulate(self, wanted: Sequence[Offer], source: str) -> tuple[Change, ...]:
        """What is new in that source has to be of that version too, whatever apt prefers; apt_preferences(5)."""
        preferences = self.workshop / "preferences"
        versions = sorted({apt_packages.source_version(offer.version) for offer in wanted})
        stanza = "Package: src:{}\nPin: version {}*\nPin-Priority: 990\n"
        try:
            self.workshop.mkdir(mode=0o700, parents=True, exist_ok=True)
            preferences.write_text("\n".join(stanza.format(source, version) for version in versions))
        except OSError as error:
            raise Failed(f"writing {preferences}", found=error.strerror or str(error)) from error
        return _simulated(["-o", f"Dir::Etc::Preferences={preferences}"], [str(offer) for offer in wanted])

    def simulate_files(self, debs: Sequence[Deb]) -> tuple[Change, ...]:
        return _simulated(self._apart(), [deb.file for deb in debs])

    def conffiles(self, names: Sequence[str]) -> tuple[str, ...]:
        """dpkg-query shows " /etc/libvirt/qemu.conf 71d9… obsolete"."""
        said = _query("--showformat", r"${Conffiles}\n", *names)
        return tuple(re.findall(r"^ (/\S+) [0-9a-f]{32}(?: obsolete)?$", said, re.MULTILINE))

    def diversions(self) -> tuple[str, ...]:
        said = processes.run(["dpkg-divert", "--list"], within_seconds=_LOOK_SECONDS, env=_environment()).stdout
        return tuple(said.splitlines())

    def automatic(self) -> frozenset[str]:
        said = processes.run(["apt-mark", "showauto"], within_seconds=_LOOK_SECONDS, env=_environment()).stdout
        return frozenset(said.split())

    # -- changing --------------------------------------------------------------------------------------------

    def fetch(self, wanted: Sequence[Offer], into: Path) -> tuple[Offer, ...]:
        """From the host's sources, or from the archives that apt has kept."""
        cached = {one: found for one in wanted if (found := _cached(one)) is not None}
        there = set(self.offered([one.name for one in wanted]))
        if missing := tuple(one for one in wanted if one not in cached and one not in there):
            return missing
        into.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in cached.values():
            shutil.copy(path, into, follow_symlinks=False)
        if named := [str(one) for one in wanted if one not in cached]:
            argv = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *named]
            processes.run(argv, within_seconds=_NETWORK_SECONDS, env=_environment(), cwd=str(into))
        return ()

    def mark_automatic(self, names: Sequence[str]) -> None:
        if names:
            processes.run(["apt-mark", "auto", *names], within_seconds=_LOOK_SECONDS, env=_environment())

    def install(self, debs: Sequence[Deb]) -> None:
        options = [f"Dpkg::Options::={option}" for option in _OWNERS_FILES]
        options += ["Dpkg::Use-Pty=0", f"DPkg::Lock::Timeout={_LOCK_SECONDS:.0f}"]
        given = [word for option in options for word in ("-o", option)]
        files = [deb.file for deb in debs]
        try:
            processes.run(
                ["apt-get", "-y", "-q", *self._apart(), *given, "install", *files],
                within_seconds=_WORK_SECONDS + _LOCK_SECONDS,
                env=_environment(),
            )
        finally:
            _reload_units()

    def put_back(self, staged: Staged, restore: Callable[[], None]) -> None:
        """Each old package is unpacked twice: the first time a file that a newer one still owns stays away.

        Packages that share files say so by Replaces, in the newer one only: dpkg then lets the newer one keep them
        against the old, and they go with it. So apt's own downgrade lost half of libvirt0 9.0 to 11.3's libvirt-common.
        """
        problems: list[str] = []

        def dpkg(*words: str) -> None:
            argv = ["dpkg", f"--force-{FORCED},downgrade,remove-reinstreq", *_OWNERS_FILES, *words]
            env = _environment() | {"DPKG_FRONTEND_LOCKED": "1"}  # the lock is ours; dpkg(1)
            try:
                processes.run(argv, within_seconds=_WORK_SECONDS, env=env)
            except Failed as error:
                problems.append(str(error))  # the next step may mend it; the end counts

        names = {deb.name for deb in (*staged.new, *staged.old)}
        with _alone():
            there = {package.name: package for package in self.installed()}
            for deb in staged.new:
                if deb.name in there and there[deb.name].is_half_unpacked:
                    dpkg("--unpack", deb.file)  # only so dpkg knows every file of it, and takes it away again
            for path, to, owner in _diverted(set(self.diversions()) - set(staged.diversions), names):
                argv = ["dpkg-divert", "--no-rename", "--package", owner, "--divert", to, "--remove", path]
                processes.run(argv, within_seconds=_LOOK_SECONDS, env=_environment())
            if added := [name for name in staged.added if name in there and there[name].is_there]:
                dpkg("--remove", *added)  # no purge: libvirt-daemon-common's removes the group and all logs
            old = [deb.file for deb in staged.old]
            dpkg("--unpack", *old)
            dpkg("--unpack", *old)
            restore()
            dpkg("--configure", "--pending")
            restore()
        _reload_units()
        now = {package.name: package for package in self.installed()}
        bad = [deb.name for deb in staged.old if deb.name not in now or not now[deb.name].is_whole]
        if bad:
            raise Failed("putting packages back", expected="all of them whole", found="; ".join([*bad, *problems[-1:]]))

    def _apart(self) -> list[str]:
        """apt that knows of no source, nor of anything that was said about versions: only of what it is given."""
        settings = {
            "Dir::Etc::SourceList": "/dev/null",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "Dir::State::Lists": f"{self.workshop}/lists",
            "Dir::Cache": f"{self.workshop}/cache",
            "APT::Default-Release": "",
            "APT::Sandbox::User": "root",
        }
        for place in ("lists/partial", "cache/archives/partial"):
            (self.workshop / place).mkdir(mode=0o700, parents=True, exist_ok=True)
        return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def _simulated(options: Sequence[str], wanted: Sequence[str]) -> tuple[Change, ...]:
    argv = ["apt-get", "-s", "-q", *options, "install", *wanted]
    return tuple(changes_in(processes.run(argv, within_seconds=_LOOK_SECONDS, env=_environment()).stdout))


def changes_in(said: str) -> Iterator[Change]:
    """What apt-get -s says: "Inst libvirt0 [9.0.0-4] (11.3.0-2 Debian:12 [amd64])", "Remv libvirt-nss [9.0.0-4]"."""
    for line in said.splitlines():
        if found := re.match(r"Inst (\S+) (?:\[(\S+)\] )?\((\S+) ", line):
            yield Change(found[1], found[2] or "", found[3])
        elif found := re.match(r"(?:Remv|Purg) (\S+) \[(\S+)\]", line):
            yield Change(found[1], found[2], "")


def _environment() -> dict[str, str]:
    return processes.c_locale(_ENVIRONMENT)


def _dpkg(*words: str) -> str:
    return processes.run(["dpkg", *words], within_seconds=_LOOK_SECONDS, env=_environment()).stdout


def _query(*words: str) -> str:
    argv = ["dpkg-query", "--show", *words]
    return processes.run(argv, within_seconds=_LOOK_SECONDS, env=_environment()).stdout


def _cached(wanted: Offer) -> Path | None:
    """The file of a package among those that apt has kept, and its user cannot have written."""
    name, _, machine = wanted.name.partition(":")
    version = wanted.version.replace(":", "%3a")
    for path in sorted(_ARCHIVES.glob(f"{name}_{version}_{machine or '*'}.deb")):
        if path.lstat().st_uid == os.geteuid() and path.is_file() and not path.is_symlink():
            return path
    return None


def _diverted(lines: Collection[str], packages: Collection[str]) -> Iterator[tuple[str, str, str]]:
    """From where, to where, and by whom: "diversion of /lib/x to /lib/x.usr-is-merged by libvirt-daemon"."""
    for line in sorted(lines):
        found = re.fullmatch(r"diversion of (\S+) to (\S+) by (\S+)", line)
        if found and found[3] in packages:
            yield found[1], found[2], found[3]


def _locks() -> tuple[OpenFileLock, OpenFileLock]:
    """Of whoever works with packages, apt as well; and dpkg's own."""
    return OpenFileLock(_ADMIN / "lock-frontend", mode=0o640), OpenFileLock(_ADMIN / "lock", mode=0o640)


def _by(lock: OpenFileLock) -> str:
    pid = lock.holder()
    return f", pid {pid}" if pid is not None else ""


@contextmanager
def _alone() -> Iterator[None]:
    """Nobody else works with packages. A dpkg that outlived a killed update is waited for."""
    frontend, own = _locks()
    ends = time.monotonic() + _LOCK_SECONDS
    while not (frontend.acquire() and own.is_free()):
        if time.monotonic() > ends:
            busy = own if frontend.held() else frontend
            raise Failed(
                "waiting for whoever works with packages",
                expected=f"an end within {_LOCK_SECONDS:g} s",
                found=f"{busy.path} locked{_by(busy)}",
            )
        time.sleep(0.2)
    try:
        yield
    finally:
        frontend.release()


def _policy_denies() -> bool:
    asked = (("libvirtd", "restart"), ("virtlogd", "stop"))
    try:
        return all(
            processes.run([str(_POLICY), *words], within_seconds=_LOOK_SECONDS, accept=_ANY).exit_status == _DENIED
            for words in asked
        )
    except HostagentError:
        return False


def _reload_units() -> None:
    """systemd reads the units that packages have changed; it starts and stops none by that."""
    if _INIT_IS_SYSTEMD.is_dir():
        processes.run(["systemctl", "daemon-reload"], within_seconds=_LOOK_SECONDS)
