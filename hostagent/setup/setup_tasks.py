"""The single things that setup puts on a host: each looks, applies and undoes itself."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hostagent.libvirt_files.hook import is_ours
from hostagent.setup import marked_block
from hostagent.setup.host_files import TMPFS_NAME, HostFiles, Mount


@dataclass(frozen=True)
class Need:
    """One thing the host needs."""

    name: str
    why: str
    satisfied: bool
    change: str = ""  # what meeting it does, in words
    in_the_way: str = ""  # why setup will not meet it, in words


class Mounter(Protocol):
    """The host's mounts."""

    def mounts(self) -> tuple[Mount, ...]:
        """What is mounted, in order; of two at one place the later one is seen."""

    def mount_tmpfs(self, target: Path, options: str) -> None:
        """Mount a tmpfs; Failed when that cannot be."""

    def unmount(self, target: Path) -> None:
        """Unmount; Failed when it is in use."""


class Task(Protocol):
    """One need, and how it is met and given up again."""

    @property
    def restarts_libvirtd(self) -> bool:
        """Whether a change counts only for a libvirtd started after it."""

    def look(self) -> Need:
        """How it stands; changes nothing."""

    def apply(self) -> None:
        """Meet it."""

    def keep_because(self) -> str:
        """Why it cannot be undone now, "" when it can."""

    def undo(self) -> str:
        """Give up what apply made, and only that; in words, "" for nothing."""


@dataclass(frozen=True)
class Directory:
    """A folder of ours."""

    path: Path
    why: str
    mode: int
    uid: int
    gid: int
    files: HostFiles
    restarts_libvirtd: bool = False

    def look(self) -> Need:
        seen = self.files.folder(self.path)
        right = seen is not None and (seen.mode, seen.uid) == (self.mode, self.uid)
        change = f"{'make' if seen is None else 'change'} {self.path}: mode {self.mode:04o}, owner {self.uid}"
        return Need(str(self.path), self.why, right, "" if right else change)

    def apply(self) -> None:
        self.files.make_folder(self.path, self.mode, self.uid, self.gid)

    def keep_because(self) -> str:
        return ""

    def undo(self) -> str:
        """Only an empty one goes: the journal tells what was done to guests, and trees may be in use."""
        return f"removed {self.path}" if self.files.remove_empty_folder(self.path) else ""


@dataclass(frozen=True)
class Line:
    """A line of ours in somebody else's file, in a marked block."""

    name: str
    why: str
    path: Path
    line: str
    already: str  # a regular expression: a line of theirs that makes ours needless
    mode: int  # of a file that is not there yet
    files: HostFiles
    in_the_way: str = ""
    restarts_libvirtd: bool = False

    def is_there(self) -> bool:
        """Whether there is a block of ours, whatever it says."""
        return marked_block.read(self.files.read(self.path)) is not None

    def theirs(self) -> str:
        """What of the rest of the file makes ours needless, as far as it was looked for; "" for nothing."""
        rest = (marked_block.take_out(self.files.read(self.path)) or b"").decode("utf-8", "surrogateescape")
        found = re.search(self.already, rest, re.MULTILINE)
        return found[0].strip() if found else ""

    def look(self) -> Need:
        if marked_block.read(self.files.read(self.path)) == self.line + "\n" or self.theirs():
            return Need(self.name, self.why, satisfied=True)
        no_folder = f"no folder {self.path.parent}" if self.files.folder(self.path.parent) is None else ""
        return Need(
            self.name,
            self.why,
            satisfied=False,
            change=f"put into {self.path}: {self.line}",
            in_the_way=self.in_the_way or no_folder,
        )

    def apply(self) -> None:
        content = self.files.read(self.path)
        self.files.write(self.path, marked_block.put_in(content, self.line + "\n"), mode=self.mode)

    def keep_because(self) -> str:
        return ""

    def undo(self) -> str:
        if not self.is_there():
            return ""
        self.files.write(self.path, marked_block.take_out(self.files.read(self.path)), mode=self.mode)
        return f"took setup's block out of {self.path}"


@dataclass(frozen=True)
class Rule(Line):
    """A line of ours in AppArmor's file for rules of a host's own, and the profile that takes it in."""

    profile: Path | None = None  # to be loaded anew; None for what counts from the next start of a guest
    load: Callable[[Path], None] = lambda profile: None

    def apply(self) -> None:
        super().apply()
        self._load()

    def undo(self) -> str:
        done = super().undo()
        if done:
            self._load()
        return done

    def _load(self) -> None:
        if self.profile is not None:
            self.load(self.profile)


@dataclass(frozen=True)
class RamMount:
    """The tmpfs for guests' RAM. It is setup's own when the line for it in fstab is, or by its name."""

    path: Path
    options: str
    uid: int  # QEMU's user
    gid: int
    fstab: Line
    files: HostFiles
    mounter: Mounter
    restarts_libvirtd: bool = True

    def look(self) -> Need:
        name, why = str(self.path), "guests' RAM files are in memory there, reached by QEMU's user alone"
        kind, folder = self._mounted(), self.files.folder(self.path)
        if kind is None:
            # A mount hides what is below it, be it the RAM of a running guest.
            full = f"files in {self.path}" if folder is not None and not folder.empty else ""
            return Need(name, why, False, f"mount a tmpfs on {self.path}: {self.options}", full)
        if kind != "tmpfs":
            return Need(name, why, False, f"mount a tmpfs on {self.path}", f"{kind} mounted on {self.path}")
        if folder is not None and private(folder.mode) and passable(folder.mode, folder.uid, self.uid):
            return Need(name, why, satisfied=True)
        mode = f"mode {folder.mode:04o}, owner {folder.uid}" if folder else "nothing"
        theirs = "" if self._is_ours() else f"a tmpfs that setup did not mount on {self.path}, {mode}"
        return Need(name, why, False, f"change {self.path}: mode 0700, owner {self.uid}", theirs)

    def apply(self) -> None:
        if self._mounted() is None:
            self.files.make_folder(self.path, 0o700, 0, 0)
            self.mounter.mount_tmpfs(self.path, self.options)
        else:
            self.files.make_folder(self.path, 0o700, self.uid, self.gid)

    def keep_because(self) -> str:
        """Whatever file is there may be the RAM of a guest, running or held."""
        if self._mounted() is None or not self._is_ours():
            return ""
        found = self.files.some_files_below(self.path)
        return f"files in {self.path}: {', '.join(map(str, found))}" if found else ""

    def undo(self) -> str:
        if not self._is_ours():
            return ""
        if mounted := self._mounted() == "tmpfs":
            self.mounter.unmount(self.path)
        self.files.remove_empty_folder(self.path)
        return f"unmounted {self.path}" if mounted else ""

    def _is_ours(self) -> bool:
        block = marked_block.read(self.files.read(self.fstab.path)) or ""
        here = self._mount()  # its line may be gone already, for what stands in for it from the next boot on
        named = here is not None and (here.kind, here.source) == ("tmpfs", TMPFS_NAME)
        return named or re.search(self.fstab.already, block, re.MULTILINE) is not None

    def _mount(self) -> Mount | None:
        here = [mount for mount in self.mounter.mounts() if mount.target == self.path]
        return here[-1] if here else None

    def _mounted(self) -> str | None:
        here = self._mount()
        return here.kind if here is not None else None


@dataclass(frozen=True)
class TheirRamFolder:
    """A memory_backing_dir that qemu.conf already names: looked at, never changed."""

    path: Path
    mounter: Mounter
    restarts_libvirtd: bool = False

    def look(self) -> Need:
        mount = mount_of(self.path, self.mounter.mounts())
        kind = mount.kind if mount else "nothing"
        return Need(
            name="memory_backing_dir",
            why="guests' RAM files must be in memory",
            satisfied=kind == "tmpfs",
            change="" if kind == "tmpfs" else f"none: {self.path} stands in qemu.conf and is not setup's",
            in_the_way="" if kind == "tmpfs" else f"memory_backing_dir = {self.path} in qemu.conf, on {kind}",
        )

    def apply(self) -> None:
        """Never asked: either it is satisfied or something is in the way."""

    def keep_because(self) -> str:
        return ""

    def undo(self) -> str:
        return ""


@dataclass(frozen=True)
class Hook:
    """hostagent's script among libvirt's hooks."""

    path: Path
    content: bytes
    held: Path  # what is told of guests that are held
    uid: int
    gid: int
    files: HostFiles
    restarts_libvirtd: bool = True

    def look(self) -> Need:
        seen = self.files.read(self.path)
        return Need(
            name="libvirt's hook",
            why="a held guest gets its RAM back, and is started by nobody else",
            satisfied=seen == self.content,
            change="" if seen == self.content else f"{'write' if seen is None else 'replace'} {self.path}",
            in_the_way="" if seen is None or is_ours(seen) else f"somebody else's {self.path}",
        )

    def apply(self) -> None:
        self.files.make_folder(self.path.parent, 0o755, self.uid, self.gid)
        self.files.write(self.path, self.content, mode=0o755)

    def keep_because(self) -> str:
        found = self.files.some_files_below(self.held)
        return f"guests that are held: {', '.join(path.stem for path in found)}" if found else ""

    def undo(self) -> str:
        if not is_ours(self.files.read(self.path) or b""):
            return ""
        self.files.write(self.path, None, mode=0)
        self.files.remove_empty_folder(self.path.parent)
        return f"removed {self.path}"


def private(mode: int) -> bool:
    """Whether nobody but the owner lists or writes a folder of this mode."""
    return mode & 0o066 == 0


def passable(mode: int, owner: int, uid: int) -> bool:
    """Whether the user `uid` can go through a folder of this mode to what is below it."""
    return bool(mode & (0o100 if owner == uid else 0o001))


def mount_of(path: Path, mounts: Sequence[Mount]) -> Mount | None:
    """The mount that a path lies on."""
    over = [mount for mount in mounts if path.is_relative_to(mount.target)]
    return max(reversed(over), key=lambda mount: len(mount.target.parts), default=None)
