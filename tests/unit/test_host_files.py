"""The host's files: whole or not at all, and never through a link."""

import os
import stat
from pathlib import Path

import pytest

from hostagent.errors import Failed, Refused
from hostagent.setup.host_files import Folder, HostFiles, Mount, parse_mountinfo

CONF = Path("/etc/a.conf")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    return tmp_path


@pytest.fixture
def files(root: Path) -> HostFiles:
    return HostFiles(root)


def test_a_new_file_gets_the_mode_and_an_old_one_keeps_its_own(root: Path, files: HostFiles) -> None:
    files.write(CONF, b"x", mode=0o600)
    assert stat.S_IMODE((root / "etc/a.conf").stat().st_mode) == 0o600
    (root / "etc/a.conf").chmod(0o640)
    files.write(CONF, b"y", mode=0o600)
    assert stat.S_IMODE((root / "etc/a.conf").stat().st_mode) == 0o640
    assert files.read(CONF) == b"y"
    assert list((root / "etc").iterdir()) == [root / "etc/a.conf"]


def test_none_is_no_file(files: HostFiles) -> None:
    assert files.read(CONF) is None
    files.write(CONF, b"x", mode=0o600)
    files.write(CONF, None, mode=0o600)
    assert files.read(CONF) is None


def test_a_link_is_neither_read_nor_replaced(root: Path, files: HostFiles) -> None:
    (root / "secret").write_text("secret")
    (root / "etc/a.conf").symlink_to(root / "secret")
    with pytest.raises(Refused, match="no link"):
        files.read(CONF)
    with pytest.raises(Refused, match="a regular file"):
        files.write(CONF, b"x", mode=0o600)
    assert (root / "secret").read_text() == "secret"


def test_a_pipe_is_not_waited_for(root: Path, files: HostFiles) -> None:
    os.mkfifo(root / "etc/a.conf")
    with pytest.raises(Refused, match="a regular file"):
        files.read(CONF)


def test_a_huge_file_is_refused(root: Path, files: HostFiles) -> None:
    (root / "etc/a.conf").write_bytes(b"x" * 1_100_000)
    with pytest.raises(Refused, match="at most"):
        files.read(CONF)


def test_a_write_that_fails_leaves_the_old_file(root: Path, files: HostFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write(CONF, b"old", mode=0o600)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Failed, match=r"writing /etc/a\.conf: No space left"):
        files.write(CONF, b"new", mode=0o600)
    assert files.read(CONF) == b"old"
    assert list((root / "etc").iterdir()) == [root / "etc/a.conf"]


def test_folders(root: Path, files: HostFiles) -> None:
    path = Path("/var/lib/x")
    assert files.folder(path) is None
    before = os.umask(0o077)
    files.make_folder(path, 0o711, os.getuid(), os.getgid())
    os.umask(before)
    assert files.folder(path) == Folder(0o711, os.getuid(), os.getgid(), empty=True)
    (root / "var/lib/x/y").mkdir()
    (root / "var/lib/x/y/f").write_text("")
    assert files.some_files_below(path) == (path / "y/f",)
    assert not files.remove_empty_folder(path)
    (root / "var/lib/x/y/f").unlink()
    (root / "var/lib/x/y").rmdir()
    assert files.remove_empty_folder(path)
    assert not files.remove_empty_folder(path)


def test_a_link_in_place_of_a_folder(root: Path, files: HostFiles) -> None:
    (root / "elsewhere").mkdir(mode=0o755)
    (root / "state").symlink_to(root / "elsewhere")
    with pytest.raises(Refused, match="a folder, found a link"):
        files.folder(Path("/state"))
    with pytest.raises(Refused, match="no link"):
        files.make_folder(Path("/state"), 0o711, os.getuid(), os.getgid())
    assert stat.S_IMODE((root / "elsewhere").stat().st_mode) == 0o755


def test_mountinfo() -> None:
    text = (
        "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n"
        "36 22 0:31 / /mnt/a\\040b rw master:1 propagate_from:2 - tmpfs hostagent-ram rw,size=1k\n"
        "37 22 0:32 / /x rw - tmpfs tmpfs rw\n"
    )
    assert parse_mountinfo(text) == (
        Mount(Path("/"), "ext4", "/dev/vda1", ("rw",)),
        Mount(Path("/mnt/a b"), "tmpfs", "hostagent-ram", ("rw", "size=1k")),
        Mount(Path("/x"), "tmpfs", "tmpfs", ("rw",)),
    )
