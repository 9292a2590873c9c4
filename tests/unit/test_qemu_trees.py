"""QEMU trees, made from packages whose emulator is a shell script that answers like QEMU."""

import io
import os
import shutil
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hostagent import processes
from hostagent.errors import Failed, Refused, UsageError
from hostagent.facts import QemuTree, Version
from hostagent.trees import apt_packages, qemu_trees

VERSION = "1:10.0.2+ds-2+deb13u1~bpo12+1"
NAME = "10.0.2+ds-2+deb13u1~bpo12+1"
BANNER = f"QEMU emulator version 10.0.2 (Debian {VERSION})"
SCRIPT = """#!/bin/sh
case "$*" in
--version) echo "{banner}";;
"-L help") for d in usr/share/qemu usr/share/seabios usr/lib/ipxe/qemu; do
  echo $(dirname "$0")/qemu-bundle/$d
done;;
"-device help") echo 'name "virtio-blk-pci", bus PCI'; {devices};;
esac
"""
SEABIOS = {"usr/share/seabios/bios-256k.bin": "b", "usr/share/seabios/vgabios-stdvga.bin": "v"}
DATA = {
    "usr/share/qemu/kvmvapic.bin": "k",
    "usr/share/qemu/linuxboot_dma.bin": "l",
    "usr/share/doc/q/copyright": "c",
}
IPXE = {"usr/lib/ipxe/qemu/efi-virtio.rom": "r"}
COMMON = {"usr/lib/x86_64-linux-gnu/qemu/ui-curses.so": "so"}


def emulator(banner: str = BANNER, devices: str = ":", replace: tuple[str, str] = ("", "")) -> dict[str, str]:
    script = SCRIPT.format(banner=banner, devices=devices)
    return {"usr/bin/qemu-system-x86_64": script.replace(*replace) if replace[0] else script}


def fill(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if "/bin/" in name else 0o644)
    return folder


Build = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Builds a real .deb."""

    def build(
        name: str, files: dict[str, str], *, version: str = VERSION, source: str = "qemu", depends: str = ""
    ) -> Path:
        root = fill(tmp_path / "build" / f"{name}-{version.replace(':', '_')}", files)
        control = f"Package: {name}\nVersion: {version}\nSource: {source}\nArchitecture: all\nMaintainer: a <a@b>\n"
        control += f"Depends: {depends}\n" if depends else ""
        fill(root, {"DEBIAN/control": control + "Description: x\n"})
        deb = tmp_path / f"{root.name}.deb"
        processes.run(["dpkg-deb", "--root-owner-group", "-Znone", "-b", str(root), str(deb)], within_seconds=60)
        return deb

    return build


@pytest.fixture
def debs(build: Build) -> list[Path]:
    depends = "libc6, qemu-system-common (= 1), qemu-system-data (>> 1), seabios, ipxe-qemu"
    return [
        build("qemu-system-x86", emulator(), depends=depends),
        build("qemu-system-common", COMMON),
        build("qemu-system-data", DATA),
        build("seabios", SEABIOS, version="1.16.3-2", source="seabios"),
        build("ipxe-qemu", IPXE, version="1.0.0", source="ipxe"),
    ]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory that others can reach, as /var/lib is; pytest makes its own 0700."""
    path = tmp_path
    while path != path.parent:
        if not path.stat().st_mode & stat.S_IXOTH and path.stat().st_uid == os.getuid():
            path.chmod(0o711)
        path = path.parent
    return tmp_path / "state"


def left_behind(state: Path) -> list[str]:
    return [path.name for path in (state / "qemu").iterdir() if path.name != ".lock"]


def test_packages_become_a_tree(state: Path, debs: list[Path]) -> None:
    tree = qemu_trees.add(debs, state=state)
    assert tree == QemuTree(NAME, Version(10, 0, 2), VERSION, str(state / "qemu" / NAME / qemu_trees.EMULATOR))
    top = state / "qemu" / NAME
    assert (top / "usr/bin/qemu-bundle").resolve() == top.resolve()
    assert (top / "usr/share/seabios/bios-256k.bin").read_text() == "b"
    assert not (top / "usr/share/doc").exists()
    assert qemu_trees.list_trees(state, Path("/nonexistent")) == (tree,)
    assert left_behind(state) == [NAME]


def test_the_tree_can_be_read_by_everybody_and_the_state_only_passed(state: Path, debs: list[Path]) -> None:
    before = os.umask(0o077)
    try:
        qemu_trees.add(debs, state=state)
    finally:
        os.umask(before)
    assert stat.S_IMODE(state.stat().st_mode) == 0o711
    for path in [state / "qemu", state / "qemu" / NAME, *(state / "qemu" / NAME).rglob("*")]:
        if path.is_dir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o755, path
        elif not path.is_symlink() and path.name != qemu_trees.RECORD:
            assert stat.S_IMODE(path.stat().st_mode) in (0o644, 0o755), path


def test_the_same_again_is_there_already(state: Path, debs: list[Path]) -> None:
    first = qemu_trees.add(debs, state=state)
    inode = Path(first.emulator).stat().st_ino
    assert qemu_trees.add(list(reversed(debs)), state=state) == first
    assert Path(first.emulator).stat().st_ino == inode
    assert left_behind(state) == [NAME]


def test_a_tree_can_be_added_from_itself_and_by_hand(state: Path, debs: list[Path], tmp_path: Path) -> None:
    first = qemu_trees.add(debs, state=state)
    by_hand = tmp_path / "by-hand"
    shutil.copytree(state / "qemu" / NAME, by_hand, symlinks=True)
    assert qemu_trees.add([by_hand], state=state) == first
    assert qemu_trees.add([state / "qemu" / NAME], state=state) == first


def test_another_build_of_the_same_version_is_refused(state: Path, debs: list[Path], tmp_path: Path) -> None:
    first = qemu_trees.add(debs, state=state)
    other = tmp_path / "other"
    shutil.copytree(state / "qemu" / NAME, other, symlinks=True)
    (other / "usr/share/qemu/kvmvapic.bin").write_text("different")
    with pytest.raises(Refused, match="found another of the same version"):
        qemu_trees.add([other], state=state)
    assert qemu_trees.list_trees(state, Path("/nonexistent")) == (first,)


def test_a_directory_without_a_package_version_is_named_by_its_content(state: Path, tmp_path: Path) -> None:
    own = fill(tmp_path / "own", emulator("QEMU emulator version 11.0.50 (v11.0.0-12-gabc)") | SEABIOS | DATA | IPXE)
    tree = qemu_trees.add([own], state=state)
    assert tree.name.startswith("11.0.50-") and len(tree.name) == 7 + 1 + 12
    assert (tree.version, tree.package) == (Version(11, 0, 50), "")


def test_firmware_that_is_nowhere_is_refused(state: Path, debs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_trees, "SYSTEM_FIRMWARE", (Path("nonexistent/ipxe"),))
    with pytest.raises(Refused, match=r"found no efi-virtio\.rom"):
        qemu_trees.add(debs[:4], state=state)
    assert left_behind(state) == []


def test_firmware_of_the_system_is_linked(
    state: Path, debs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path("usr/lib/ipxe")
    fill(tmp_path / "root", IPXE)
    monkeypatch.setattr(qemu_trees, "SYSTEM_FIRMWARE", (place,))
    monkeypatch.setattr(qemu_trees, "_ROOT", tmp_path / "root")
    tree = qemu_trees.add(debs[:4], state=state)
    assert (state / "qemu" / tree.name / place).readlink() == tmp_path / "root" / place


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (emulator(banner="hello"), "expected QEMU emulator version X.Y.Z, found hello"),
        (
            emulator(devices="echo 'Only modules from the same build' >&2; exit 134"),
            "found 134: Only modules",
        ),
        (emulator(replace=('name "v', '"v')), "virtio-blk-pci"),
        (emulator(replace=('$(dirname "$0")/qemu-bundle', "")), "in the tree only, found /usr/share/qemu, "),
    ],
)
def test_an_emulator_that_does_not_work_leaves_nothing(
    state: Path, tmp_path: Path, script: dict[str, str], words: str
) -> None:
    with pytest.raises(Failed, match=words):
        qemu_trees.add([fill(tmp_path / "x", script | SEABIOS | DATA | IPXE)], state=state)
    assert left_behind(state) == []


def test_a_directory_without_an_emulator_is_refused(state: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="the program usr/bin/qemu-system-x86_64, found none"):
        qemu_trees.add([fill(tmp_path / "x", DATA)], state=state)


def test_nothing_given_or_not_there_is_a_usage_error(state: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found nothing"):
        qemu_trees.add([], state=state)
    with pytest.raises(UsageError, match="no such file"):
        qemu_trees.add([tmp_path / "none.deb"], state=state)


def test_a_file_that_is_no_package(state: Path, tmp_path: Path) -> None:
    (tmp_path / "x.deb").write_text("hello")
    with pytest.raises(UsageError, match="expected a whole Debian package, found one that dpkg-deb cannot read"):
        qemu_trees.add([tmp_path / "x.deb"], state=state)
    assert left_behind(state) == []


def test_no_version_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a version, or how it begins"):
        apt_packages.download(" ", sources=tmp_path / "none", folder=tmp_path)


def test_a_version_that_is_a_path_is_refused(state: Path, tmp_path: Path) -> None:
    own = fill(tmp_path / "own", emulator("QEMU emulator version 10.0.2 (Debian ..)") | SEABIOS | DATA | IPXE)
    with pytest.raises(Refused, match="a version that can name a folder"):
        qemu_trees.add([own], state=state)


def test_a_package_cannot_write_outside(state: Path, debs: list[Path], tmp_path: Path) -> None:
    """A link to elsewhere, then a file below it, in one archive."""
    victim = tmp_path / "victim"
    victim.mkdir()
    debs[1] = hostile(tmp_path, "qemu-system-common", [("./usr/lib/x", str(victim), b""), ("./usr/lib/x/f", "", b"!")])
    with pytest.raises((Failed, Refused)):
        qemu_trees.add(debs, state=state)
    assert list(victim.iterdir()) == []
    assert left_behind(state) == []


def test_what_a_killed_add_left_is_cleared_away(state: Path, debs: list[Path]) -> None:
    fill(state / "qemu/.adding-dead", {"tree/usr/x": "x"})
    for path in (state, state / "qemu"):
        path.chmod(0o755)
    qemu_trees.add(debs, state=state)
    assert left_behind(state) == [NAME]


def test_a_closed_state_directory_is_told(state: Path, debs: list[Path]) -> None:
    state.mkdir()
    state.chmod(0o700)
    with pytest.raises(Refused, match="chmod o\\+x"):
        qemu_trees.add(debs, state=state)


def test_a_state_directory_that_others_write_is_refused(state: Path, debs: list[Path]) -> None:
    state.mkdir()
    state.chmod(0o777)
    with pytest.raises(Refused, match="found mode 0777"):
        qemu_trees.add(debs, state=state)


def test_the_systems_own_comes_first(state: Path, debs: list[Path], tmp_path: Path) -> None:
    old = fill(tmp_path / "root", emulator("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u16)"))
    system = old / qemu_trees.EMULATOR
    added = qemu_trees.add(debs, state=state)
    trees = qemu_trees.list_trees(state, system)
    assert trees == (QemuTree("system", Version(7, 2, 22), "1:7.2+dfsg-7+deb12u16", str(system)), added)


def test_a_system_qemu_of_no_package(state: Path, tmp_path: Path) -> None:
    system = fill(tmp_path / "root", emulator("QEMU emulator version 9.1.0")) / qemu_trees.EMULATOR
    assert qemu_trees.list_trees(state, system) == (QemuTree("system", Version(9, 1, 0), "", str(system)),)


def test_a_damaged_tree_is_left_out_and_said(state: Path, debs: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    tree = qemu_trees.add(debs, state=state)
    (state / "qemu" / NAME / qemu_trees.RECORD).write_text("{}")
    (state / "qemu/empty").mkdir()
    assert qemu_trees.list_trees(state, Path("/nonexistent")) == ()
    assert f"tree={NAME} is left out" in caplog.text and "tree=empty is left out" in caplog.text
    with pytest.raises(Refused, match="a damaged one"):
        qemu_trees.add(debs, state=state)
    assert Path(tree.emulator).exists()


def test_which_tree_an_executable_is_of(tmp_path: Path) -> None:
    real = fill(tmp_path, {"real/bin/q": ""}) / "real/bin/q"
    link = tmp_path / "q"
    link.symlink_to(real)
    system = QemuTree("system", Version(7, 2), "", str(link))
    other = QemuTree("10", Version(10, 0), "", "/x/usr/bin/q")
    assert qemu_trees.tree_of(str(real), (system, other)) is system
    assert qemu_trees.tree_of("/x/usr/bin/q", (system, other)) is other
    assert qemu_trees.tree_of(f"{real} (deleted)", (system, other)) is None
    assert qemu_trees.tree_of("/usr/bin/other", (system, other)) is None


# -- kept and removed; keeping for real is in tests/guests/test_upgrade.py


def test_an_emulator_that_dpkg_does_not_know_is_not_kept(state: Path, tmp_path: Path) -> None:
    system = fill(tmp_path / "root", emulator("QEMU emulator version 9.1.0")) / qemu_trees.EMULATOR
    with pytest.raises(Refused, match="installed Debian package"):
        qemu_trees.keep(state, system)


ROWS = (
    ("qemu 1:7.2-7", "qemu-system-x86", "ii "),
    ("qemu 1:7.2-7", "qemu-system-common", "ii "),
    ("qemu 1:7.2-7", "qemu-system-gui", "rc "),
    ("qemu 1:10.0-2", "qemu-utils", "ii "),
    ("bash 5", "bash", "ii "),
)


def test_the_packages_of_an_emulator() -> None:
    """One that was removed, and a tool of another version, are no parts of it."""
    assert qemu_trees.installed_parts("x", "qemu 1:7.2-7", ROWS) == ["qemu-system-x86", "qemu-system-common"]


@pytest.mark.parametrize(("version", "status"), [("1:7.2-8", "iU "), ("1:7.2-8", "ii "), ("1:7.2-7", "iF ")])
def test_nothing_is_kept_in_the_middle_of_an_upgrade(version: str, status: str) -> None:
    rows = [row if row[1] != "qemu-system-common" else (f"qemu {version}", row[1], status) for row in ROWS]
    with pytest.raises(Refused, match="let apt end first") as refused:
        qemu_trees.installed_parts("keeping it", "qemu 1:7.2-7", rows)
    assert refused.value.found == f"qemu-system-common of qemu {version} ({status.strip()})"


def test_what_is_kept_already_is_not_kept_again(state: Path, debs: list[Path], tmp_path: Path) -> None:
    added = qemu_trees.add(debs, state=state)
    assert qemu_trees.keep(state, fill(tmp_path / "root", emulator()) / qemu_trees.EMULATOR) == added


def test_a_tree_is_removed(state: Path, debs: list[Path]) -> None:
    qemu_trees.add(debs, state=state)
    qemu_trees.remove(NAME, state=state)
    assert qemu_trees.list_trees(state, Path("/nonexistent")) == ()
    assert [path.name for path in (state / "qemu").iterdir()] == [".lock"]


@pytest.mark.parametrize("name", ["system", "nothing", "../qemu", "", ".lock"])
def test_what_cannot_be_removed(state: Path, debs: list[Path], name: str) -> None:
    qemu_trees.add(debs, state=state)
    with pytest.raises(UsageError):
        qemu_trees.remove(name, state=state)
    assert (state / "qemu" / NAME / qemu_trees.EMULATOR).exists()


def test_a_tree_that_a_process_runs_from_is_not_removed(
    state: Path, debs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = qemu_trees.add(debs, state=state)
    monkeypatch.setattr(processes, "executables", lambda: iter([(7, "/usr/bin/other"), (8, tree.emulator)]))
    with pytest.raises(Refused, match="pid 8"):
        qemu_trees.remove(NAME, state=state)
    assert Path(tree.emulator).exists()


def hostile(tmp_path: Path, name: str, entries: list[tuple[str, str, bytes]]) -> Path:
    """A .deb that dpkg-deb would not build: (path, link target or "", content) in this order."""

    def tar(members: list[tuple[str, str, bytes]]) -> bytes:
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as archive:
            for path, link, content in members:
                info = tarfile.TarInfo(path)
                info.size = len(content)
                if link:
                    info.type, info.linkname = tarfile.SYMTYPE, link
                archive.addfile(info, io.BytesIO(content))
        return raw.getvalue()

    control = f"Package: {name}\nVersion: {VERSION}\nSource: qemu\nArchitecture: all\nDescription: x\n"
    members = {
        "debian-binary": b"2.0\n",
        "control.tar": tar([("./control", "", control.encode())]),
        "data.tar": tar(entries),
    }
    deb = tmp_path / f"hostile-{name}.deb"
    with deb.open("wb") as file:
        file.write(b"!<arch>\n")
        for member, content in members.items():
            header = f"{member:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n"
            file.write(header.encode() + content + b"\n" * (len(content) % 2))
    return deb
