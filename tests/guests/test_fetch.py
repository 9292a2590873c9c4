"""QEMU through apt, from a sources list of our own, with nothing installed by it."""

from pathlib import Path

import pytest

from hostagent import processes
from hostagent.errors import Refused, UsageError
from hostagent.trees import apt_packages, qemu_trees
from tests.bench.archive import make_archive
from tests.bench.lab import DEBS

ARCHIVE = Path("/var/lib/archive")
VERSION = "1:10.0.2+ds-2+deb13u1~bpo12+1"


@pytest.fixture(scope="module")
def sources() -> Path:
    """A list that names an archive of the packages that the bench has."""
    line = make_archive(ARCHIVE, DEBS.glob("*.deb"))
    found = ARCHIVE / "qemu.list"
    found.write_text(line)
    return found


def test_fetched_and_added(sources: Path, tmp_path: Path) -> None:
    installed = processes.run(["dpkg-query", "-W"], within_seconds=60).stdout
    lists = sorted(Path("/var/lib/apt/lists").rglob("*"))
    (tmp_path / "apt").mkdir()
    packages = apt_packages.download("10.0", sources=sources, folder=tmp_path / "apt")
    state = Path("/var/lib/fetched")
    tree = qemu_trees.add(packages, state=state)
    assert tree.package == VERSION
    assert processes.run(["dpkg-query", "-W"], within_seconds=60).stdout == installed
    assert sorted(Path("/var/lib/apt/lists").rglob("*")) == lists


@pytest.mark.parametrize("wanted", ["10", "10.0.2", VERSION, VERSION.removeprefix("1:")])
def test_what_a_person_may_call_it(sources: Path, tmp_path: Path, wanted: str) -> None:
    assert len(apt_packages.download(wanted, sources=sources, folder=tmp_path)) == 4


@pytest.mark.parametrize("wanted", ["10.00", "1", "9.2", "-o"])
def test_no_such_version(sources: Path, tmp_path: Path, wanted: str) -> None:
    with pytest.raises(UsageError, match=r"10\.0\.2"):
        apt_packages.download(wanted, sources=sources, folder=tmp_path)


def test_a_list_without_qemu(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "Packages").touch()
    (tmp_path / "qemu.list").write_text(f"deb [trusted=yes] file:{empty} ./\n")
    (tmp_path / "apt").mkdir()
    with pytest.raises(Refused, match="qemu-system-x86"):
        apt_packages.download("10.0", sources=tmp_path / "qemu.list", folder=tmp_path / "apt")
