"""A file that setup writes as a whole, with what must be run for it to count, and for it to be gone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hostagent import processes
from hostagent.setup.host_files import HostFiles
from hostagent.setup.setup_tasks import Need

Commands = tuple[tuple[str, ...], ...]
_SECONDS = 120.0


@dataclass(frozen=True)
class WholeFile:
    """Whoever is cut off between the file and the commands finds it unmet, or not undone, and does both again."""

    name: str
    why: str
    path: Path
    content: str
    files: HostFiles
    after: Commands = ()
    counts: Callable[[], bool] = lambda: True  # whether what comes after it was run
    while_there: Commands = ()  # as it is undone, before it goes
    once_empty: Commands = ()  # as it is undone, when it says nothing any more, before it goes
    once_gone: Commands = ()
    in_the_way: str = ""
    folders: tuple[Path, ...] = ()  # that go with it when nothing else is in them
    restarts_libvirtd: bool = False

    def look(self) -> Need:
        if self.files.read(self.path) == self.content.encode() and self.counts():
            return Need(self.name, self.why, satisfied=True)
        then = "; then ".join(["", *(" ".join(argv) for argv in self.after)])
        return Need(self.name, self.why, False, f"write {self.path}{then}", self.in_the_way)

    def apply(self) -> None:
        if self.files.folder(self.path.parent) is None:
            self.files.make_folder(self.path.parent, 0o755, 0, 0)
        self.files.write(self.path, self.content.encode(), mode=0o644)
        _run(self.after)

    def keep_because(self) -> str:
        self.files.read(self.path)  # a link is refused before anything is undone
        return ""

    def undo(self) -> str:
        if self.files.read(self.path) is None:
            return ""
        _run(self.while_there)
        if self.once_empty:
            self.files.write(self.path, b"", mode=0o644)
            _run(self.once_empty)
        self.files.write(self.path, None, mode=0)
        _run(self.once_gone)
        for folder in self.folders:
            self.files.remove_empty_folder(folder)
        return f"removed {self.path}"


def _run(commands: Commands) -> None:
    for argv in commands:
        processes.run(argv, within_seconds=_SECONDS)
