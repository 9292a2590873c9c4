"""hostagent upgrades libvirt's packages with guests running, and puts the old ones back when that goes wrong.

Real packages, apt and dpkg; systemd, and what maintainer scripts ask of it, are the lab's (tests/lab).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from hostagent import wiring
from hostagent.components.apt_dpkg import AptDpkg
from hostagent.components.libvirt_packages import LibvirtPackages
from hostagent.update.journal import Outcome, UpdateRecord
from tests.bench.archive import make_archive, make_over
from tests.bench.guest_spec import GuestSpec
from tests.bench.host import Host
from tests.bench.lab import Lab
from tests.bench.paths import LIBVIRT_DEBS
from tests.bench.peer import Peer
from tests.crash.real_world import guards
from tests.guests.watched import Look, Watched

GUESTS = (GuestSpec("one", 1, 256, fill_mib=64), GuestSpec("two", 2, 256, "pc", fill_mib=64))
OLD, NEW, BROKEN, FORGETFUL = "9.0.0-4+deb12u2", "11.3.0-2~bpo12+1", "11.3.1-1", "11.3.2-1"
DAEMON = "/usr/sbin/libvirtd"
DOES_NOT_START = "#!/bin/sh\necho 'libvirtd: symbol lookup error' >&2\nexit 127\n"
LOSES_ONE = """\
#!/bin/sh
[ "$1" = --version ] || rm -f /run/libvirt/qemu/one.xml
exec /usr/sbin/libvirtd.real "$@"
"""
WATCHDOG = ("domain/devices/watchdog: expected nothing, found it",)
"""What 11.3 says of every q35 guest, and 9.0 does not understand."""
READY_SECONDS = 20.0
"""What a daemon may take to answer while one is tried that never does, and then the old one again."""
LIMIT = 600.0
KEPT = ("kept/libvirt", "held/libvirtd")
ARCHIVE = Path("/var/lib/libvirt-archive")
SOURCES = Path("/etc/apt/sources.list")
POLICY = Path("/usr/sbin/policy-rc.d")
OWNERS = Path("/etc/libvirt/virtlogd.conf")
DPKG_LOG = Path("/var/log/dpkg.log")


@dataclass(frozen=True)
class Upgraded:
    """libvirt's packages on the bench's host."""

    host: Host
    lab: Lab
    guests: tuple[Watched, ...]
    before: dict[str, str]  # of libvirt's files
    live_xml: dict[str, str]  # of the guests, as 9.0 says it
    aside: Path

    @property
    def packages(self) -> LibvirtPackages:
        folder = self.lab.config.paths.state / "kept" / "libvirt"
        return LibvirtPackages(AptDpkg(folder / "apt"), folder)

    def update(self, version: str) -> UpdateRecord:
        """To that; what is kept for the way back is copied."""
        daemon = self.lab.config.libvirt.daemon
        if version == BROKEN:
            daemon = daemon.model_copy(update={"ready_seconds": READY_SECONDS})
        libvirt = self.lab.config.libvirt.model_copy(update={"release": version, "daemon": daemon})

        def tell(_key: str, step: str, doing: str) -> None:
            if (step, doing) == ("swap libvirtd", "begun"):
                shutil.rmtree(self.aside, ignore_errors=True)
                for folder in KEPT:
                    shutil.copytree(self.lab.config.paths.state / folder, self.aside / folder)

        return Lab(self.lab.config.model_copy(update={"libvirt": libvirt})).swap("libvirtd", tell=tell)

    def look(self) -> dict[str, Look]:
        self.host.disconnect()
        for guest in self.guests:
            guest.forget_gaps()
        return {guest.spec.name: guest.look() for guest in self.guests}

    def check_guests(self, before: dict[str, Look], *, of_q35: tuple[str, ...] = ()) -> None:
        self.host.disconnect()
        for guest in self.guests:
            differences = of_q35 if guest.spec.machine == "q35" else ()
            guest.check_that_it_ran_on(before[guest.spec.name], differences)

    def check_that_it_is_as_before(self) -> None:
        """Every file of the old packages, the owner's own among them; and nothing half done.

        Configuration files that only the newer ones have stay, as dpkg leaves those of what is removed.
        """
        now = files_of_libvirt()
        assert {path: now.get(path) for path in self.before} == self.before
        assert all(path.startswith("/etc/") for path in now.keys() - self.before.keys())
        assert subprocess.run(["dpkg", "--audit"], check=True, capture_output=True).stdout == b""
        assert not list(Path("/usr/lib/systemd").rglob("*.usr-is-merged"))
        assert self.lab.components()["libvirtd"].running == "9.0.0"
        assert self.lab.components()["libvirtd"].freshness == "current"
        assert not self.packages.folder.exists()


def files_of_libvirt() -> dict[str, str]:
    """Of the packages that are installed: where each is, and what is in it; and which version of which package."""
    versions = {one.name: one.version for one in AptDpkg(Path("/tmp/apt")).installed() if one.source == "libvirt"}
    there = {name for name, version in versions.items() if version in (OLD, NEW)}
    whole = [one.name for one in AptDpkg(Path("/tmp/apt")).installed() if one.name in there and one.is_whole]
    listed = subprocess.run(["dpkg", "-L", *whole], check=True, capture_output=True, text=True).stdout.split("\n")
    files = {Path(name) for name in listed if name and not name.startswith("/usr/share/doc/")}
    found = {str(path): _content(path) for path in files if not path.is_dir()}
    libraries = {str(path): _content(path) for path in Path("/usr/lib/x86_64-linux-gnu").glob("libvirt*.so*")}
    return found | libraries | {name: versions[name] for name in whole}


def _content(path: Path) -> str:
    if path.is_symlink():
        return str(path.readlink())
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """apt knows of both versions, and of one that does not start."""
    folder = tmp_path_factory.mktemp("broken")
    for deb in LIBVIRT_DEBS.glob(f"*_{NEW}_*.deb"):
        make_over(deb, folder, (NEW, BROKEN), {DAEMON: DOES_NOT_START})
        make_over(deb, folder, (NEW, FORGETFUL), {DAEMON: LOSES_ONE})
    line = make_archive(ARCHIVE, [*LIBVIRT_DEBS.glob("*.deb"), *folder.glob("*.deb")])
    before = SOURCES.read_text()
    others = [path.rename(path.with_suffix(".away")) for path in SOURCES.with_suffix(".list.d").glob("*.list")]
    SOURCES.write_text(line)
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    subprocess.run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "update"], check=True)
    yield
    POLICY.unlink()
    SOURCES.write_text(before)
    for path in others:
        path.rename(path.with_suffix(".list"))


@pytest.fixture(scope="module")
def libvirtd(
    host: Host, peer: Peer, lab: Lab, sources: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Upgraded]:
    OWNERS.write_text(OWNERS.read_text() + "\n# its owner's\n")
    guests = tuple(Watched(host, peer, spec) for spec in GUESTS)
    with host.guest(GUESTS[0]), host.guest(GUESTS[1]):
        for guest in guests:
            guest.proof.wait_booted()
        live_xml = {guest.spec.name: guest.domain.XMLDesc() for guest in guests}
        yield Upgraded(host, lab, guests, files_of_libvirt(), live_xml, tmp_path_factory.mktemp("aside") / "kept")


@pytest.fixture
def before(libvirtd: Upgraded) -> dict[str, Look]:
    return libvirtd.look()


def test_one_that_does_not_come_up_gives_way_to_the_old_packages(libvirtd: Upgraded, before: dict[str, Look]) -> None:
    record = libvirtd.update(BROKEN)
    assert record.outcome is Outcome.ROLLED_BACK, record.reason
    assert "waiting for libvirt's daemon" in record.reason
    libvirtd.check_guests(before)
    libvirtd.check_that_it_is_as_before()


def test_one_that_loses_a_guest_gives_way_to_the_old_packages(libvirtd: Upgraded, before: dict[str, Look]) -> None:
    """The old one would not understand what it wrote of the other: records go back, too."""
    record = libvirtd.update(FORGETFUL)
    assert record.outcome is Outcome.ROLLED_BACK, record.reason
    libvirtd.check_guests(before)
    libvirtd.check_that_it_is_as_before()


def test_there_must_be_a_way_back(libvirtd: Upgraded, before: dict[str, Look]) -> None:
    away = [deb.rename(deb.with_suffix(".away")) for deb in ARCHIVE.glob(f"libvirt0_{OLD}_*.deb")]
    listed = (ARCHIVE / "Packages").read_text()
    try:
        make_archive(ARCHIVE, [])
        subprocess.run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "update"], check=True)
        done = hostagent("update", "libvirtd", "--to", NEW, "--yes")
        assert (done.returncode, f"no libvirt0={OLD}" in done.stderr) == (3, True), done.stderr
    finally:
        for deb in away:
            deb.rename(deb.with_suffix(".deb"))
        (ARCHIVE / "Packages").write_text(listed)
        subprocess.run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "update"], check=True)
    libvirtd.check_guests(before)
    libvirtd.check_that_it_is_as_before()


def kill_updater(updater: subprocess.Popen[bytes]) -> None:
    """apt goes on to its end without it."""
    updater.kill()


def kill_dpkg_too(updater: subprocess.Popen[bytes]) -> None:
    """As when the host's memory is full; what dpkg was at is half done."""
    for process in psutil.Process(updater.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.name() in ("apt-get", "dpkg"):
                process.kill()
    updater.kill()


@pytest.mark.parametrize("kill", [kill_updater, kill_dpkg_too])
@pytest.mark.parametrize("moment", ["half-installed libvirt0", "half-configured libvirt-daemon:"])
def test_cut_off_while_packages_are_put_in(
    libvirtd: Upgraded, before: dict[str, Look], moment: str, kill: Callable[[subprocess.Popen[bytes]], None]
) -> None:
    DPKG_LOG.write_text("")
    argv = [sys.executable, "-m", "hostagent.cli", "update", "libvirtd", "--to", NEW, "--yes"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as updater:
        wait_for(lambda: moment in DPKG_LOG.read_text() or updater.poll() is not None)
        assert updater.poll() is None, "it was never cut off"
        kill(updater)
        updater.wait()
    wait_for(lambda: not libvirtd.lab.updates()[-1].is_open and not guards())
    record = libvirtd.lab.updates()[-1]
    assert record.outcome is Outcome.ROLLED_BACK, record.reason
    libvirtd.check_guests(before)
    libvirtd.check_that_it_is_as_before()


def test_another_version_takes_over(libvirtd: Upgraded, before: dict[str, Look]) -> None:
    record = libvirtd.update(NEW)
    assert (record.outcome, record.reason) == (Outcome.UPDATED, "")
    libvirtd.check_guests(before, of_q35=WATCHDOG)
    found = libvirtd.lab.components()["libvirtd"]
    assert (found.running, found.freshness) == ("11.3.0", "current")
    assert "# its owner's" in OWNERS.read_text()
    assert not libvirtd.packages.folder.exists()


def test_the_old_packages_go_back_after_all_of_it(libvirtd: Upgraded) -> None:
    """Once it has been put in whole: 11.3 has most of its files in other packages than 9.0."""
    before = {name: replace(look, live_xml=libvirtd.live_xml[name]) for name, look in libvirtd.look().items()}
    for folder in KEPT:
        shutil.copytree(libvirtd.aside / folder, libvirtd.lab.config.paths.state / folder)
    own = next(one for one in wiring.host_components(libvirtd.lab.config) if one.name == "libvirtd")
    for _ in range(2):
        own.roll_back()
    own.forget()
    libvirtd.check_guests(before)
    libvirtd.check_that_it_is_as_before()


def hostagent(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "hostagent.cli", *words]
    return subprocess.run(argv, check=False, capture_output=True, text=True, env={**os.environ, "COLUMNS": "300"})


def wait_for(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.005)
