"""A host of the bench that takes guests from another: libvirt listens, with TLS and without."""

from pathlib import Path
from types import TracebackType
from typing import Self

from tests.bench import certificates
from tests.bench.host import LIBVIRTD_START, QEMU_CONF, QEMU_USER, Host
from tests.bench.link import SIDES, Side

LIBVIRTD_CONF = Path("/etc/libvirt/libvirtd.conf")
HOSTS_FILE = Path("/etc/hosts")
# Who is silent for (count + 1) * interval seconds is taken for dead: libvirt's own 5 and 5 make half a minute.
KEEPALIVE = "keepalive_interval = 2\nkeepalive_count = 3\n"
LISTEN = """\
listen_tls = 1
listen_tcp = 1
auth_tcp = "none"
host_uuid = "{uuid}"
"""


class ListeningHost(Host):
    """One side of the two; certificates come from the folder. Afterwards the host is as it was."""

    start_command = (*LIBVIRTD_START, "-l")
    qemu_conf = f'{QEMU_CONF}default_tls_x509_cert_dir = "{certificates.QEMU_FOLDER}"\n{KEEPALIVE}'

    def __init__(self, side: Side, credentials: Path, *, ram: str) -> None:
        super().__init__(ram=ram, address=side.bridge_address, mac=side.bridge_mac)
        self._side, self._credentials = side, credentials
        self._was: dict[Path, str] = {}

    def __enter__(self) -> Self:
        certificates.install(self._credentials, self._side, qemu_user=QEMU_USER)
        self._write(LIBVIRTD_CONF, LISTEN.format(uuid=self._side.uuid) + KEEPALIVE)
        names = "".join(f"{side.address} {side.name}\n" for side in SIDES)
        self._write(HOSTS_FILE, f"127.0.0.1 localhost\n{names}")
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        for path, text in self._was.items():
            path.write_text(text)
        certificates.remove()

    def _write(self, path: Path, text: str) -> None:
        self._was[path] = path.read_text() if path.exists() else ""
        path.write_text(text)
