"""Trees of files: nothing is written or read through a link, and the same tree is known again."""

import os
import stat
from pathlib import Path

import pytest

from hostagent.errors import Refused
from hostagent.trees import file_tree


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    (path / "usr/bin").mkdir(parents=True)
    (path / "usr/bin/tool").write_text("#!/bin/sh\n")
    (path / "usr/bin/tool").chmod(0o4775)
    (path / "usr/bin/kvm").symlink_to("tool")
    (path / "usr/share").mkdir(mode=0o700)
    (path / "usr/share/data").write_text("data")
    (path / "usr/share/data").chmod(0o600)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_files_folders_and_links_with_plain_modes(source: Path, target: Path) -> None:
    file_tree.copy("copying", source, target)
    file_tree.settle(target)
    assert (mode(target / "usr/bin/tool"), mode(target / "usr/share/data")) == (0o755, 0o644)
    assert (mode(target), mode(target / "usr/share")) == (0o755, 0o755)
    assert (target / "usr/bin/kvm").readlink() == Path("tool")


def test_places_can_be_left_out(source: Path, target: Path) -> None:
    file_tree.copy("copying", source, target, skip={Path("usr/share")})
    assert not (target / "usr/share").exists()


@pytest.mark.parametrize("points_to", ["/etc/passwd", "../../../etc/passwd", "../../..", "here/../../../.."])
def test_a_link_out_of_the_tree_is_refused(source: Path, target: Path, points_to: str) -> None:
    (source / "usr/bin/out").symlink_to(points_to)
    with pytest.raises(Refused, match=r"usr/bin/out to stay in the tree"):
        file_tree.copy("copying", source, target)


def test_a_link_up_to_the_top_stays_inside(source: Path, target: Path) -> None:
    (source / "usr/bin/top").symlink_to("../..")
    file_tree.copy("copying", source, target)
    assert (target / "usr/bin/top").resolve() == target


def test_a_device_or_pipe_is_refused(source: Path, target: Path) -> None:
    os.mkfifo(source / "pipe")
    with pytest.raises(Refused, match="pipe to be a file, folder or link"):
        file_tree.copy("copying", source, target)


def test_a_second_source_cannot_write_through_the_links_of_the_first(tmp_path: Path, target: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (target / "usr").symlink_to(victim)
    (tmp_path / "second/usr").mkdir(parents=True)
    (tmp_path / "second/usr/x").write_text("x")
    with pytest.raises(Refused, match="usr to be one thing"):
        file_tree.copy("copying", tmp_path / "second", target)
    assert list(victim.iterdir()) == []


def test_a_file_given_twice_is_refused(source: Path, target: Path) -> None:
    file_tree.copy("copying", source, target)
    with pytest.raises(Refused, match="once"):
        file_tree.copy("copying", source, target)


def test_a_whole_system_is_not_copied(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_tree, "MOST_ENTRIES", 3)
    with pytest.raises(Refused, match="at most 3 files"):
        file_tree.copy("copying", source, target)


def test_the_digest_knows_a_tree_again_and_sees_every_change(source: Path, target: Path) -> None:
    file_tree.copy("copying", source, target)
    first = file_tree.digest(target)
    os.utime(target / "usr/share/data", (1, 1))
    assert file_tree.digest(target) == first
    seen = {first}
    (target / "usr/share/data").write_text("other")
    seen.add(file_tree.digest(target))
    (target / "usr/bin/tool").chmod(0o644)
    seen.add(file_tree.digest(target))
    (target / "usr/bin/kvm").unlink()
    seen.add(file_tree.digest(target))
    (target / "usr/bin/kvm").symlink_to("tool2")
    seen.add(file_tree.digest(target))
    (target / "empty").mkdir()
    seen.add(file_tree.digest(target))
    assert len(seen) == 6
