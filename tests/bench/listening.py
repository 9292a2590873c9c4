"""A host of the bench that takes guests from another: libvirt listens, with TLS and without, and sshd does."""

import struct
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.bench import certificates, ssh
from tests.bench.host import LIBVIRTD_START, QEMU_CONF, QEMU_USER, Host
from tests.bench.link import SIDES, Side

LIBVIRTD_CONF = Path("/etc/libvirt/libvirtd.conf")
UTMP = Path("/run/utmp")
UTMP_BOOT_TIME = 2
UTMP_RECORD = "=hxxi32s4s32s256shhiii16s20s"
"""utmp(5) as glibc has it for x86-64."""
HOSTS_FILE = Path("/etc/hosts")
# Both see the disks' folder, which is no file system that libvirt knows to be shared: the host that a guest leaves
# would take them from the host that has it (virSecurityDACRestoreImageLabelInt).
NOT_OURS = "dynamic_ownership = 0\n"
# Who is silent for (count + 1) * interval seconds is taken for dead: libvirt's own 5 and 5 make half a minute.
KEEPALIVE = "keepalive_interval = 1\nkeepalive_count = 5\n"
LISTEN = """\
listen_tls = 1
listen_tcp = 1
auth_tcp = "none"
host_uuid = "{uuid}"
"""


class ListeningHost(Host):
    """One side of the two; certificates and keys come from the folder. Afterwards the host is as it was."""

    start_command = (*LIBVIRTD_START, "-l")
    qemu_conf = f'{QEMU_CONF}default_tls_x509_cert_dir = "{certificates.QEMU_FOLDER}"\n{KEEPALIVE}{NOT_OURS}'

    def __init__(self, side: Side, credentials: Path, *, ram: str) -> None:
        super().__init__(ram=ram, address=side.bridge_address, mac=side.bridge_mac)
        self._side, self._credentials = side, credentials
        self._was: dict[Path, str] = {}

    def __enter__(self) -> Self:
        certificates.install(self._credentials, self._side, qemu_user=QEMU_USER)
        self._write(LIBVIRTD_CONF, LISTEN.format(uuid=self._side.uuid) + KEEPALIVE)
        names = "".join(f"{side.address} {side.name}\n" for side in SIDES)
        self._write(HOSTS_FILE, f"127.0.0.1 localhost\n{names}")
        self._say_when_it_booted()
        ssh.install(self._credentials, self._side, SIDES)
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        for path, text in self._was.items():
            path.write_text(text)
        UTMP.unlink()
        certificates.remove()
        ssh.remove()

    def _say_when_it_booted(self) -> None:
        """Both hosts say the same, so that libvirt leaves the owner of a disk alone that the other one uses.

        On a file system that it knows to be shared it does so anyway. Here it counts the users of each file in extended
        attributes of it, and takes for old what a host counted that booted at another time: when the guest has left,
        the source then gives the disk back to root, and the target may not open it. Without this record libvirt finds
        out from /proc/uptime, which makes another second of it now and then.
        """
        booted = int(self._credentials.stat().st_mtime)
        record = struct.pack(UTMP_RECORD, UTMP_BOOT_TIME, 0, b"~", b"~~", b"reboot", b"", 0, 0, 0, booted, 0, b"", b"")
        UTMP.write_bytes(record)

    def _write(self, path: Path, text: str) -> None:
        self._was[path] = path.read_text() if path.exists() else ""
        path.write_text(text)
