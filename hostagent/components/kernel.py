"""The host's kernel as a component: the newest one that is installed takes over by kexec, without firmware between.

Everything on the host ends with the old kernel, this process too; what was in files on persistent memory stays, and
guests' RAM with it. The new kernel is told a secret word on its command line: only a kernel that was started so can
have found RAM as it was, and the journal's update goes on there.

kexec_file_load(2): kernel, initial RAM disk and command line are checked and in memory before any guest is paused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from hostagent import processes
from hostagent.components.kernel_images import Build, is_older, newest_image, read_image, running_build
from hostagent.durable import fsync
from hostagent.errors import Failed, HostagentError, NeedsOperator, Refused
from hostagent.facts import Component, Freshness

WORD = "hostagent.swap"
"""On the new kernel's command line: hostagent.swap=<the update's secret>."""
PANIC_SECONDS = 10
MODULES = Path("/lib/modules")
_LOAD_SECONDS = 60.0
_JUMP_SECONDS = 60.0


@dataclass(frozen=True)
class Leap:
    """What a new kernel is started for."""

    secret: str
    build: Build
    image: str


@dataclass(frozen=True)
class KernelComponent:
    """The kernel that runs, and one to run in its place."""

    kept: Path
    wanted: str = ""  # release of the kernel to go to; "" is the newest
    boot: Path = Path("/boot")
    cmdline: Path = Path("/proc/cmdline")
    packages: Path = Path("/var/lib/dpkg/info")
    running: Callable[[], Build] = running_build
    name: str = "kernel"
    holds: bool = True
    first_seconds: float = 20.0  # careful: a server's own devices may take longer than all the rest

    def look(self) -> Component:
        """What runs, and the newest image, or the one that is wanted."""
        ours = self.running()
        found = self._image()
        if found is None:
            return Component(self.name, str(ours), "", Freshness.UNKNOWN)
        freshness = Freshness.CURRENT if found[1] == ours else Freshness.OUTDATED
        return Component(self.name, str(ours), str(found[1]), freshness)

    def stage(self) -> None:
        """Have the new kernel in memory, whole, with all that it needs to come up."""
        doing = "getting the new kernel ready"
        found = self._image()
        if found is None:
            raise Refused(doing, expected=f"a kernel {self.wanted or 'image'} in {self.boot}", found="none")
        image, build = found
        if is_older(build, self.running()):
            # Seen: a network card that uses what 6.12's tap offers (UDP segmentation) cannot be restored under 6.1.
            raise Refused(
                doing,
                expected="a kernel not older than the one that runs: guests may use what only that one offers",
                found=f"{build.release}, under {self.running().release}",
                hint="an older kernel takes a reboot of the host, and of its guests",
            )
        initrd = self.boot / f"initrd.img-{build.release}"
        self._require_whole(image, initrd, build.release)
        leap = Leap(secrets.token_hex(16), build, str(image))
        self._write(leap)
        line = command_line(self.cmdline.read_text(), leap.secret)
        argv = ("--kexec-file-syscall", "--load", str(image), f"--initrd={initrd}", f"--command-line={line}")
        processes.run(("kexec", *argv), within_seconds=_LOAD_SECONDS)
        os.sync()  # once more with the guests held, when little is left of it

    def apply(self) -> None:
        """Leap. Comes back only when that failed."""
        if self.is_for_good():
            raise Failed("starting the new kernel", expected="another one to run", found="that it runs already")
        os.sync()
        processes.run(("kexec", "--exec", "--no-ifdown"), within_seconds=_JUMP_SECONDS)
        raise Failed("starting the new kernel", expected="not to come back", found="it did nothing")

    def is_applied(self) -> bool:
        leap = self._landing()
        return leap is not None and self.running() == leap.build

    def is_for_good(self) -> bool:
        """The old kernel is gone once the new one has begun."""
        return self._landing() is not None

    def roll_back(self) -> None:
        """Before the leap: unload it. After it there is no way back, and none is needed."""
        if not self.is_for_good():
            self._unload()

    def forget(self) -> None:
        with suppress(HostagentError):
            if not self.is_for_good():
                self._unload()
        self._file.unlink(missing_ok=True)

    # -- what is there ---------------------------------------------------------------------------------------

    def _image(self) -> tuple[Path, Build] | None:
        if not self.wanted:
            return newest_image(self.boot)
        image = self.boot / f"vmlinuz-{self.wanted}"
        build = read_image(image)
        return (image, build) if build is not None else None

    def _require_whole(self, image: Path, initrd: Path, release: str) -> None:
        """A kernel that does not come up takes every guest's RAM with it: what can be known of it is, beforehand."""
        doing = f"checking kernel {release}"
        listed = self.packages / f"linux-image-{release}.md5sums"
        try:
            sums = listed.read_text()
            found = hashlib.md5(image.read_bytes(), usedforsecurity=False).hexdigest()
        except OSError as error:
            raise Refused(
                doing,
                expected="an image of an installed package, to tell whether it is whole",
                found=f"{error.filename}: {error.strerror}",
                hint="install it as a package",
            ) from error
        wanted = re.search(rf"^(\S+)  {re.escape(str(image).lstrip('/'))}$", sums, re.MULTILINE)
        if wanted is None or wanted[1] != found:
            raise Refused(
                doing,
                expected=f"{image} as its package has it",
                found="another file",
                hint=f"apt reinstall linux-image-{release}",
            )
        try:
            listing = processes.run(("lsinitramfs", str(initrd)), within_seconds=_LOAD_SECONDS).stdout
        except Failed as error:
            raise Refused(
                doing, expected=f"{initrd}, whole", found=error.found, hint=f"update-initramfs -u -k {release}"
            ) from error
        if not (MODULES / release).is_dir() or "init" not in listing.split():
            raise Refused(
                doing,
                expected=f"its modules in {MODULES / release}, and an initial RAM disk that can start",
                found="not both",
                hint=f"apt reinstall linux-image-{release}",
            )

    def was_leapt_to(self) -> bool:
        """Whether this kernel was started by another one, for hostagent, and not by firmware."""
        return any(word.startswith(f"{WORD}=") for word in self.cmdline.read_text().split())

    def _landing(self) -> Leap | None:
        """What this kernel was started for; None for one that was not, whatever became of what was written."""
        leap = self._leap() if self.was_leapt_to() else None
        landed = leap is not None and f"{WORD}={leap.secret}" in self.cmdline.read_text().split()
        return leap if landed else None

    def _unload(self) -> None:
        processes.run(("kexec", "--kexec-file-syscall", "--unload"), within_seconds=_LOAD_SECONDS)

    # -- what outlives the kernel ----------------------------------------------------------------------------

    @property
    def _file(self) -> Path:
        return self.kept / "leap.json"

    def _write(self, leap: Leap) -> None:
        try:
            self.kept.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file.unlink(missing_ok=True)
            fd = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(fd, "w") as file:
                json.dump(asdict(leap), file)
            fsync(self._file)
            fsync(self.kept)
        except OSError as error:
            raise Failed(f"writing {self._file}", found=error.strerror or str(error)) from error

    def _leap(self) -> Leap | None:
        try:
            content = json.loads(self._file.read_text())
            return Leap(content["secret"], Build(**content["build"]), content["image"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise NeedsOperator(
                "reading what the new kernel was started for",
                found=f"{self._file}: {error}",
                hint="put that file back, then: hostagent recover; a reboot gives the RAM of guests that are held up",
            ) from error


def command_line(running: str, secret: str) -> str:
    """The running kernel's, for the new one: with the secret, and without waiting for ever after a panic.

    BOOT_IMAGE is the boot loader's, and names the old one's file.
    """
    ours = (WORD, "BOOT_IMAGE", "initrd")
    kept = [word for word in running.split() if word.partition("=")[0] not in ours]
    if not any(word.startswith("panic=") for word in kept):
        kept.append(f"panic={PANIC_SECONDS}")
    return " ".join([*kept, f"{WORD}={secret}"])
