"""The host inside the bench: libvirt without systemd, a bridge, memory for guests.

Run in the bench's namespaces only. libvirtd may be stopped and started by others while a Host is open; what
is left of it, and of every QEMU, is ended with the Host; the next one finds no guest.
"""

import os
import pwd
import select
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import libvirt
import psutil

from hostagent.hypervisor.qemu_process import HostQemu
from hostagent.libvirt_files.record_shape import pid_file_name
from tests.bench.guest_spec import BRIDGE, BRIDGE_MAC, GUEST_FILES, HOST_ADDRESS, OWN_FILES, GuestSpec, domain_xml
from tests.bench.paths import GUEST
from tests.bench.syscalls import mount

URI = "qemu:///system"
RAM = Path("/var/lib/libvirt/qemu/ram")
QEMU_USER = "libvirt-qemu"
QEMU_CONF = f"""\
memory_backing_dir = "{RAM}"
security_driver = "none"
"""
DEFINITIONS = Path("/etc/libvirt/qemu")
RUNTIME = Path("/run/libvirt/qemu")
DAEMON = os.environ.get("HOSTAGENT_BENCH_DAEMON", "libvirtd")
"""Who has the guests: libvirtd, or virtqemud. The others of the modular daemons are not there."""
LIBVIRTD_START = [f"/usr/sbin/{DAEMON}", "-d"]
"""Comes back once it answers; it then runs on its own."""
LIBVIRTD_PID = Path(f"/run/{DAEMON}.pid")
VIRTLOGD_START = ["/usr/sbin/virtlogd", "-d"]
VIRTLOGD_PID = Path("/run/virtlogd.pid")
DISK_SIZE = "64M"
STOP_LIMIT = 10.0
"""Seconds a daemon may take to end."""


class Host:
    """`with Host() as host:` gives a running libvirt with a bridge and room for guests' memory.

    ram: size of the tmpfs for guests' memory, as mount(8) takes it.
    address, mac: of the host on the guests' bridge.
    """

    start_command: Sequence[str] = LIBVIRTD_START
    qemu_conf: str = QEMU_CONF

    def __init__(self, *, ram: str = "8g", address: str = HOST_ADDRESS, mac: str = BRIDGE_MAC) -> None:
        if os.environ.get("HOSTAGENT_BENCH") != "1":
            raise RuntimeError("expected to run inside the bench (hint: python -m tests.bench.enter -- ...)")
        self._ram = ram
        self._address, self._mac = address, mac
        self._connection: libvirt.virConnect | None = None
        self._turn = threading.RLock()  # several threads ask of their guests, and one that is broken is closed once
        self._kvm = Path("/dev/kvm").exists()
        self._vhost = Path("/dev/vhost-net").exists()

    def __enter__(self) -> Self:
        libvirt.registerErrorHandler(_say_nothing, None)
        self._mount_ram()
        OWN_FILES.mkdir(exist_ok=True)
        Path("/etc/libvirt/qemu.conf").write_text(self.qemu_conf)
        for name in ("vmlinuz", "initramfs"):  # copies: libvirt gives what a guest uses to the QEMU user
            shutil.copy(GUEST / name, GUEST_FILES / name)
        make_bridge(self._address, self._mac)
        _run(*VIRTLOGD_START)
        self.start_libvirtd()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()
        self.stop_libvirtd()
        for process in self.qemu_processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(self.qemu_processes(), STOP_LIMIT)
        _stop(VIRTLOGD_PID)
        for path in _of_guests():
            path.unlink(missing_ok=True)
        _run("ip", "link", "delete", BRIDGE)
        _run("umount", "--lazy", str(RAM))

    def start_libvirtd(self) -> None:
        _run(*self.start_command)

    def stop_libvirtd(self) -> None:
        """Ends the daemon; guests run on."""
        _stop(LIBVIRTD_PID)

    def restart_libvirtd(self) -> None:
        """As somebody does who has changed its configuration or its hooks."""
        self.disconnect()
        self.stop_libvirtd()
        self.start_libvirtd()

    @property
    def connection(self) -> libvirt.virConnect:
        """A live connection, opened again if libvirtd was restarted since."""
        with self._turn:
            if self._connection is None or not _is_alive(self._connection):
                self.disconnect()
                self._connection = libvirt.open(URI)
            return self._connection

    def disconnect(self) -> None:
        with self._turn:
            connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(libvirt.libvirtError):
                connection.close()

    def define_guest(self, spec: GuestSpec) -> libvirt.virDomain:
        """Makes the guest's disk and defines it, without starting it."""
        self._make_disk(spec)
        return self.connection.defineXML(self.xml(spec))

    def boot(self, spec: GuestSpec) -> libvirt.virDomain:
        """Starts a new guest; proof.wait_booted says when it is up."""
        if not spec.transient:
            domain = self.define_guest(spec)
            domain.create()
            return domain
        self._make_disk(spec)
        return self.connection.createXML(self.xml(spec))

    @contextmanager
    def guest(self, spec: GuestSpec) -> Iterator[libvirt.virDomain]:
        """A guest that is gone afterwards, however the block ended."""
        domain = self.boot(spec)
        try:
            yield domain
        finally:
            self.remove_guest(spec)

    def remove_guest(self, spec: GuestSpec) -> None:
        """Destroys and undefines the guest if it exists, and deletes its files."""
        with suppress(libvirt.libvirtError):
            domain = self.connection.lookupByUUIDString(spec.uuid)
            with suppress(libvirt.libvirtError):
                domain.destroy()
            domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)
        spec.disk_path.unlink(missing_ok=True)
        spec.console_log.unlink(missing_ok=True)

    def ram_files(self, domain: libvirt.virDomain) -> list[Path]:
        """The files that hold the memory of a running guest with file RAM."""
        found = list((RAM / "libvirt/qemu").glob(f"{domain.ID()}-*/*"))
        pid_file = RUNTIME / pid_file_name(domain.name())
        if not pid_file.exists():
            return found
        qemu = HostQemu()  # libvirt counts its guests anew when it starts without any: another's may have the number
        mapped = qemu.ram_inodes(qemu.identify(int(pid_file.read_text())))
        return [path for path in found if ((seen := path.stat()).st_dev, seen.st_ino) in mapped]

    def qemu_processes(self) -> list[psutil.Process]:
        """Every living QEMU of this host, libvirt's own and others."""
        return [
            process
            for process in psutil.process_iter(["name", "status"])
            if process.info["name"].startswith("qemu-system")
            and process.info["status"] != psutil.STATUS_ZOMBIE
            and _is_of_this_host(process.pid)
        ]

    def xml(self, spec: GuestSpec) -> str:
        return domain_xml(spec, kvm=self._kvm, vhost=self._vhost)

    def _make_disk(self, spec: GuestSpec) -> None:
        if spec.disk:
            _run("qemu-img", "create", "-q", "-f", spec.disk_format, str(spec.disk_path), DISK_SIZE)
            if spec.disk_fill_mib:
                with spec.disk_path.open("r+b") as disk:
                    disk.seek(-spec.disk_fill_mib << 20, os.SEEK_END)
                    disk.write(os.urandom(spec.disk_fill_mib << 20))
            shutil.chown(spec.disk_path, QEMU_USER, QEMU_USER)  # for a libvirt that leaves files to their owner
        if spec.screen:
            spec.medium_path.write_bytes(b"medium 1".ljust(1 << 20, b"."))

    def _mount_ram(self) -> None:
        user = pwd.getpwnam(QEMU_USER)
        RAM.mkdir(exist_ok=True)
        options = f"size={self._ram},mode=0700,uid={user.pw_uid},gid={user.pw_gid}"
        mount("tmpfs", RAM, "tmpfs", options=options)


def daemons() -> list[psutil.Process]:
    """Every living daemon of libvirt's that has guests, with or without its driver."""
    return [
        process
        for process in psutil.process_iter(["name", "status"])
        if process.info["name"] == DAEMON and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def _is_of_this_host(pid: int) -> bool:
    """A second host in the bench (two_hosts.py) has a PID namespace of its own below ours."""
    try:
        return Path(f"/proc/{pid}/ns/pid").readlink() == Path("/proc/self/ns/pid").readlink()
    except FileNotFoundError:
        return False


def make_bridge(host_address: str = HOST_ADDRESS, mac: str = BRIDGE_MAC) -> None:
    """The guests' network, with the host's address in it."""
    # Without a card of the host's in it a bridge has the address of some guest's tap, until that goes.
    _run("ip", "link", "add", BRIDGE, "address", mac, "type", "bridge")
    _run("ip", "addr", "add", f"{host_address}/24", "dev", BRIDGE)
    _run("ip", "link", "set", BRIDGE, "up")


def _of_guests() -> list[Path]:
    """What would be a guest for the next libvirtd of this bench."""
    definitions = [*DEFINITIONS.glob("*.xml"), *(DEFINITIONS / "autostart").glob("*.xml")]
    return [
        *definitions,
        *RUNTIME.glob("*.xml"),
        *RUNTIME.glob("*.pid"),
        *GUEST_FILES.glob("guest*"),
        *OWN_FILES.glob("*"),
    ]


def _say_nothing(_context: object, _error: object) -> None:
    """libvirt would print every error to the terminal, also those that are caught."""


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def _is_alive(connection: libvirt.virConnect) -> bool:
    """A closed connection says so only when it is used."""
    try:
        connection.getLibVersion()
    except libvirt.libvirtError:
        return False
    return True


def _stop(pid_file: Path) -> None:
    """Ends the daemon whose pid is in the file, if it runs, and waits until it is gone."""
    try:
        pid = int(pid_file.read_text())
        process = os.pidfd_open(pid)
    except (FileNotFoundError, ValueError, ProcessLookupError):
        return
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], STOP_LIMIT)[0]:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [], STOP_LIMIT)
    finally:
        os.close(process)
