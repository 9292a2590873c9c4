"""Makes the bench's root file systems from Debian packages, and fetches the newer QEMU's packages.

The first holds libvirt and QEMU as Debian 12 installs them (9.0 and 7.2); the packages of QEMU 10.0 come from
its backports and are only laid beside it. The other has libvirt 11.3 from those backports, and the same QEMU.
Each is made anew when its recipe changed; a half-made one is remade.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.paths import DEBS, LIBVIRT, ROOTFS

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
# All packages of libvirt, and nothing else, are to come from there.
PREFER_BACKPORTS = (
    r'printf "Package: src:libvirt\nPin: release n=bookworm-backports\nPin-Priority: 990\n"'
    r' > "$1/etc/apt/preferences.d/libvirt"'
)
DOWNLOAD = 'cd "$1/var/cache/debs" && APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get -qq download '


@dataclass(frozen=True)
class RootFs:
    """One root file system; its hooks are commands of mmdebstrap's shell."""

    folder: Path
    setup: tuple[str, ...] = (ADD_BACKPORTS,)
    customize: tuple[str, ...] = ()
    debs: Path | None = None
    """Where the packages go that it downloads."""

    @property
    def stamp(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.recipe")

    @property
    def unfinished(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.unfinished")

    def command(self) -> list[str]:
        """mmdebstrap into an empty folder; takes about 40 s."""
        return [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            f"--include={','.join(INSTALLED)}",
            '--aptopt=APT::Install-Recommends "false"',
            '--aptopt=APT::Sandbox::User "root"',
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in UNWANTED),
            *(f"--setup-hook={hook}" for hook in self.setup),
            *(f"--customize-hook={hook}" for hook in self.customize),
            "bookworm",
            str(self.unfinished),
        ]

    def recipe(self) -> str:
        """Changes whenever something else would be made."""
        return hashlib.sha256(repr(self.command()).encode()).hexdigest()

    def is_made(self) -> bool:
        folders = [self.folder, *([self.debs] if self.debs else [])]
        written = self.stamp.exists() and self.stamp.read_text() == self.recipe()
        return written and all(folder.is_dir() for folder in folders)

    def begin(self) -> subprocess.Popen[bytes]:
        for folder in filter(None, (self.unfinished, self.folder, self.debs)):
            shutil.rmtree(folder, ignore_errors=True)
        self.stamp.unlink(missing_ok=True)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        return subprocess.Popen(self.command())

    def finish(self) -> None:
        if self.debs:
            (self.unfinished / "var/cache/debs").rename(self.debs)
        self.unfinished.rename(self.folder)
        self.stamp.write_text(self.recipe())


ALL = (
    RootFs(
        ROOTFS[LIBVIRT],
        customize=(
            'mkdir "$1/var/cache/debs"',
            DOWNLOAD + " ".join(f"{package}/bookworm-backports" for package in NEWER_QEMU),
        ),
        debs=DEBS,
    ),
    RootFs(ROOTFS["11.3"], setup=(ADD_BACKPORTS, PREFER_BACKPORTS)),
)


def make(wanted: Sequence[RootFs]) -> int:
    """Side by side: unpacking one fills the time in which another downloads."""
    running = [(rootfs, rootfs.begin()) for rootfs in wanted]
    codes = []
    for rootfs, process in running:
        codes.append(process.wait())
        if process.returncode == 0:
            rootfs.finish()
    return max(codes, default=0)


def main() -> int:
    return make([rootfs for rootfs in ALL if not rootfs.is_made()])


if __name__ == "__main__":
    sys.exit(main())
