"""The unit that resumes guests as the host boots: an installation's own, or one that setup writes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.resources import files as packed
from pathlib import Path

from hostagent import processes
from hostagent.setup.host_files import HostFiles
from hostagent.setup.setup_tasks import Need, Task
from hostagent.setup.whole_file import WholeFile

NAME = "hostagent-boot.service"
UNIT = Path("/etc/systemd/system") / NAME
WANTED_UNIT = Path("/etc/systemd/system/multi-user.target.wants") / NAME
INSTALLED = tuple(Path(folder) / NAME for folder in ("/usr/local/lib/systemd/system", "/usr/lib/systemd/system"))
SYSTEMD = Path("/run/systemd/system")  # there when it runs the host: sd_booted(3)

_WHY = "held guests are resumed under the new kernel, and nobody else starts them"
_PROGRAM = "/usr/bin/hostagent"
_SECONDS = 120.0


@dataclass(frozen=True)
class InstalledUnit:
    """A unit whose file is an installation's, enabled."""

    files: HostFiles
    in_the_way: str = ""
    restarts_libvirtd: bool = False

    def look(self) -> Need:
        there = self.files.is_there(WANTED_UNIT)
        return Need(NAME, _WHY, there, "" if there else f"systemctl enable {NAME}", "" if there else self.in_the_way)

    def apply(self) -> None:
        processes.run(("systemctl", "enable", NAME), within_seconds=_SECONDS)

    def keep_because(self) -> str:
        return ""

    def undo(self) -> str:
        if not self.files.is_there(WANTED_UNIT):
            return ""
        processes.run(("systemctl", "disable", NAME), within_seconds=_SECONDS)
        return f"disabled {NAME}"


def boot_unit(files: HostFiles) -> Task:
    """To be put on the host; one that setup wrote there before counts, also beside an installation's."""
    in_the_way = "" if files.is_there(SYSTEMD) else "no systemd, which would resume guests as the host boots"
    installed = any(files.is_there(path) for path in INSTALLED)
    if installed and not files.is_there(UNIT):
        return InstalledUnit(files, in_the_way)
    reload = ("systemctl", "daemon-reload")
    return WholeFile(
        NAME,
        _WHY,
        UNIT,
        unit_text() if not installed else unit_text((_PROGRAM,)),
        files,
        after=(reload, ("systemctl", "enable", NAME)),
        counts=lambda: files.is_there(WANTED_UNIT),
        while_there=(("systemctl", "disable", NAME),),
        once_gone=(reload,),
        in_the_way=in_the_way,
    )


def is_set_up(files: HostFiles) -> bool:
    """Whether setup has put it there, or has begun to."""
    return files.is_there(UNIT) or files.is_there(WANTED_UNIT)


def unit_text(program: tuple[str, ...] = (sys.executable, "-m", "hostagent.cli")) -> str:
    """The unit, with what starts hostagent here."""
    text = packed(__package__).joinpath(NAME).read_text()
    assert text.count(_PROGRAM) == 1  # noqa: S101 - the line that is changed
    return text.replace(_PROGRAM, " ".join(program))
