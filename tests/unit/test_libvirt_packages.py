"""Another version of libvirt's packages: found, fetched with its way back, put in and taken back."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest
from package_manager import DRIVER, MINE, NEW, OLD, Packages, whole

from hostagent.components.apt_dpkg import changes_in
from hostagent.components.libvirt_packages import LibvirtPackages
from hostagent.components.packages import Change, Installed, Offer, Staged
from hostagent.errors import Failed, NeedsOperator, Refused, UsageError


@pytest.fixture
def apt(tmp_path: Path) -> Packages:
    return Packages(tmp_path / "workshop")


@pytest.fixture
def libvirt(apt: Packages, tmp_path: Path) -> LibvirtPackages:
    return LibvirtPackages(apt, tmp_path / "state" / "kept" / "libvirt")


def staged(libvirt: LibvirtPackages) -> Staged:
    libvirt.stage("11.3")
    found = libvirt.staged()
    assert found is not None
    return found


# -- which one


@pytest.mark.parametrize("wanted", ["11", "11.3", "11.3.0", NEW])
def test_what_a_person_may_call_it(libvirt: LibvirtPackages, wanted: str) -> None:
    assert libvirt.target(wanted) == NEW


def test_what_is_installed_is_no_target(libvirt: LibvirtPackages) -> None:
    assert libvirt.target("9") == ""
    libvirt.stage("9")
    assert libvirt.staged() is None


def test_one_that_nobody_has(libvirt: LibvirtPackages) -> None:
    with pytest.raises(UsageError, match=r"of one of 11\.3\.0-2~bpo12\+1, 9\.0\.0-4\+deb12u2, found '12'"):
        libvirt.target("12")


def test_an_older_one_is_refused(libvirt: LibvirtPackages, apt: Packages) -> None:
    apt.there = {name: whole(name, NEW) for name in MINE}
    with pytest.raises(Refused, match="not older than the installed 11"):
        libvirt.target("9.0")


def test_the_newest_that_fits_is_taken_whatever_was_built_again(libvirt: LibvirtPackages, apt: Packages) -> None:
    apt.offers = [Offer(DRIVER, f"{NEW}+b1"), Offer(DRIVER, "11.3.0-1"), Offer(DRIVER, OLD)]
    assert libvirt.target("11.3") == NEW


@pytest.mark.parametrize(
    ("there", "offers", "said"),
    [
        ({"bash": whole("bash", "5", "bash")}, [], "installed packages of the source libvirt, found none"),
        ({DRIVER: whole(DRIVER)}, [], f"{DRIVER} in the host's apt sources, found none"),
        ({DRIVER: Installed(DRIVER, OLD, "libvirt", "rc ")}, [], "installed packages of the source libvirt"),
    ],
)
def test_a_host_without_it(
    libvirt: LibvirtPackages, apt: Packages, there: dict[str, Installed], offers: list[Offer], said: str
) -> None:
    apt.there, apt.offers = there, offers
    with pytest.raises(Refused, match=said):
        libvirt.target("11.3")


# -- staging


def test_nothing_is_installed_by_it_and_it_is_ours_alone(libvirt: LibvirtPackages, apt: Packages) -> None:
    before = dict(apt.there)
    found = staged(libvirt)
    assert (apt.there, apt.log) == (before, [])
    assert sorted(deb.name for deb in found.new) == sorted([*MINE, "libvirt-common", "mdevctl"])
    assert [(deb.name, deb.version) for deb in found.old] == [(name, OLD) for name in MINE]
    assert all(Path(deb.file).is_file() for deb in (*found.new, *found.old))
    assert (found.added, found.added_of_others) == (("libvirt-common",), ("mdevctl",))
    assert (libvirt.are_old(found), libvirt.are_new(found)) == (True, False)
    assert stat.S_IMODE(libvirt.folder.stat().st_mode) == 0o700
    libvirt.forget()
    assert not libvirt.folder.exists()
    libvirt.forget()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"busy": "somebody works with packages"}, "packages that can be worked with, found somebody works"),
        ({"offers": [Offer(name, NEW) for name in MINE]}, f"no way back, .*no libvirt0={OLD.replace('+', '.')}"),
        (
            {"comes_along": [Change("virt-manager", "4", "")]},
            "of libvirt to be removed, found virt-manager",
        ),
        (
            {"comes_along": [Change("virt-manager", "4", "5")]},
            "upgraded: .*virt-manager 4 -> 5.*upgrade those",
        ),
        ({"comes_along": [Change("libvirt0:i386", "", NEW)]}, "own architecture, found libvirt0:i386"),
    ],
)
def test_what_is_refused_before_anything_is_touched(
    libvirt: LibvirtPackages, apt: Packages, changed: dict[str, object], said: str
) -> None:
    apt.there["virt-manager"] = whole("virt-manager", "4", "virt-manager")
    for name, value in changed.items():
        setattr(apt, name, value)
    with pytest.raises(Refused, match=said):
        libvirt.stage("11.3")
    assert (libvirt.staged(), apt.log) == (None, [])


def test_one_that_its_owner_holds_is_refused(libvirt: LibvirtPackages, apt: Packages) -> None:
    apt.there["libvirt0"] = Installed("libvirt0", OLD, "libvirt", "hi ")
    with pytest.raises(Refused, match=r"libvirt0 held.*apt-mark unhold libvirt0"):
        libvirt.stage("11.3")


def test_apt_that_cannot_is_refused_in_its_own_words(
    libvirt: LibvirtPackages, apt: Packages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> tuple[Change, ...]:
        raise Failed("running apt-get", found="E: you have held broken packages")

    monkeypatch.setattr(apt, "simulate", fails)
    with pytest.raises(Refused, match=r"held broken packages.*apt-get -s install libvirt0=11"):
        libvirt.stage("11.3")


def test_what_was_fetched_must_be_enough(
    libvirt: LibvirtPackages, apt: Packages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apt, "simulate_files", lambda _: (Change("libvirt0", OLD, NEW),))
    with pytest.raises(Refused, match="the same upgrade from what was fetched"):
        libvirt.stage("11.3")


def test_a_damaged_note_needs_a_person(libvirt: LibvirtPackages) -> None:
    staged(libvirt)
    (libvirt.folder / "staged.json").write_text("{")
    with pytest.raises(NeedsOperator, match=r"staged\.json"):
        libvirt.staged()


# -- there and back


def test_put_in(libvirt: LibvirtPackages, apt: Packages) -> None:
    found = staged(libvirt)
    libvirt.install(found)
    assert (libvirt.are_old(found), libvirt.are_new(found)) == (False, True)
    assert sorted(apt.marked) == ["libvirt-common", "libvirt0", "mdevctl"]


def test_a_package_that_the_newer_one_does_not_have_any_more(libvirt: LibvirtPackages, apt: Packages) -> None:
    """It goes, and comes back."""
    gone = "libvirt-daemon-driver-uml"
    apt.there[gone] = whole(gone)
    apt.offers.append(Offer(gone, OLD))
    apt.comes_along.append(Change(gone, OLD, ""))
    found = staged(libvirt)
    assert found.removed == (gone,)
    libvirt.install(found)
    assert not libvirt.are_new(found)
    del apt.there[gone]
    assert libvirt.are_new(found)
    libvirt.put_back(found)
    assert libvirt.are_old(found) and gone in apt.there


@pytest.mark.parametrize("number", range(5))
def test_taken_back_from_wherever_it_stopped(
    libvirt: LibvirtPackages, apt: Packages, tmp_path: Path, number: int
) -> None:
    apt.settings = tmp_path / "qemu.conf"
    apt.settings.write_text("memory_backing_dir = '/ram'\n")
    apt.settings.chmod(0o640)
    before, apt.fails_after = dict(apt.there), number
    found = staged(libvirt)
    with pytest.raises(Failed):
        libvirt.install(found)
    assert (libvirt.are_old(found), libvirt.are_new(found)) == (False, False)
    for _ in range(2):
        libvirt.put_back(found)
        assert libvirt.are_old(found)
        assert {name: one for name, one in apt.there.items() if name != "mdevctl"} == before
        assert apt.settings.read_text() == "memory_backing_dir = '/ram'\n"
        assert stat.S_IMODE(apt.settings.stat().st_mode) == 0o640


def test_what_a_crash_has_left_is_not_taken_for_the_old(libvirt: LibvirtPackages, apt: Packages) -> None:
    found = staged(libvirt)
    apt.diverted = ["diversion of /lib/x to /lib/x.usr-is-merged by libvirt-daemon"]
    assert not libvirt.are_old(found)
    apt.diverted = ["diversion of /lib/x to /lib/x.distrib by dash", "local diversion of /a to /b"]
    assert libvirt.are_old(found)
    apt.there["mdevctl"] = Installed("mdevctl", "1.2-3", "mdevctl", "iU ")
    assert not libvirt.are_old(found)
    apt.there["mdevctl"] = replace(apt.there["mdevctl"], state="ii ")
    assert libvirt.are_old(found)


def test_a_configuration_file_that_was_removed_stays_away_and_links_are_left_alone(
    libvirt: LibvirtPackages, apt: Packages, tmp_path: Path
) -> None:
    apt.settings = tmp_path / "lxc.conf"
    found = staged(libvirt)
    apt.settings.write_text("from the package")
    libvirt.put_back(found)
    assert not apt.settings.exists()
    apt.settings.symlink_to(tmp_path / "elsewhere")
    libvirt.stage("11.3")
    libvirt.put_back(found)
    assert apt.settings.is_symlink()


# -- apt's words


def test_a_simulation_as_apt_says_it() -> None:
    said = """\
Reading package lists...
Inst libvirt-common (11.3.0-2~bpo12+1 Debian Backports:stable-backports [amd64]) []
Inst libvirt0 [9.0.0-4+deb12u2] (11.3.0-2~bpo12+1 local-deb [amd64]) [libvirt-daemon:amd64 ]
Remv libvirt-daemon-driver-xen [9.0.0-4+deb12u2]
Conf libvirt0 (11.3.0-2~bpo12+1 local-deb [amd64])
"""
    assert list(changes_in(said)) == [
        Change("libvirt-common", "", NEW),
        Change("libvirt0", OLD, NEW),
        Change("libvirt-daemon-driver-xen", OLD, ""),
    ]
