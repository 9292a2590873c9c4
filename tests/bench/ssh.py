"""SSH between the bench's two hosts: root's key of one lets it in on the other, whose host key it knows.

Keys are made anew each time. Each host has its own where root's are, as an administrator puts them, and an sshd that
knows of no others. What ssh itself checks of the other host is left as it is.
"""

import os
import signal
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tests.bench.link import Side

HOME = Path("/root/.ssh")
KNOWN_HOSTS = HOME / "known_hosts"
HOST_KEY, ROOT_KEY = "ssh_host_key", "id_ed25519"
FOLDER = Path("/run/bench-sshd")
PID_FILE = FOLDER / "pid"
PRIVILEGES = Path("/run/sshd")
"""Where sshd keeps what it separates; Debian's unit makes it."""
CONFIG = f"""\
HostKey {FOLDER / HOST_KEY}
PidFile {PID_FILE}
AuthorizedKeysFile {HOME / "authorized_keys"}
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
"""


def make(folder: Path, sides: Iterable[Side]) -> None:
    """Two keys for each host, its own and root's, below the folder that the certificates are in."""
    for side in sides:
        for name in (HOST_KEY, ROOT_KEY):
            make_key(folder / side.name / name)


def make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.parent.name, "-f", str(path)], check=True)


def install(folder: Path, side: Side, sides: Iterable[Side]) -> None:
    """Put one host's keys in their places, and start its sshd."""
    others = [other for other in sides if other is not side]
    HOME.mkdir(mode=0o700, exist_ok=True)
    PRIVILEGES.mkdir(exist_ok=True)
    FOLDER.mkdir(mode=0o700)
    for name, target in ((ROOT_KEY, HOME / ROOT_KEY), (HOST_KEY, FOLDER / HOST_KEY)):
        target.touch(mode=0o600)
        target.write_bytes((folder / side.name / name).read_bytes())
    (HOME / "authorized_keys").write_text("".join(_public(folder / other.name / ROOT_KEY) for other in others))
    know({other.name: folder / other.name / HOST_KEY for other in others})
    (FOLDER / "config").write_text(CONFIG)
    subprocess.run(["/usr/sbin/sshd", "-f", str(FOLDER / "config")], check=True)


def know(hosts: dict[str, Path], *, root: Path = Path("/")) -> None:
    """Have ssh know these hosts by these keys, and no others; root: of the host that it is on, seen from here."""
    (root / KNOWN_HOSTS.relative_to("/")).write_text("".join(f"{name} {_public(key)}" for name, key in hosts.items()))


def remove() -> None:
    """End the sshd, and take the keys away."""
    with suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int(PID_FILE.read_text()), signal.SIGTERM)
    for path in (HOME / ROOT_KEY, HOME / "authorized_keys", KNOWN_HOSTS, *FOLDER.glob("*")):
        path.unlink(missing_ok=True)
    FOLDER.rmdir()


def _public(key: Path) -> str:
    """Its kind and its text, in a line."""
    return " ".join(key.with_suffix(".pub").read_text().split()[:2]) + "\n"
