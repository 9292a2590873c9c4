"""The KVM modules: those that are loaded, and those that would be.

The kernel tells a loaded module's srcversion, a checksum of its source, if it was built with one, and its ELF build
ID; the file has both. modprobe(8) tells which files it would load, in which order and with which parameters. A loaded
module cannot be read back: the files of those that are loaded are kept while they are still the installed ones; without
them there would be no way back.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import lzma
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

from hostagent import processes
from hostagent.durable import fsync
from hostagent.errors import Failed, HostagentError, NeedsOperator, Refused
from hostagent.facts import Component, Freshness
from hostagent.file_identity import Identity, identity

MODULES = ("kvm", "kvm_amd", "kvm_intel")
_SECONDS = 10.0
_LOAD_SECONDS = 30.0
_GET_API_VERSION, _API_VERSION = 0xAE00, 12  # linux/kvm.h: the only one there is
_WAY_BACK = "way-back.json"
_YES, _NO = frozenset({"Y", "y", "1", "on"}), frozenset({"N", "n", "0", "off"})


@dataclass(frozen=True)
class Module:
    """A module as it is loaded, or would be."""

    name: str  # "kvm_amd", as the kernel has it
    build: str  # its srcversion, or what of its build ID tells it apart: Debian's modules have no srcversion
    file: str  # "" for a loaded one whose file is not there any more
    parameters: Mapping[str, str]  # all of a loaded one; those that are set of one that would be


@dataclass(frozen=True)
class KvmComponent:
    """The modules as something to swap; no guest may run on KVM meanwhile."""

    kept: Path  # where files of loaded modules are kept
    loaded: Path = Path("/sys/module")
    device: Path = Path("/dev/kvm")
    name: str = "kvm"
    holds: bool = True
    first_seconds: float = 5.0

    def look(self) -> Component:
        """Every loaded module of KVM's against its file. One that is built into the kernel is the kernel's."""
        there = self._loaded()
        if not there:
            return Component(self.name, "", "", Freshness.NOT_THERE)
        if not any(module.build for module in there):
            return Component(self.name, "built into the kernel", "", Freshness.NOT_THERE)
        try:
            would = {module.name: module for module in self._would_be(there)}
        except HostagentError:  # no such program, or no such file: a kernel that runs on after its modules were removed
            return Component(self.name, _shown(there, {}), "", Freshness.UNKNOWN)
        shown = _shown(there, would)
        if any(module.name not in would for module in there):
            return Component(self.name, shown, _shown(would.values()), Freshness.UNKNOWN)
        same = all(_is_as(module, would[module.name]) for module in there)
        return Component(self.name, shown, _shown(would.values()), Freshness.CURRENT if same else Freshness.OUTDATED)

    def keep(self) -> None:
        """Keep the files of the loaded modules, as far as they are still the installed ones."""
        there = self._loaded()
        if not any(module.build for module in there):
            return
        for module in self._would_be(there):
            one = next((one for one in there if one.name == module.name), None)
            path = self._kept_file(module)
            if one is None or one.build != module.build or path.exists():
                continue
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                beside = path.with_name(f".{path.name}.hostagent")
                shutil.copyfile(module.file, beside, follow_symlinks=False)
                fsync(beside)
                beside.replace(path)
                fsync(path.parent)
            except OSError as error:
                raise Failed(f"keeping {module.file}", found=error.strerror or str(error)) from error

    def stage(self) -> None:
        """Make sure that the installed modules are this kernel's, and write the way back down."""
        self.keep()
        there = self._loaded()
        doing, release = "swapping the KVM modules", os.uname().release
        for module in self._would_be(there):
            magic = _modinfo("vermagic", module.file)
            if magic.split(" ")[0] != release:
                raise Refused(
                    doing,
                    expected=f"modules of the kernel that runs, {release}",
                    found=f"{module.file}, of {magic.split(' ')[0]}",
                    hint="hostagent update kernel brings its modules with it",
                )
        back = [Module(one.name, one.build, str(self._kept_file(one)), one.parameters) for one in there]
        for module in back:
            if not Path(module.file).is_file():
                raise Refused(
                    doing,
                    expected=f"the file of the {module.name} that is loaded, as the way back to it",
                    found=f"none: it was replaced before hostagent saw it (build {module.build})",
                    hint="boot the host once; from then on it is kept by every inspect, plan and update",
                )
        path = self.kept / _WAY_BACK
        try:
            path.write_text(json.dumps([asdict(module) for module in back]))
            path.chmod(0o600)
            fsync(path)
            fsync(self.kept)
        except OSError as error:
            raise Failed(f"writing {path}", found=error.strerror or str(error)) from error

    def apply(self) -> None:
        """Unload what is loaded, load what is installed."""
        self._unload()
        _change("modprobe", _vendor(self._way_back()))
        _settle()

    def is_applied(self) -> bool:
        back = self._way_back()
        return self._works(back) and self.look().freshness is Freshness.CURRENT

    def is_for_good(self) -> bool:
        return False

    def roll_back(self) -> None:
        back = self._way_back()
        if not back or self._is_loaded(back):
            return
        try:
            self._unload(but=self._as_before(back))
            for name in self._helpers(back):
                _change("modprobe", name)
            there = self._as_before(back)
            for module in back:
                if module.name not in there:
                    self._insert(module)
            _settle()
        except HostagentError as error:
            raise _stuck(back, str(error)) from error
        if not self._is_loaded(back):
            raise _stuck(back, _shown(self._loaded(), {}) or "none")

    def forget(self) -> None:
        (self.kept / _WAY_BACK).unlink(missing_ok=True)
        wanted = {self._kept_file(module) for module in self._loaded()}
        for path in self.kept.glob("*.ko"):
            if path not in wanted:
                path.unlink(missing_ok=True)

    # -- what is there ---------------------------------------------------------------------------------------

    def _loaded(self) -> tuple[Module, ...]:
        """In the order in which they are loaded."""
        return tuple(
            Module(name, _loaded_build(folder), "", _parameters(folder / "parameters"))
            for name in MODULES
            if (folder := self.loaded / name).is_dir()
        )

    def _would_be(self, there: tuple[Module, ...]) -> tuple[Module, ...]:
        """What modprobe would load in the place of these."""
        found = []
        for path, parameters in self._inserted(there):
            if (name := _name_of(path)) in MODULES:
                found.append(Module(name, _installed_build(path), path, parameters))
        return tuple(found)

    def _inserted(self, there: tuple[Module, ...]) -> Iterator[tuple[str, dict[str, str]]]:
        """What modprobe says that it would do: ``insmod /lib/modules/.../kvm-amd.ko nested=0``."""
        asked = ["modprobe", "--show-depends", _vendor(there)]
        for line in processes.run(asked, within_seconds=_SECONDS).stdout.splitlines():
            if found := re.fullmatch(r"insmod (\S+) ?(.*)", line):
                words = (word.partition("=") for word in found[2].split())
                yield found[1], {name: value for name, _, value in words}

    def _helpers(self, there: tuple[Module, ...]) -> list[str]:
        """Modules of others that these need."""
        return [name for path, _ in self._inserted(there) if (name := _name_of(path)) not in MODULES]

    def _works(self, back: tuple[Module, ...]) -> bool:
        """Whether all that were loaded are, and KVM answers."""
        if not {module.name for module in back} <= {module.name for module in self._loaded()}:
            return False
        try:
            fd = os.open(self.device, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return fcntl.ioctl(fd, _GET_API_VERSION, 0) == _API_VERSION
        except OSError:
            return False
        finally:
            os.close(fd)

    def _is_loaded(self, back: tuple[Module, ...]) -> bool:
        there = {module.name: module for module in self._loaded()}
        return self._works(back) and all(_is_as(there[module.name], module) for module in back)

    def _as_before(self, back: tuple[Module, ...]) -> tuple[str, ...]:
        """Those that can stay: others may use them. None when all are as they were: then that is not what is wrong."""
        there = {module.name: module for module in self._loaded()}
        same = takewhile(lambda module: module.name in there and _is_as(there[module.name], module), back)
        found = tuple(module.name for module in same)
        return found if len(found) < len(back) else ()

    def _unload(self, but: tuple[str, ...] = ()) -> None:
        for name in reversed([module.name for module in self._loaded()]):
            if name not in but:
                _change("modprobe", "--remove", name)

    def _insert(self, module: Module) -> None:
        """With the parameters that it had. Some are only shown, and not taken: then with those it has not by itself."""
        try:
            _load(module.file, module.parameters)
        except Failed:
            _load(module.file, {})
            own = next((one.parameters for one in self._loaded() if one.name == module.name), {})
            given = module.parameters.items()
            others = {name: value for name, value in given if not _same(own.get(name, value), value)}
            if others:
                _change("rmmod", module.name)
                _load(module.file, others)

    # -- the way back ----------------------------------------------------------------------------------------

    def _kept_file(self, module: Module) -> Path:
        return self.kept / f"{os.uname().release}.{module.name}.{module.build}.ko"

    def _way_back(self) -> tuple[Module, ...]:
        """As staging wrote it down; empty when it did not."""
        path = self.kept / _WAY_BACK
        try:
            return tuple(Module(**entry) for entry in json.loads(path.read_text()))
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, TypeError) as error:
            raise NeedsOperator("reading the way back to the KVM modules", found=f"{path}: {error}") from error


def _load(file: str, parameters: Mapping[str, str]) -> None:
    given = [f"{name}={value}" for name, value in parameters.items() if value]
    _change("insmod", file, *given)


def _change(*argv: str) -> None:
    processes.run((*processes.WITH_US, *argv), within_seconds=_LOAD_SECONDS)


def _settle() -> None:
    """The device gets its owner and mode from udev, a moment later; QEMU's user needs them."""
    with suppress(HostagentError):
        processes.run(["udevadm", "settle", "--timeout=5"], within_seconds=_SECONDS)


def _stuck(back: tuple[Module, ...], found: str) -> NeedsOperator:
    commands = "; ".join(f"insmod {module.file}" for module in back)
    return NeedsOperator(
        "having the KVM modules back that ran before",
        expected=_shown(back, {}),
        found=found,
        hint=f"the guests are held with their RAM; {commands}; then: hostagent recover",
    )


def _vendor(modules: tuple[Module, ...]) -> str:
    """The module that brings the other one with it."""
    return modules[-1].name if modules else "kvm"


def _is_as(loaded: Module, wanted: Module) -> bool:
    """Whether that build is loaded, with the parameters that are asked for."""
    given = loaded.parameters
    return loaded.build == wanted.build and all(
        name not in given or _same(given[name], value) for name, value in wanted.parameters.items()
    )


def _same(one: str, other: str) -> bool:
    """A switch is shown as Y or N, and set by other words as well."""
    return one == other or any({one, other} <= words for words in (_YES, _NO))


def _parameters(folder: Path) -> dict[str, str]:
    return {path.name: _read(path) for path in sorted(folder.glob("*"))} if folder.is_dir() else {}


def _shown(modules: Iterable[Module], like: Mapping[str, Module] | None = None) -> str:
    """Builds, with the parameters that are set; of loaded ones with those that would be."""

    def words(module: Module) -> str:
        set_ = module.parameters if like is None else like[module.name].parameters if module.name in like else {}
        given = "".join(f" {name}={module.parameters.get(name, '?')}" for name in set_)
        return f"{module.name} {module.build[:8]}{given}"

    return ", ".join(words(module) for module in modules if module.build)


def _name_of(path: str) -> str:
    """The kernel's name of a file's module: kvm_amd of .../kvm-amd.ko.xz."""
    return Path(path).name.partition(".")[0].replace("-", "_")


def _modinfo(field: str, module: str) -> str:
    return processes.run(["modinfo", "-F", field, module], within_seconds=_SECONDS).stdout.strip()


def _loaded_build(folder: Path) -> str:
    return _read(folder / "srcversion") or _build_id(_bytes(folder / "notes" / ".note.gnu.build-id"))


def _installed_build(path: str) -> str:
    try:
        return _known_build(path, identity(Path(path)))
    except OSError as error:
        raise Failed(f"reading {path}", found=error.strerror or str(error)) from error


@lru_cache(maxsize=8)  # a service asks for it once a minute, and it takes unpacking
def _known_build(path: str, _file: Identity) -> str:
    """Read again only when it is another file."""
    return _modinfo("srcversion", path) or _build_id(_content(Path(path)))


def _content(path: Path) -> bytes:
    """A module's file, unpacked; nothing for a packing that Python does not know."""
    if path.suffix == ".xz":
        return lzma.decompress(_bytes(path))
    return gzip.decompress(_bytes(path)) if path.suffix == ".gz" else _bytes(path)


def _build_id(content: bytes) -> str:
    """The first of an ELF file's, or a note's: elf(5), NT_GNU_BUILD_ID; size of name, of the ID, type, "GNU"."""
    found = re.search(rb"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0(.{20})", content, re.DOTALL)
    return found[1].hex()[:16] if found else ""


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
