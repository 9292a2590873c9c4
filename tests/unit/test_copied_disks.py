"""Whether a guest may be written back over the file that it left."""

import dataclasses
import os
from pathlib import Path

import pytest

from hostagent.facts import Disk
from hostagent.update.copied_disks import CopiedDisk, as_it_is, as_it_was_left, why_not_onto


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * 100)
    return path


@pytest.fixture
def disk(path: Path) -> CopiedDisk:
    return as_it_is(Disk("u", "vda", str(path), "raw", 100))


def test_the_image_on_the_peer_has_the_same_owner(path: Path, disk: CopiedDisk) -> None:
    path.chmod(0o640)
    image = as_it_is(Disk("u", "vda", str(path), "raw", 100)).image
    assert (image.path, image.format, image.size, image.mode) == (path, "raw", 100, 0o640)
    assert (image.owner, image.group) == (os.getuid(), os.getgid())


def test_onto_what_it_left(disk: CopiedDisk) -> None:
    left = (as_it_was_left(disk),)
    assert why_not_onto(disk, left, begun=False) == ""
    assert why_not_onto(disk, (), begun=False) == ""


def test_not_onto_what_was_written_to_since_unless_by_coming_back(path: Path, disk: CopiedDisk) -> None:
    left = (as_it_was_left(disk),)
    path.write_bytes(b"y")
    assert "somebody has written" in why_not_onto(disk, left, begun=False)
    assert why_not_onto(disk, left, begun=True) == ""


def test_not_onto_another_file(path: Path, disk: CopiedDisk) -> None:
    path.rename(path.with_suffix(".old"))
    assert "No such file" in why_not_onto(disk, (), begun=True)
    path.write_bytes(b"x" * 100)
    assert "another file" in why_not_onto(disk, (), begun=True)
    path.unlink()
    path.symlink_to(path.with_suffix(".old"))
    assert "another file" in why_not_onto(disk, (), begun=True)


def test_on_a_device_of_another_number_only_an_untouched_file_is_known_again(path: Path, disk: CopiedDisk) -> None:
    left = (as_it_was_left(disk),)
    moved = dataclasses.replace(disk, device=disk.device + 1)
    assert why_not_onto(moved, left, begun=False) == ""
    assert "another device" in why_not_onto(moved, (), begun=False)
    path.write_bytes(b"y")
    assert "another device" in why_not_onto(moved, left, begun=True)
