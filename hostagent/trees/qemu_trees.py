"""QEMU versions side by side, each in a tree of its own below ``<state>/qemu/``.

``<state>/qemu/10.0.2+ds-2/usr/bin/qemu-system-x86_64``, modules and firmware below the same usr/ as in the
packages. QEMU looks for ``qemu-bundle`` beside its executable and puts it before every configured path
(get_relocated_path in its util/cutils.c), so a link from there to the tree's top makes it find its own
modules; without it Debian's build takes the system's, of another build, and aborts (10.0.2 beside 7.2).

QEMU runs as an unprivileged user: ``<state>`` is 0711, the trees 0755 and root's.
"""

import fcntl
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from hostagent import processes
from hostagent.durable import fsync
from hostagent.errors import Failed, HostagentError, Refused, UsageError
from hostagent.facts import SYSTEM_QEMU, QemuTree, Version
from hostagent.file_identity import Identity, identity
from hostagent.trees import file_tree
from hostagent.trees.deb_packages import unpack

SYSTEM = SYSTEM_QEMU
EMULATOR = Path("usr/bin/qemu-system-x86_64")
RECORD = "hostagent-tree.json"
# Firmware of other source packages: a tree without its own gets a link to the system's.
SYSTEM_FIRMWARE = (Path("usr/share/seabios"), Path("usr/lib/ipxe"))
# One file of each package that an x86 guest's start needs: seabios twice, qemu-system-data, ipxe-qemu.
NEEDED_FIRMWARE = (
    "bios-256k.bin",
    "vgabios-stdvga.bin",
    "kvmvapic.bin",
    "linuxboot_dma.bin",
    "efi-virtio.rom",
)
_BUNDLE = EMULATOR.parent / "qemu-bundle"
_NOT_COPIED = {
    *(Path("usr/share") / name for name in ("doc", "man", "lintian")),
    *(_BUNDLE, Path(RECORD)),  # made anew here
}
_DOCUMENTATION = ("/usr/share/doc", "/usr/share/man", "/usr/share/lintian")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+~_-]{0,127}")
_PARTS = ("qemu-system", "qemu-block")  # how packages begin that have the emulator's modules and data
_PROBE_SECONDS = 30.0
_ROOT = Path("/")
_log = logging.getLogger(__name__)


class _Record(BaseModel):
    """A tree's own description of itself, written before it gets its name."""

    model_config = ConfigDict(frozen=True, strict=True)

    format: Literal[1] = 1
    name: str
    version: str
    package: str
    sha256: str  # file_tree.digest of the rest


def add(sources: Sequence[Path], *, state: Path) -> QemuTree:
    """Make a tree from Debian packages, or from one directory that holds usr/bin/qemu-system-x86_64.

    The new QEMU has been run before its tree gets its name. Adding the same again gives the tree there is.
    Raises UsageError (no such source), Refused (these make no tree), Failed (unpacking or a probe went
    wrong), and leaves nothing behind then.
    """
    if not sources:
        raise UsageError("adding a QEMU", expected="packages or a directory", found="nothing")
    for source in sources:
        if not source.exists():
            raise UsageError(f"adding {source}", expected="a package or a directory", found="no such file")
    doing = f"adding {sources[0]}"
    try:
        with _workshop(state) as folder:
            return _make(doing, list(sources), _trees_folder(state), folder)
    except OSError as error:
        raise Failed(doing, found=f"{error.filename or ''}: {error.strerror or error}") from error


def keep(state: Path, system_emulator: Path) -> QemuTree:
    """A tree of the system's own QEMU as it is installed now, so that there is a way back once it has been upgraded.

    Made of the files of its package and of the others from the same source. Raises Refused where dpkg does not know
    the emulator.
    """
    doing = f"keeping {system_emulator}"
    package = banner(system_emulator)[1] or _installed_package(system_emulator)
    for tree in list_trees(state, Path("/none")) if package else ():
        if tree.package == package:
            return tree
    files = _files_of_source(doing, system_emulator)
    try:
        with _workshop(state) as folder:
            gathered = folder / "installed"
            for path in files:
                file_tree.take(doing, path, gathered / path.relative_to(_ROOT))
            return _make(doing, [gathered], _trees_folder(state), folder, package)
    except OSError as error:
        raise Failed(doing, found=f"{error.filename or ''}: {error.strerror or error}") from error


def remove(name: str, *, state: Path) -> None:
    """Take a tree away; that nobody runs or is defined to run on it, the caller knows.

    Raises UsageError when there is no such tree, Refused when a process runs from it.
    """
    tree = _trees_folder(state) / name
    if name == SYSTEM or _NAME.fullmatch(name) is None or not (tree / RECORD).is_file():
        there = ", ".join(path.parent.name for path in sorted(_trees_folder(state).glob(f"*/{RECORD}"))) or "none"
        hint = "the system's own is apt's to remove" if name == SYSTEM else "hostagent qemu list"
        raise UsageError(f"removing QEMU {name!r}", expected=f"one of {there}", found=repr(name), hint=hint)
    running = [str(pid) for pid, exe in processes.executables() if Path(exe).is_relative_to(tree.resolve())]
    if running:
        raise Refused(f"removing QEMU {name}", expected="no process of it", found=f"pid {', '.join(running)}")
    with _workshop(state) as folder:
        tree.rename(folder / "removed")


def list_trees(state: Path, system_emulator: Path) -> tuple[QemuTree, ...]:
    """Every QEMU on this host, the system's own first if there is one; runs the system's to ask it, once."""
    trees = []
    with suppress(FileNotFoundError):  # removed meanwhile
        if system_emulator.is_file():
            version, said = _known_banner(system_emulator, identity(system_emulator))
            package = said or _installed_package(system_emulator)
            trees.append(QemuTree(SYSTEM, version, package, str(system_emulator)))
    folder = _trees_folder(state)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        try:
            trees.append(_tree_at(path))
        except (OSError, ValueError) as error:  # pydantic's ValidationError is a ValueError
            _log.warning("tree=%s is left out: %s", path.name, str(error).splitlines()[0])
    return tuple(trees)


def tree_of(exe: str, trees: Sequence[QemuTree]) -> QemuTree | None:
    """The tree a running executable is of, by what /proc/PID/exe points to; None when it has been deleted."""
    if exe.endswith(" (deleted)"):
        return None
    return next((tree for tree in trees if exe in (tree.emulator, os.path.realpath(tree.emulator))), None)


def _trees_folder(state: Path) -> Path:
    return state / "qemu"


def _files_of_source(doing: str, emulator: Path) -> list[Path]:
    """The installed files, outside of documentation, of all packages built from the emulator's source."""

    def ask(*words: str) -> list[str]:
        return processes.run(["dpkg-query", *words], within_seconds=_PROBE_SECONDS).stdout.splitlines()

    try:
        owner = ask("-S", str(emulator))[0].split(": ")[0]
        (source,) = ask("-W", "-f=${source:Package} ${source:Version}\\n", owner)
        known = ask("-W", "-f=${source:Package} ${source:Version}\\t${binary:Package}\\t${db:Status-Abbrev}\\n")
        packages = installed_parts(doing, source, [line.split("\t") for line in known])
        listed = ask("-L", *packages)
    except Refused:
        raise
    except (HostagentError, IndexError, ValueError) as error:
        raise Refused(doing, expected="files of an installed Debian package", found=str(error)) from error
    paths = [Path(line) for line in listed if line.startswith("/usr/") and not line.startswith(_DOCUMENTATION)]
    return [path for path in dict.fromkeys(paths) if path.is_symlink() or path.is_file()]


def installed_parts(doing: str, source: str, rows: Sequence[Sequence[str]]) -> list[str]:
    """The packages that are installed from a source; rows of source and version, name, and state (dpkg-query(1)).

    Raises Refused in the middle of an upgrade: the emulator would be kept without its modules, or with those of another
    build.
    """
    packages = [name for of, name, status in rows if of == source and status.startswith("ii")]
    parts = [row for row in rows if row[0].split()[0] == source.split(maxsplit=1)[0] and row[1].startswith(_PARTS)]
    there = [row for row in parts if row[2][1:2] not in ("n", "c")]  # or no more, but for its settings
    if odd := [f"{name} of {of} ({status.strip()})" for of, name, status in there if name not in packages]:
        raise Refused(doing, expected=f"all its parts from {source}", found=", ".join(odd), hint="let apt end first")
    return packages


def _make(doing: str, sources: list[Path], folder: Path, workshop: Path, package: str = "") -> QemuTree:
    """Build the tree in the workshop, prove it, and give it its name in `folder`.

    package: its version, where the program itself does not say it.
    """
    made = workshop / "tree"
    made.mkdir()
    if len(sources) == 1 and sources[0].is_dir():
        # A tree made by hand may have the links that _link_surroundings makes.
        links = {place for place in SYSTEM_FIRMWARE if (sources[0] / place).is_symlink()}
        file_tree.copy(doing, sources[0], made, skip=_NOT_COPIED | links)
    else:
        for unpacked in unpack(doing, sources, workshop):
            file_tree.copy(doing, unpacked, made, skip=_NOT_COPIED)
    emulator = made / EMULATOR
    if not emulator.is_file() or not os.access(emulator, os.X_OK):
        raise Refused(doing, expected=f"the program {EMULATOR}", found="none in what was given")
    _link_surroundings(made)
    version, said = _probe(doing, emulator)
    package = said or package
    digest = file_tree.digest(made)
    # A build that names no package is told apart by its contents.
    name = package.split(":", 1)[-1] if package else f"{version}-{digest[:12]}"
    if name == SYSTEM or _NAME.fullmatch(name) is None:
        raise Refused(doing, expected="a version that can name a folder", found=repr(name))
    final = folder / name
    if os.path.lexists(final):
        return _same(doing, final, digest)
    record = _Record(name=name, version=str(version), package=package, sha256=digest)
    (made / RECORD).write_text(record.model_dump_json(indent=2) + "\n")
    file_tree.settle(made)
    made.rename(final)
    fsync(folder)
    return _tree_at(final)


def _same(doing: str, final: Path, digest: str) -> QemuTree:
    """The tree that is there, if it holds the same files."""
    hint = f"if no guest runs on it, remove {final} and add again"
    instead = f"to have this one instead: hostagent qemu remove {final.name}, and add it again"
    try:
        there = _read_record(final)
    except (OSError, ValidationError) as error:
        raise Refused(doing, expected=f"a whole tree in {final}", found="a damaged one", hint=hint) from error
    if there.sha256 != digest:
        raise Refused(doing, expected="the build that is there", found="another of the same version", hint=instead)
    return _tree_at(final)


def _tree_at(path: Path) -> QemuTree:
    record = _read_record(path)
    return QemuTree(path.name, Version.parse(record.version), record.package, str(path / EMULATOR))


def _read_record(path: Path) -> _Record:
    return _Record.model_validate_json((path / RECORD).read_bytes())


def _link_surroundings(tree: Path) -> None:
    """What makes QEMU find its own modules and firmware in the tree."""
    (tree / _BUNDLE).symlink_to("../..")
    for folder in SYSTEM_FIRMWARE:
        if not (tree / folder).exists():
            (tree / folder).parent.mkdir(parents=True, exist_ok=True)
            (tree / folder).symlink_to(_ROOT / folder)


def _probe(doing: str, emulator: Path) -> tuple[Version, str]:
    """Run the new QEMU: it starts, finds its firmware in its tree, and its modules are of its own build."""
    version, package = banner(emulator)
    said = processes.run([str(emulator), "-L", "help"], within_seconds=_PROBE_SECONDS).stdout
    folders = [Path(line) for line in said.splitlines()]
    if strange := [str(path) for path in folders if not path.is_relative_to(emulator.parent)]:
        raise Failed(doing, expected="firmware looked for in the tree only", found=", ".join(strange))
    missing = [name for name in NEEDED_FIRMWARE if not any((path / name).is_file() for path in folders)]
    if missing:
        raise Refused(
            doing,
            expected="firmware in the packages given or on the system",
            found=f"no {', '.join(missing)}",
            hint="install seabios and ipxe-qemu, or give their packages and qemu-system-data too",
        )
    # Lists every device, and for that loads every module there is.
    devices = processes.run([str(emulator), "-device", "help"], within_seconds=_PROBE_SECONDS)
    if 'name "virtio-blk-pci"' not in devices.stdout:
        raise Failed(doing, expected="virtio-blk-pci among its devices", found="it is not")
    for line in devices.stderr.splitlines():
        _log.warning("qemu=%s probe: %s", version, line)
    return version, package


@lru_cache(maxsize=4)  # a service asks for it once a minute
def _known_banner(emulator: Path, _file: Identity) -> tuple[Version, str]:
    """The same; the file is only asked again when it is another one."""
    return banner(emulator)


def banner(emulator: Path) -> tuple[Version, str]:
    """Run it once: version, and the package's where the build names it: ``version 7.2.22 (Debian 1:7.2+dfsg-7)``."""
    said = processes.run([str(emulator), "--version"], within_seconds=_PROBE_SECONDS).stdout
    found = re.match(r"QEMU emulator version (\d+\.\d+\.\d+)(?: \(Debian ([0-9A-Za-z.+~:-]+)\))?", said)
    if found is None:
        raise Failed(f"asking {emulator} for its version", expected="QEMU emulator version X.Y.Z", found=said[:80])
    return Version.parse(found[1]), found[2] or ""


def _installed_package(emulator: Path) -> str:
    """The version of the package that owns the file, "" where dpkg does not know."""
    try:
        owner = processes.run(["dpkg-query", "-S", str(emulator)], within_seconds=_PROBE_SECONDS).stdout
        name = owner.splitlines()[0].split(": ")[0]
        return processes.run(["dpkg-query", "-W", "-f=${Version}", name], within_seconds=_PROBE_SECONDS).stdout
    except (HostagentError, IndexError):
        return ""


@contextmanager
def _workshop(state: Path) -> Iterator[Path]:
    """A folder beside the trees, alone with it: what a killed `add` left there is cleared away first."""
    folder = _trees_folder(state)
    for path, wanted in ((state, 0o711), (folder, 0o755)):
        if not path.is_dir():
            path.mkdir(parents=True)
            path.chmod(wanted)  # whatever the umask
        if (mode := path.stat().st_mode) & 0o022:
            raise Refused(
                f"using {path}",
                expected="a folder that only its owner writes",
                found=f"mode {stat.S_IMODE(mode):04o}",
                hint=f"chmod go-w {path}",
            )
    for path in (folder, *folder.resolve().parents):
        if not path.stat().st_mode & stat.S_IXOTH:
            raise Refused(
                f"using {folder}",
                expected=f"{path} open for QEMU's user to pass",
                found="closed",
                hint=f"chmod o+x {path}",
            )
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.glob(".adding-*"):
            shutil.rmtree(left)
        workshop = Path(tempfile.mkdtemp(prefix=".adding-", dir=folder))
        try:
            yield workshop
        finally:
            shutil.rmtree(workshop)
    finally:
        os.close(lock)
