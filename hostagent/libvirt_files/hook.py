"""hostagent's part of libvirt's qemu hook, as it stands on a host.

libvirt.org/hooks.html; folders of hooks from libvirt 6.5 on.
"""

from importlib.resources import files
from pathlib import Path

HOOK = Path("/etc/libvirt/hooks/qemu.d/hostagent")
_DEFAULT = "/run/hostagent/held"


def hook_text(held: Path) -> bytes:
    """The script; `held` is where it looks for guests that are held."""
    script = files(__package__).joinpath("libvirt-hook-qemu").read_text()
    assert script.count(_DEFAULT) == 1  # noqa: S101 - the line that is changed
    return script.replace(_DEFAULT, str(held)).encode()


def is_ours(content: bytes) -> bool:
    """Whether that is such a script, of this version or of another one."""
    return b"# hostagent's part of libvirt's qemu hook" in content
