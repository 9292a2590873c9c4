"""Makes the bench's root file systems from Debian packages, and fetches the newer QEMU's packages.

    python -m tests.bench.rootfs [VERSION OF LIBVIRT]

The first holds libvirt and QEMU as Debian 12 installs them (9.0 and 7.2); the packages of QEMU 10.0 and of libvirt 11.3
come from its backports and are only laid beside it. The other has libvirt 11.3 from those backports, and the same QEMU;
with it comes a script out of QEMU's source that tests compare with.
"""

import filecmp
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.bench.analyzer import Analyzer
from tests.bench.debian import ADD_BACKPORTS, APT_GET, PREFER_BACKPORTS, Tree
from tests.bench.paths import DEBS, LIBVIRT, LIBVIRT_DEBS, ROOTFS
from tests.bench.virtqemud import Builder

INSTALLED = (
    "iproute2",
    "ipxe-qemu",
    "libepoxy0",  # of the newer QEMU's SPICE, with the next
    "libgbm1",
    "libvirglrenderer1",
    "libvirt-clients",
    "libvirt-daemon-driver-qemu",
    "libvirt-daemon-system",
    "openssh-client",
    "openssh-server",  # by which two hosts reach each other
    "openssl",  # for the certificates of two hosts
    "procps",
    "python3",
    "qemu-system-x86",
    "qemu-utils",
    "seabios",
    "tini",
)
NEWER_QEMU = (
    "qemu-system-x86",
    "qemu-system-common",
    "qemu-system-data",
    "qemu-system-modules-opengl",  # without which its SPICE does not load
    "qemu-system-modules-spice",
    "seabios",
)
DOWNLOAD = f'cd "$1/var/cache/debs" && {APT_GET} download ' + " ".join(
    f"{package}/bookworm-backports" for package in NEWER_QEMU
)
# libvirt's packages as they are here, and all that an upgrade to the newer ones would fetch.
NAME_LIBVIRT = (
    r"""chroot "$1" dpkg-query -W -f '${source:Package} ${Package}\n' | sed -n 's/^libvirt //p'"""
    ' > "$1/var/cache/names"'
)
OLD_LIBVIRT = f'cd "$1/var/cache/libvirt-debs" && {APT_GET} download $(cat "$1/var/cache/names")'
NEW_LIBVIRT = (
    f'{APT_GET} --yes --download-only -o Dir::Cache::archives="$1/var/cache/libvirt-debs"'
    """ install $(sed 's,$,/bookworm-backports,' "$1/var/cache/names")"""
)
# libvirtd 11.3 often takes 30 s to end because of it (hostagent/hypervisor/daemon.py), and no guest here needs it.
NO_NODE_DEVICES = 'rm "$1/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_nodedev.so"'


@dataclass(frozen=True)
class WithDebs(Tree):
    """The newer QEMU's packages go out of it, and libvirt's."""

    def is_made(self) -> bool:
        return super().is_made() and DEBS.is_dir() and LIBVIRT_DEBS.is_dir()

    def take(self) -> None:
        for folder in (DEBS, LIBVIRT_DEBS):
            shutil.rmtree(folder, ignore_errors=True)
            (self.unfinished / "var/cache" / folder.name).rename(folder)
        super().take()


VIRTQEMUD = Builder()
INSTALLED_VIRTQEMUD = ROOTFS["11.3"] / "usr/sbin" / VIRTQEMUD.binary.name
TREES: Mapping[str, Sequence[Tree]] = {
    LIBVIRT: [
        WithDebs(
            ROOTFS[LIBVIRT],
            INSTALLED,
            setup=(ADD_BACKPORTS,),
            customize=(
                'mkdir "$1/var/cache/debs" "$1/var/cache/libvirt-debs"',
                DOWNLOAD,
                NAME_LIBVIRT,
                OLD_LIBVIRT,
                NEW_LIBVIRT,
            ),
        )
    ],
    "11.3": [
        VIRTQEMUD,
        Tree(ROOTFS["11.3"], INSTALLED, setup=(ADD_BACKPORTS, PREFER_BACKPORTS), customize=(NO_NODE_DEVICES,)),
        Analyzer(),
    ],
}


def make(wanted: Sequence[Tree]) -> int:
    """Side by side: one is unpacked while another downloads."""
    running = [(tree, tree.begin()) for tree in wanted]
    for tree, process in running:
        if process.wait() == 0:
            tree.finish()
    return max((process.returncode for _, process in running), default=0)


def main() -> int:
    versions = sys.argv[1:] or list(TREES)
    wanted = [tree for version in versions for tree in TREES[version] if not tree.is_made()]
    code = make(wanted)
    if code == 0 and "11.3" in versions and not _have_virtqemud():
        shutil.copy(VIRTQEMUD.binary, INSTALLED_VIRTQEMUD)
    return code


def _have_virtqemud() -> bool:
    return INSTALLED_VIRTQEMUD.exists() and filecmp.cmp(VIRTQEMUD.binary, INSTALLED_VIRTQEMUD)


if __name__ == "__main__":
    sys.exit(main())
