"""Certificates for libvirt's and QEMU's TLS between the bench's two hosts, made anew each time with openssl."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.bench.link import Side

CA, CA_KEY = "ca-cert.pem", "ca-key.pem"
DAYS = "2"
QEMU_FOLDER = Path("/etc/pki/qemu")
"""default_tls_x509_cert_dir of qemu.conf."""
PLACES = {
    # libvirt, "tlscerts"
    Path("/etc/pki/CA/cacert.pem"): CA,
    Path("/etc/pki/libvirt/servercert.pem"): "cert.pem",
    Path("/etc/pki/libvirt/clientcert.pem"): "cert.pem",
    Path("/etc/pki/libvirt/private/serverkey.pem"): "key.pem",
    Path("/etc/pki/libvirt/private/clientkey.pem"): "key.pem",
    # QEMU, "TLS setup for network services"
    QEMU_FOLDER / "ca-cert.pem": CA,
    QEMU_FOLDER / "server-cert.pem": "cert.pem",
    QEMU_FOLDER / "client-cert.pem": "cert.pem",
    QEMU_FOLDER / "server-key.pem": "key.pem",
    QEMU_FOLDER / "client-key.pem": "key.pem",
}
EXTENSIONS = """\
[req]
distinguished_name = name
[name]
[ca]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign
"""
HOST_EXTENSIONS = """\
[{name}]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature,keyEncipherment
extendedKeyUsage = serverAuth,clientAuth
subjectAltName = DNS:{name},IP:{address}
"""


def make(folder: Path, sides: Iterable[Side]) -> None:
    """A certificate authority, and a folder for each host with its certificate, good for both ends, and its key."""
    folder.mkdir(mode=0o700)
    described = [HOST_EXTENSIONS.format(name=side.name, address=side.address) for side in sides]
    config = folder / "openssl.cnf"
    config.write_text(EXTENSIONS + "".join(described))
    _sign(config, "ca", folder / CA, folder / CA_KEY)
    for side in sides:
        (folder / side.name).mkdir()
        authority = ("-CA", str(folder / CA), "-CAkey", str(folder / CA_KEY))
        _sign(config, side.name, folder / side.name / "cert.pem", folder / side.name / "key.pem", authority)
        shutil.copy(folder / CA, folder / side.name / CA)


def install(folder: Path, side: Side, *, qemu_user: str) -> None:
    """Put one host's where libvirt and QEMU look for them; QEMU reads its own as the user it runs as."""
    user = pwd.getpwnam(qemu_user)
    for target, name in PLACES.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / side.name / name, target)
        if target.parent == QEMU_FOLDER:
            os.chown(target, user.pw_uid, user.pw_gid)


def remove() -> None:
    for target in PLACES:
        target.unlink(missing_ok=True)


def _sign(config: Path, name: str, certificate: Path, key: Path, authority: tuple[str, ...] = ()) -> None:
    """By itself, or by an authority."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-config", str(config), "-extensions", name, *authority),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", DAYS, "-subj", f"/CN={name}"),
            *("-out", str(certificate), "-keyout", str(key)),
        ],
        check=True,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
