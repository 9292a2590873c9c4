"""Makes the bench's root file system from Debian packages, and fetches the newer QEMU's packages.

The root file system holds libvirt and QEMU as Debian 12 installs them (9.0 and 7.2); the packages of QEMU
10.0 come from its backports and are only laid beside it. Made anew when the recipe changed; a half-made one
is remade.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from tests.bench.paths import BENCH, DEBS, ROOTFS

INSTALLED = (
    "iproute2",
    "ipxe-qemu",
    "libvirt-clients",
    "libvirt-daemon-driver-qemu",
    "libvirt-daemon-system",
    "procps",
    "python3",
    "qemu-system-x86",
    "qemu-utils",
    "seabios",
    "tini",
)
NEWER_QEMU = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios")
UNWANTED = ("/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/man/*")

# The mirror is whichever mmdebstrap chose; $1 is the root file system.
ADD_BACKPORTS = (
    r'sed -n "s/ bookworm / bookworm-backports /p" "$1/etc/apt/sources.list"'
    r' > "$1/etc/apt/sources.list.d/backports.list"'
)
DOWNLOAD = 'cd "$1/var/cache/debs" && APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get -qq download '


def command(target: Path) -> list[str]:
    """mmdebstrap into an empty folder; takes about 40 s."""
    newer = " ".join(f"{package}/bookworm-backports" for package in NEWER_QEMU)
    return [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={','.join(INSTALLED)}",
        '--aptopt=APT::Install-Recommends "false"',
        '--aptopt=APT::Sandbox::User "root"',
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in UNWANTED),
        f"--setup-hook={ADD_BACKPORTS}",
        '--customize-hook=mkdir "$1/var/cache/debs"',
        f"--customize-hook={DOWNLOAD}{newer}",
        "bookworm",
        str(target),
    ]


def recipe() -> str:
    """Changes whenever something else would be made."""
    return hashlib.sha256(repr(command(ROOTFS)).encode()).hexdigest()


def is_made(stamp: Path) -> bool:
    return stamp.exists() and stamp.read_text() == recipe() and ROOTFS.is_dir() and DEBS.is_dir()


def main() -> int:
    stamp = BENCH / "rootfs.recipe"
    if is_made(stamp):
        return 0
    unfinished = BENCH / "rootfs.unfinished"
    for folder in (unfinished, ROOTFS, DEBS):
        shutil.rmtree(folder, ignore_errors=True)
    stamp.unlink(missing_ok=True)
    BENCH.mkdir(parents=True, exist_ok=True)
    subprocess.run(command(unfinished), check=True)
    (unfinished / "var/cache/debs").rename(DEBS)
    unfinished.rename(ROOTFS)
    stamp.write_text(recipe())
    return 0


if __name__ == "__main__":
    sys.exit(main())
