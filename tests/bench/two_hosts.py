"""Two hosts in one bench, with a network between them, for guests that migrate.

The first is the bench itself. The second is in PID, network, mount, UTS, IPC and cgroup namespaces of its own below it,
with a root file system of its own: other processes, other files, another name, another UUID. Both see the folder with
the guests' disks (GUEST_FILES), under the same name, as hosts with shared storage do; guests' RAM is each host's own.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import libvirt
import psutil

from tests.bench import certificates, cgroups, ssh
from tests.bench.guest_spec import GUEST_FILES
from tests.bench.host import URI
from tests.bench.launch import NAMESPACES
from tests.bench.link import SIDES, A, B, Link, Side
from tests.bench.listening import ListeningHost
from tests.bench.second_host import READY, UP

URIS = {side: f"qemu+tls://{side.name}/system" for side in SIDES}
"""How libvirt is reached from the other host: with TLS, ..."""
PLAIN_URIS = {side: f"qemu+tcp://{side.name}/system" for side in SIDES}
"""... without, ..."""
SSH_URIS = {side: f"qemu+ssh://root@{side.name}/system" for side in SIDES}
"""... and by SSH."""
MIGRATE_URIS = {side: f"tcp://{side.name}" for side in SIDES}
"""Where QEMU sends a guest to; libvirt adds a port."""
SOCKET = "run/libvirt/libvirt-sock"
START_LIMIT = 60.0
END_LIMIT = 30.0
"""Seconds for the second host."""
GROUP = "second-host"


class SecondHost:
    """The second host, as it is handled from the first. `power_on` before everything else."""

    def __init__(self, link: Link, credentials: Path, *, ram: str) -> None:
        self._link, self._credentials, self._ram = link, credentials, ram
        self._disk = Path(tempfile.mkdtemp(prefix="second-host-", dir="/run"))
        self._process: subprocess.Popen[str] | None = None
        self._init: psutil.Process | None = None
        self._groups: list[Path] = []

    @property
    def pid(self) -> int:
        """Of its first process, which all others end with."""
        assert self._init is not None, "expected the second host to run"
        return self._init.pid

    @property
    def is_on(self) -> bool:
        return self._init is not None

    @property
    def root(self) -> Path:
        """Its root file system, seen from here."""
        return Path(f"/proc/{self.pid}/root")

    @property
    def uri(self) -> str:
        """Its libvirt by its own socket, which answers however the network is: for looking, not for migrating."""
        return f"qemu+unix:///system?socket={self.root / SOCKET}"

    @contextmanager
    def connection(self) -> Iterator[libvirt.virConnect]:
        opened = libvirt.open(self.uri)
        try:
            yield opened
        finally:
            with suppress(libvirt.libvirtError):
                opened.close()

    def power_on(self) -> None:
        """Boots it, with its disk as it was; it answers when this returns."""
        self._groups = cgroups.create(GROUP)
        ours = ["--libvirt", os.environ["HOSTAGENT_BENCH_LIBVIRT"], "--daemon", os.environ["HOSTAGENT_BENCH_DAEMON"]]
        place = [
            *("--keep", str(self._disk), "--hostname", B.name, "--kvm", str(int(Path("/dev/kvm").exists()))),
            *("--share", str(GUEST_FILES), "--share", str(self._credentials)),
        ]
        program = ["--ram", self._ram, "--credentials", str(self._credentials)]
        python = [sys.executable, "-m"]
        with cgroups.joined(self._groups):  # it is the root of its cgroup namespace
            self._process = subprocess.Popen(
                [
                    *("unshare", *NAMESPACES, "--fork", "--kill-child", "--"),
                    *(*python, "tests.bench.inside", *ours, *place, "--"),
                    *(*python, "tests.bench.second_host", *program),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        self._expect(UP)
        (self._init,) = psutil.Process(self._process.pid).children()
        self._link.connect(self.pid)
        self._input.write("\n")
        self._input.flush()
        self._expect(READY)

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Runs a command there, as somebody does who is logged in."""
        inside = ["nsenter", f"--target={self.pid}", "--all", f"--wd={Path.cwd()}", "--", *command]
        return subprocess.run(inside, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    def pids(self) -> list[int]:
        """Its processes that run, by the numbers that they have here."""
        namespace = Path(f"/proc/{self.pid}/ns/pid").readlink()
        found = []
        for process in psutil.process_iter():
            with suppress(FileNotFoundError, psutil.NoSuchProcess):
                if Path(f"/proc/{process.pid}/ns/pid").readlink() == namespace:
                    found.append(process.pid)
        return found

    def kill(self) -> None:
        """Ends all that runs there at once, and nothing of it says goodbye over the network: a power cut."""
        self._link.cut()
        self._end()
        self._gone()
        self._link.mend()

    def shut_down(self) -> None:
        """Ends it in good order, if it runs."""
        if self._process is not None:
            self._input.close()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_LIMIT)
            self._end()
            self._gone()

    def remove(self) -> None:
        """With its disk."""
        self.shut_down()
        shutil.rmtree(self._disk)

    @property
    def _input(self) -> IO[str]:
        assert self._process is not None
        assert self._process.stdin is not None
        return self._process.stdin

    def _expect(self, word: str) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_LIMIT)
        said = self._process.stdout.readline() if ready else "nothing"
        if said != word:
            self._end()
            raise RuntimeError(f"starting the second host: expected it to say {word!r}, found {said!r}")

    def _end(self) -> None:
        """Its first process ends with the one that waits for it (unshare), and with the first all others."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        if self._init is not None:
            self._init.wait(END_LIMIT)

    def _gone(self) -> None:
        assert self._process is not None
        with suppress(BrokenPipeError):
            self._input.close()
        self._process = self._init = None
        cgroups.remove(self._groups)
        self._link.disconnect()


class TwoHosts:
    """`a` is where we are; `b` is the other; `link` is between them."""

    def __init__(self, a: ListeningHost, b: SecondHost, link: Link) -> None:
        self.a, self.b, self.link = a, b, link

    @contextmanager
    def connection(self, side: Side) -> Iterator[libvirt.virConnect]:
        """To either libvirt by its own socket, which answers however the network is."""
        if side is A:
            yield self.a.connection
        else:
            with self.b.connection() as connection:
                yield connection

    def uri(self, side: Side) -> str:
        """Of either libvirt's own socket, as `connection` uses it."""
        return URI if side is A else self.b.uri

    def mend(self) -> None:
        """Both run and are joined, whatever was done to them."""
        if not self.b.is_on:
            self.b.power_on()
        self.link.mend()
        self.link.full_speed()


@contextmanager
def two_hosts(*, ram: str = "6g") -> Iterator[TwoHosts]:
    """Both, with libvirt listening on each; ram is for each."""
    credentials = Path(tempfile.mkdtemp(prefix="credentials-", dir="/run")) / "made"
    certificates.make(credentials, SIDES)
    ssh.make(credentials, SIDES)
    try:
        with ListeningHost(A, credentials, ram=ram) as a:
            link = Link()
            b = SecondHost(link, credentials, ram=ram)
            try:
                b.power_on()
                yield TwoHosts(a, b, link)
            finally:
                b.remove()
                link.remove()
    finally:
        shutil.rmtree(credentials.parent)
