"""A host of the lab: Debian 12 of vm-images/host in a virtual machine that has KVM itself, reached over SSH.

Where this machine's KVM runs Linux, and nests, it is used; else processor and SVM are emulated, which takes ten to
thirty times as long. Runs in the bench, whose bridge the host's second card is on.
"""

from __future__ import annotations

import shlex
import shutil
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.bench.guest_spec import BRIDGE
from tests.bench.paths import BUILD

HOST = BUILD / "host"
IMAGE = HOST / "host.qcow2"
KEY = HOST / "key"
FILES = BUILD / "lab" / "files.ext4"
"""What a run brings along: the test guest, and hostagent as it is now; made by vm-images/host/files."""
CPUS = 1
MEMORY_MIB = 6144
_WORTH_SAYING = 5.0  # seconds
BOOT_LIMIT = 240.0  # seconds; emulated and with others beside it takes 40
_GREETING_SECONDS = 6.0
_OPENING_SECONDS = 60.0  # to let somebody in
_SSH_OPTIONS = (
    *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"),
    *("-o", "BatchMode=yes", "-o", "ConnectTimeout=20"),
    # A host whose kernel leaps says nothing to those who were connected.
    *("-o", "ServerAliveInterval=20", "-o", "ServerAliveCountMax=3"),
)


class LabError(Exception):
    """A command in a host did not end as expected, or the host did not come up; says what was said last."""


@dataclass(frozen=True)
class Said:
    """A command that was run in a host."""

    status: int
    out: str
    seconds: float


class Machine:
    """`with Machine("a", 1, folder) as host:` boots a host from a fresh copy of the image."""

    def __init__(self, name: str, number: int, folder: Path, emulator: str = "qemu-system-x86_64") -> None:
        self._emulator = emulator
        self.name = name
        self._port = 2200 + number
        self._number = number
        self._folder = folder
        self._disk = folder / f"{name}.qcow2"
        self._key = folder / "key"
        self._socket = folder / f"{name}.ssh"
        self.console = folder / f"{name}.console"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(KEY, self._key)
        self._key.chmod(0o600)
        _run("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(IMAGE), "-F", "qcow2", str(self._disk))
        self._plug_in()
        self.wait_up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unplug()

    @property
    def _tap(self) -> str:
        return f"lab-{self.name}"

    def _command(self) -> list[str]:
        accelerator = ["-accel", "kvm", "-cpu", "host"] if Path("/dev/kvm").exists() else _EMULATED
        cards = [
            *("-netdev", f"user,id=management,restrict=on,hostfwd=tcp:127.0.0.1:{self._port}-:22"),
            *("-device", f"virtio-net-pci,netdev=management,mac=52:54:00:78:00:{self._number:02x}"),
            *("-netdev", f"tap,id=guests,ifname={self._tap},script=no,downscript=no"),
            *("-device", f"virtio-net-pci,netdev=guests,mac=52:54:00:78:01:{self._number:02x}"),
        ]
        disks = [
            *("-drive", f"file={self._disk},if=virtio,format=qcow2,cache=unsafe"),
            *("-drive", f"file={FILES},if=virtio,format=raw,read-only=on"),
        ]
        return [
            *(self._emulator, "-name", f"lab-{self.name}", "-no-user-config", "-nodefaults", "-display", "none"),
            *("-machine", "q35", *accelerator, "-smp", str(CPUS), "-m", str(MEMORY_MIB), "-rtc", "base=utc"),
            *("-serial", f"file:{self.console}"),
            *("-device", "virtio-rng-pci", *disks, *cards),
        ]

    # -- commands in it --------------------------------------------------------------------------------------

    def run(self, *words: str, within_seconds: float = 300.0, check: bool = True) -> Said:
        """Run a command as root; its output, with what it said on the other stream, in one."""
        began = time.monotonic()
        try:
            done = subprocess.run(
                [*self._ssh(), shlex.join(words)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=within_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            said = (late.stdout or b"").decode(errors="replace")
            raise LabError(
                f"{self.name}: {shlex.join(words)}: still running after {within_seconds:g} s\n{said}"
            ) from late
        said = Said(done.returncode, done.stdout.decode(errors="replace"), time.monotonic() - began)
        if said.seconds > _WORTH_SAYING:
            print(f"{self.name}: {said.seconds:.0f} s: {shlex.join(words)[:100]}", flush=True)
        if check and said.status != 0:
            raise LabError(f"{self.name}: {shlex.join(words)}: exit status {said.status}\n{said.out}")
        return said

    def shell(self, script: str, *, within_seconds: float = 300.0, check: bool = True) -> Said:
        """The same for a line of shell."""
        return self.run("bash", "-ec", script, within_seconds=within_seconds, check=check)

    def send(self, folder: Path, *names: str, to: str) -> None:
        """Files and folders of a folder, to a folder of the host's, without what Python made of them."""
        packed = subprocess.run(
            ["tar", "--create", "--exclude=__pycache__", f"--directory={folder}", *names],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=True,
        )
        unpack = f"mkdir -p {to} && tar --extract --directory={to}"
        subprocess.run([*self._ssh(), unpack], input=packed.stdout, check=True, timeout=120)

    def _ssh(self) -> list[str]:
        return ["ssh", *_SSH_OPTIONS, *self._shared, "-i", str(self._key), "-p", str(self._port), "root@127.0.0.1"]

    @property
    def _shared(self) -> tuple[str, ...]:
        """One connection for all commands: an emulated host takes a second to open one."""
        return ("-o", "ControlMaster=auto", "-o", f"ControlPath={self._socket}", "-o", "ControlPersist=600")

    @property
    def libvirt_uri(self) -> str:
        """libvirt in the host, from outside."""
        return f"qemu+ssh://root@127.0.0.1:{self._port}/system?keyfile={self._key}&no_verify=1&no_tty=1"

    @property
    def boot_id(self) -> str:
        return self.run("cat", "/proc/sys/kernel/random/boot_id").out.strip()

    def wait_up(self, limit: float = BOOT_LIMIT, *, other_than: str = "") -> str:
        """Wait until it lets somebody in; its boot id, another one than that."""
        until = time.monotonic() + limit
        found = ""
        while time.monotonic() < until:
            if self._process is not None and self._process.poll() is not None:
                raise LabError(f"{self.name}: its QEMU ended with status {self._process.returncode}")
            try:
                # One that is open is used: to open one takes an emulated host a second of what it has to do meanwhile.
                if (is_open := self._socket.exists()) or self._greets():
                    seconds = _GREETING_SECONDS if is_open else _OPENING_SECONDS
                    found = self.run("cat", "/proc/sys/kernel/random/boot_id", within_seconds=seconds).out.strip()
                    if found != other_than:
                        return found
            except LabError as error:
                found = str(error)
                self.forget_connection()
            time.sleep(1.0)
        raise LabError(f"{self.name}: not up after {limit:g} s ({found})\n{self.last_words()}")

    def _greets(self) -> bool:
        """Whether its SSH daemon does; QEMU takes connections for a host that is not up yet, and ssh would wait."""
        with (
            suppress(OSError),
            socket.create_connection(("127.0.0.1", self._port), _GREETING_SECONDS) as channel,
        ):
            return channel.recv(4) == b"SSH-"
        return False

    def forget_connection(self) -> None:
        """The shared one leads to a host that is gone."""
        if self._socket.exists():
            subprocess.run(
                ["ssh", "-o", f"ControlPath={self._socket}", "-O", "exit", "root@127.0.0.1"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )
        self._socket.unlink(missing_ok=True)

    def last_words(self, lines: int = 30) -> str:
        """The end of its console."""
        if not self.console.exists():
            return ""
        return "\n".join(self.console.read_text(errors="replace").splitlines()[-lines:])

    # -- as if somebody stood before it ------------------------------------------------------------------------

    def pull_the_plug(self) -> str:
        """Hard: what was in its RAM is gone, and what was not on its disk yet. It boots again; its new boot id."""
        before = self.boot_id
        self._unplug()
        self.forget_connection()
        self._plug_in()
        return self.wait_up(other_than=before)

    def reboot(self) -> str:
        """In order; its new boot id."""
        before = self.boot_id
        self.run("systemctl", "reboot", check=False)
        return self.wait_up(other_than=before)

    def _plug_in(self) -> None:
        _run("ip", "tuntap", "add", self._tap, "mode", "tap")
        _run("ip", "link", "set", self._tap, "master", BRIDGE, "up")
        self._process = subprocess.Popen(self._command(), stdin=subprocess.DEVNULL)

    def _unplug(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        with suppress(subprocess.CalledProcessError):
            _run("ip", "link", "delete", self._tap)


_EMULATED = ["-accel", "tcg,thread=multi", "-cpu", "max,+svm,la57=off"]


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
