"""Files of an update: private, whole, durable, never through a link."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hostagent.errors import Failed, Refused
from hostagent.update import files


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture(autouse=True)
def mild_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- reading -------------------------------------------------------------------------------------------------


def test_reads_a_plain_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\0bytes\xff")
    assert files.read_private(tmp_path / "a") == b"\0bytes\xff"


def test_reads_no_link(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("secret")
    (tmp_path / "link").symlink_to("a")
    with pytest.raises(Failed, match="reading"):
        files.read_private(tmp_path / "link")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_reads_nothing_but_files(tmp_path: Path, make: object) -> None:
    make(tmp_path / "a")  # type: ignore[operator]
    with pytest.raises(Failed, match="reading"):
        files.read_private(tmp_path / "a")


def test_reads_nothing_missing_and_nothing_huge(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="No such file"):
        files.read_private(tmp_path / "a")
    with (tmp_path / "a").open("wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(Failed, match="at most"):
        files.read_private(tmp_path / "a")


# -- writing -------------------------------------------------------------------------------------------------


def test_writes_private_files_in_private_folders(tmp_path: Path) -> None:
    path = tmp_path / "held" / "web1.xml"
    files.write_private(path, b"first")
    files.write_private(path, b"second")
    assert path.read_bytes() == b"second"
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert names(path.parent) == ["web1.xml"]


def test_replaces_a_link_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("as it was")
    (tmp_path / "a").symlink_to("victim")
    files.replace(tmp_path / "a", b"new")
    assert (tmp_path / "victim").read_text() == "as it was"
    assert not (tmp_path / "a").is_symlink()


@pytest.mark.parametrize("in_the_way", ["file", "link"])
def test_what_a_crash_left_is_no_obstacle(tmp_path: Path, in_the_way: str) -> None:
    (tmp_path / "victim").write_text("as it was")
    beside = tmp_path / ".a.hostagent"
    beside.write_text("half") if in_the_way == "file" else beside.symlink_to("victim")
    files.replace(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert (tmp_path / "victim").read_text() == "as it was"
    assert names(tmp_path) == ["a", "victim"]


def test_the_temporary_name_is_none_that_libvirt_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt reads every *.xml in its run directory whose name does not begin with a dot."""
    seen: list[str] = []
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda old, new: (seen.append(Path(old).name), rename(old, new)))
    files.replace(tmp_path / "web1.xml", b"x")
    assert seen == [".web1.xml.hostagent"]


def test_old_or_new_but_never_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Failed, match="No space left"):
        files.replace(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_file_and_folder_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(str(Path(f"/proc/self/fd/{fd}").readlink())))
    files.replace(tmp_path / "a", b"new")
    assert synced == [str(tmp_path / ".a.hostagent"), str(tmp_path)]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "held").write_text("a file")
    with pytest.raises(Failed, match="making"):
        files.write_private(tmp_path / "held" / "x" / "web1.xml", b"")


def test_discard_takes_what_a_crash_left_of_writing_too(tmp_path: Path) -> None:
    for name in ("a", ".a.hostagent", ".b.hostagent", "kept"):
        (tmp_path / name).write_text("")
    for _ in range(2):
        files.discard(str(tmp_path / "a"), str(tmp_path / "b"))
    assert names(tmp_path) == ["kept"]


def test_discard_says_what_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(Failed, match="removing"):
        files.discard(str(tmp_path / "a"))


# -- pid files -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PidFiles:
    folder: Path

    def __post_init__(self) -> None:
        (self.folder / "web1.pid").write_text("old")
        (self.folder / "web1.new").write_text("new")

    def swap(self, how: object) -> None:
        name, new, old = (str(self.folder / f"web1.{end}") for end in ("pid", "new", "old"))
        how(name, new=new, old=old)  # type: ignore[operator]

    def content(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.folder.iterdir()}


def test_swapped_in_any_number_of_times(tmp_path: Path) -> None:
    pid_files, inode = PidFiles(tmp_path), (tmp_path / "web1.new").lstat
    new = inode().st_ino
    for _ in range(2):
        pid_files.swap(files.swap_in)
        assert pid_files.content() == {"web1.pid": "new", "web1.old": "old"}
    assert (tmp_path / "web1.pid").stat().st_ino == new  # the very file that the new QEMU holds locked


def test_swapped_back_any_number_of_times(tmp_path: Path) -> None:
    pid_files, old = PidFiles(tmp_path), (tmp_path / "web1.pid").stat().st_ino
    pid_files.swap(files.swap_in)
    for _ in range(2):
        pid_files.swap(files.swap_back)
        assert pid_files.content() == {"web1.pid": "old"}
    assert (tmp_path / "web1.pid").stat().st_ino == old


@pytest.mark.parametrize("step", ["os.link", "os.rename"])
def test_cut_off_between_and_finished_or_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    for number, finish in enumerate((files.swap_in, files.swap_back)):
        folder = tmp_path / str(number)
        folder.mkdir()
        pid_files = PidFiles(folder)
        with monkeypatch.context() as patch:

            def refuse(*_: object, **__: object) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr(step, refuse)
            with pytest.raises(Failed, match="No space left"):
                pid_files.swap(files.swap_in)
        pid_files.swap(finish)
        wanted = {"web1.pid": "new", "web1.old": "old"} if finish is files.swap_in else {"web1.pid": "old"}
        assert pid_files.content() == wanted


def test_back_when_it_was_never_swapped_in(tmp_path: Path) -> None:
    pid_files = PidFiles(tmp_path)
    pid_files.swap(files.swap_back)
    assert pid_files.content() == {"web1.pid": "old"}


# -- pins ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pin:
    ram: str
    link: str
    device: int
    inode: int


@pytest.fixture
def ram(tmp_path: Path) -> Path:
    path = tmp_path / "libvirt" / "qemu" / "1-web1" / "pc.ram"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"RAM")
    return path


def pin_of(ram: Path, name: str = "t0-0") -> Pin:
    found = ram.stat()
    return Pin(str(ram), str(files.pin_folder(ram) / name), found.st_dev, found.st_ino)


def test_pins_are_on_the_same_file_system_and_apart_from_libvirt(ram: Path, tmp_path: Path) -> None:
    assert files.pin_folder(ram) == tmp_path / "hostagent"


@pytest.mark.parametrize("path", ["/dev/shm/pc.ram", "/a/b/c/d/pc.ram", "/ram/libvirt/other/1-web1/pc.ram"])
def test_ram_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(Refused, match="libvirt/qemu"):
        files.pin_folder(Path(path))


def test_a_pin_keeps_the_ram(ram: Path) -> None:
    pin = pin_of(ram)
    for _ in range(2):
        files.pin(pin)
    ram.unlink()
    assert files.is_pinned(pin)
    assert not files.is_named(pin)
    assert Path(pin.link).read_bytes() == b"RAM"
    assert mode(Path(pin.link).parent) == 0o700


def test_unpinned_any_number_of_times(ram: Path) -> None:
    first, second = pin_of(ram, "t0-0"), pin_of(ram, "t1-0")
    files.pin(first)
    files.pin(second)
    files.unpin(first)
    assert files.is_pinned(second)  # the folder stays while somebody's pin is in it
    for _ in range(2):
        files.unpin(second)
    assert not Path(second.link).parent.exists()
    assert ram.read_bytes() == b"RAM"


def test_another_file_of_that_name_is_not_pinned(ram: Path) -> None:
    pin = pin_of(ram)
    other = ram.with_name("other")
    other.write_bytes(b"somebody's")
    other.rename(ram)
    with pytest.raises(Failed, match="another file"):
        files.pin(pin)
    assert not Path(pin.link).exists()


def test_a_link_in_the_place_of_the_ram_is_not_followed(ram: Path, tmp_path: Path) -> None:
    pin = pin_of(ram)
    (tmp_path / "secret").write_text("secret")
    ram.unlink()
    ram.symlink_to(tmp_path / "secret")
    with pytest.raises(Failed):
        files.pin(pin)
    assert not os.path.lexists(pin.link)


def test_a_link_in_the_place_of_the_pins_folder_is_not_followed(ram: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    files.pin_folder(ram).symlink_to(elsewhere)
    with pytest.raises(Failed):
        files.pin(pin_of(ram))
    assert names(elsewhere) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a folder away")
def test_somebody_else_s_folder_is_not_used(ram: Path) -> None:
    folder = files.pin_folder(ram)
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    with pytest.raises(Failed, match="folder of ours"):
        files.pin(pin_of(ram))
    assert names(folder) == []


def test_a_temporary_socket_is_not_longer_than_its_own(tmp_path: Path) -> None:
    """sun_path is short, and libvirt uses up what there is."""
    found = files.temporary_socket("/run/domain-1-web1/monitor.sock", "a1b2c3", 30)
    assert found == "/run/domain-1-web1/a1b2c3-30"


# -- RAM files of our making -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ram:
    path: str
    size: int = 1 << 20
    uid: int = os.getuid()
    gid: int = os.getgid()
    in_new_folder: bool = True

    @property
    def link(self) -> str:
        return str(Path(self.path).parents[1] / "links" / "t0")


def test_a_ram_file_is_sparse_and_private(tmp_path: Path) -> None:
    ram = tmp_path / "1-web1" / "pc.ram"
    found = files.make_ram(Ram(str(ram)))
    assert found == (ram.stat().st_dev, ram.stat().st_ino)
    assert (ram.stat().st_size, ram.stat().st_blocks, mode(ram), mode(ram.parent)) == (1 << 20, 0, 0o600, 0o700)


def test_a_ram_file_goes_with_the_folder_that_was_made_for_it(tmp_path: Path) -> None:
    for in_new_folder in (True, False):
        ram = Ram(str(tmp_path / "1-web1" / "pc.ram"), in_new_folder=in_new_folder)
        files.make_ram(ram)
        for _ in range(2):
            files.remove_ram(ram)
        assert names(tmp_path) == ([] if in_new_folder else ["1-web1"])
        (tmp_path / "1-web1").mkdir(exist_ok=True)


def test_ram_of_another_life_stays(tmp_path: Path) -> None:
    """libvirt's numbers come again once its daemon has started without guests, and so do the names of RAM files."""
    ram = Ram(str(tmp_path / "1-web1" / "pc.ram"))
    files.make_ram(ram)
    (tmp_path / "1-web1" / "pc.ram").unlink()
    (tmp_path / "1-web1" / "pc.ram").write_text("theirs")
    for _ in range(2):
        files.remove_ram(ram)
        assert names(tmp_path) == ["1-web1"]
        assert names(tmp_path / "1-web1") == ["pc.ram"]


def test_what_was_in_the_way_stays_when_that_is_undone(tmp_path: Path) -> None:
    (tmp_path / "1-web1").mkdir()
    (tmp_path / "1-web1" / "pc.ram").write_text("theirs")
    ram = Ram(str(tmp_path / "1-web1" / "pc.ram"), in_new_folder=False)
    with pytest.raises(Failed, match="expected nothing of that name"):
        files.make_ram(ram)
    files.remove_ram(ram)
    assert names(tmp_path / "1-web1") == ["pc.ram"]


def test_a_folder_with_other_files_stays(tmp_path: Path) -> None:
    ram = Ram(str(tmp_path / "1-web1" / "pc.ram"))
    files.make_ram(ram)
    (tmp_path / "1-web1" / "theirs").touch()
    files.remove_ram(ram)
    assert names(tmp_path / "1-web1") == ["theirs"]


def test_nothing_that_is_there_becomes_ram(tmp_path: Path) -> None:
    (tmp_path / "1-web1").mkdir()
    (tmp_path / "1-web1" / "pc.ram").write_text("theirs")
    for in_new_folder in (True, False):
        ram = Ram(str(tmp_path / "1-web1" / "pc.ram"), in_new_folder=in_new_folder)
        with pytest.raises(Failed, match="expected nothing of that name"):
            files.make_ram(ram)
        files.remove_ram(ram)
    assert (tmp_path / "1-web1" / "pc.ram").read_text() == "theirs"


def test_ram_is_neither_made_nor_removed_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "pc.ram").write_text("theirs")
    (tmp_path / "1-web1").symlink_to("elsewhere")
    ram = Ram(str(tmp_path / "1-web1" / "pc.ram"), in_new_folder=False)
    with pytest.raises(Failed, match="making the RAM file"):
        files.make_ram(ram)
    with pytest.raises(Failed, match="removing"):
        files.remove_ram(ram)
    assert names(tmp_path / "elsewhere") == ["pc.ram"]
