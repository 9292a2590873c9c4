"""A control group of the bench's own in every hierarchy of the machine, v1 and v2."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NAME = "hostagent-bench-"
"""How the group of every bench begins."""
INIT = "init"
"""The group of a bench's first processes where its own may have none, on v2."""
REMOVAL_LIMIT = 10.0
"""Seconds to wait for the kernel to end what is still inside."""


@dataclass(frozen=True)
class Hierarchy:
    """One line of /proc/PID/cgroup, with the place where it is mounted."""

    controllers: str
    """"cpu,cpuacct" or "name=systemd"; empty for v2."""
    mounted: Path
    ours: str
    """The group this process is in, from the root of the hierarchy."""

    @property
    def group(self) -> Path:
        return self.mounted / self.ours.lstrip("/")


def hierarchies() -> list[Hierarchy]:
    mounted = _mounted()
    lines = (line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines())
    return [
        Hierarchy(controllers, mounted[_key(controllers)], ours)
        for _, controllers, ours in lines
        if _key(controllers) in mounted
    ]


def _key(controllers: str) -> frozenset[str]:
    return frozenset(filter(None, controllers.split(",")))


def _mounted() -> dict[frozenset[str], Path]:
    known = {_key(line.split(":", 2)[1]): Path() for line in Path("/proc/self/cgroup").read_text().splitlines()}
    found: dict[frozenset[str], Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, after = line.split(" - ", 1)
        kind, _, options = after.split(" ", 2)
        where = Path(before.split(" ")[4])
        if kind == "cgroup2":
            found.setdefault(frozenset(), where)
        elif kind == "cgroup":
            here = frozenset(options.split(","))
            for controllers in known:
                if controllers and controllers <= here:
                    found.setdefault(controllers, where)
    return found


def create(name: str) -> list[Path]:
    """Makes the group below our own in every hierarchy; in a bench of v2, beside the one of its processes."""
    found = [hierarchy.group for hierarchy in hierarchies()]
    groups = [(group.parent if group.name == INIT else group) / name for group in found]
    for group in groups:
        group.mkdir()
        # v1 takes no process into a group where these are empty
        for setting in ("cpuset.cpus", "cpuset.mems"):
            file, above = group / setting, group.parent / setting
            if file.exists() and above.exists() and not file.read_text().strip():
                file.write_text(above.read_text())
    return groups


def join(groups: list[Path]) -> None:
    for group in groups:
        (group / "cgroup.procs").write_text("0")


@contextmanager
def joined(groups: list[Path]) -> Iterator[None]:
    """What is started meanwhile is in them; we are back afterwards."""
    before = [hierarchy.group for hierarchy in hierarchies()]
    join(groups)
    try:
        yield
    finally:
        join(before)


def remove(groups: list[Path]) -> None:
    """Removes the groups with all below them, waiting for the last process in them to be gone."""
    deadline = time.monotonic() + REMOVAL_LIMIT
    for group in groups:
        while not _try_to_remove(group) and time.monotonic() < deadline:
            time.sleep(0.05)


def _try_to_remove(group: Path) -> bool:
    try:
        if group.exists():
            for below in [path for path in group.iterdir() if path.is_dir()]:
                _try_to_remove(below)
            group.rmdir()
    except OSError:
        return False
    return True
