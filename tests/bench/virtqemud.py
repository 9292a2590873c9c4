"""Builds virtqemud, the QEMU driver's own daemon: Debian has the driver and the library, but only libvirtd for them.

Both daemons are the same few files of libvirt's source, compiled for another name, and use the driver through the
library's private symbols. So these files are compiled, and linked to the library of the very same version that Debian
has: everything that touches a guest is Debian's own.
"""

import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.bench.debian import ADD_BACKPORTS, APT_GET, PREFER_BACKPORTS, Tree
from tests.bench.paths import BENCH

BINARY = "virtqemud"
TOOLS = (
    *("gcc", "libc6-dev", "meson", "pkg-config", "xz-utils", "libxml2-utils", "python3-docutils", "xsltproc"),
    *("libglib2.0-dev", "libgnutls28-dev", "libjson-c-dev", "libnl-3-dev", "libnl-route-3-dev", "libtirpc-dev"),
    *("libvirt-dev", "libxml2-dev"),
)
ADD_SOURCE = (
    r'sed -n "s/^deb \(.*\) bookworm .*/deb-src \1 bookworm-backports main/p" "$1/etc/apt/sources.list"'
    r' | head -n 1 > "$1/etc/apt/sources.list.d/source.list"'
)
# Only upstream's part is used; a mirror that forgets the rest is as good. apt compares what it gets with the index.
FETCH = (
    f'mkdir "$1/src" && cd "$1/src" && {{ {APT_GET} --download-only source libvirt/bookworm-backports 2>/dev/null;'
    r" tar --extract --strip-components=1 --file libvirt_*.orig.tar.xz; }"
)
OPTIONS = (
    *("--prefix=/usr", "--libdir=lib/x86_64-linux-gnu", "--sysconfdir=/etc", "--localstatedir=/var"),
    *("-Drunstatedir=/run", "-Dsystem=true", "-Dauto_features=disabled", "-Ddocs=disabled", "-Dtests=disabled"),
    *("-Ddriver_remote=enabled", "-Ddriver_libvirtd=enabled", "-Ddriver_qemu=enabled", "-Djson_c=enabled"),
    *("-Dlibnl=enabled", "-Dqemu_user=libvirt-qemu", "-Dqemu_group=libvirt-qemu"),
)
ADMIN = "src/admin/libvirt_admin_driver.a"
LIBRARIES = ("virt", "virt-lxc", "virt-qemu", "gnutls", "glib-2.0", "gobject-2.0", "gio-2.0", "xml2", "tirpc")


@dataclass(frozen=True)
class Builder(Tree):
    """A tree with what it takes to compile it; only the binary is kept of it."""

    folder: Path = BENCH / "virtqemud"
    packages: tuple[str, ...] = TOOLS
    setup: tuple[str, ...] = (ADD_BACKPORTS, PREFER_BACKPORTS, ADD_SOURCE)
    customize: tuple[str, ...] = (FETCH,)

    @property
    def binary(self) -> Path:
        return self.folder / BINARY

    def recipe(self) -> str:
        return hashlib.sha256(repr((self.command(), OPTIONS, LIBRARIES)).encode()).hexdigest()

    def take(self) -> None:
        """Compile it (20 s); the tree goes."""
        self._inside("meson", "setup", *OPTIONS, "/src/build", "/src")
        targets = self._inside("ninja", "-C", "/src/build", "-t", "targets", "all").splitlines()
        objects = [name for name, _, _ in (line.partition(":") for line in targets) if _is_object(name)]
        self._inside("ninja", "--quiet", "-C", "/src/build", ADMIN, *objects)
        inputs = [f"/src/build/{name}" for name in (*objects, ADMIN)]
        libraries = [f"-l{name}" for name in LIBRARIES]
        # The library's symbols are for what is beside it: nothing else is said of those that it wants in its turn.
        options = ["-pie", "-Wl,--as-needed", "-Wl,--allow-shlib-undefined", "-Wl,--export-dynamic"]
        self._inside("cc", "-o", f"/{BINARY}", *inputs, *libraries, *options)
        self.folder.mkdir()
        shutil.move(self.unfinished / BINARY, self.binary)
        shutil.rmtree(self.unfinished)

    def _inside(self, *words: str) -> str:
        return subprocess.run(
            ["chroot", str(self.unfinished), *words], check=True, stdout=subprocess.PIPE, text=True
        ).stdout


def _is_object(name: str) -> bool:
    return name.startswith(f"src/{BINARY}.p/") and name.endswith(".o")
