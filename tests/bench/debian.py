"""A tree of Debian 12 packages, made by mmdebstrap; anew when its recipe changed. A half-made one is remade."""

import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

UNWANTED = ("/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/man/*")

# Hooks are commands of mmdebstrap's; $1 is the tree. The mirror is whichever it chose.
ADD_BACKPORTS = (
    r'sed -n "s/ bookworm / bookworm-backports /p" "$1/etc/apt/sources.list"'
    r' > "$1/etc/apt/sources.list.d/backports.list"'
)
# All packages of libvirt, and nothing else, are to come from there.
PREFER_BACKPORTS = (
    r'printf "Package: src:libvirt\nPin: release n=bookworm-backports\nPin-Priority: 990\n"'
    r' > "$1/etc/apt/preferences.d/libvirt"'
)
APT_GET = 'APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get -qq '


@dataclass(frozen=True)
class Tree:
    """One tree of packages."""

    folder: Path
    packages: tuple[str, ...]
    setup: tuple[str, ...] = ()
    customize: tuple[str, ...] = ()

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
            f"--include={','.join(self.packages)}",
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
        return self.stamp.exists() and self.stamp.read_text() == self.recipe() and self.folder.is_dir()

    def begin(self) -> subprocess.Popen[bytes]:
        """Start mmdebstrap."""
        for folder in (self.unfinished, self.folder):
            shutil.rmtree(folder, ignore_errors=True)
        self.stamp.unlink(missing_ok=True)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        return subprocess.Popen(self.command())

    def finish(self) -> None:
        """Once it has ended well."""
        self.take()
        self.stamp.write_text(self.recipe())

    def take(self) -> None:
        """Put what was made into its place."""
        self.unfinished.rename(self.folder)
