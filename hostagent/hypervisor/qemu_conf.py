"""What libvirt's qemu.conf says, as far as an update looks at it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hostagent.errors import Refused

DEFAULT_MEMORY_BACKING_DIR = "/var/lib/libvirt/qemu/ram"  # libvirt, src/qemu/qemu_conf.c


@dataclass(frozen=True)
class QemuConf:
    """The settings; libvirt's defaults where the file is silent."""

    memory_backing_dir: str
    lock_manager: str
    capability_filters: tuple[str, ...]
    changes_owners: bool  # of guests' files, to QEMU's user and back (dynamic_ownership)


def read(path: Path) -> QemuConf:
    """Read the file; an absent one means defaults. Refused when it is not readable."""
    try:
        conf = path.read_bytes()
    except FileNotFoundError:
        conf = b""
    except OSError as error:
        raise Refused(f"reading {path}", found=error.strerror or str(error)) from error
    return QemuConf(
        memory_backing_dir=setting(conf, "memory_backing_dir") or DEFAULT_MEMORY_BACKING_DIR,
        lock_manager=setting(conf, "lock_manager") or "",
        capability_filters=_list(conf, "capability_filters"),
        changes_owners=_number(conf, "dynamic_ownership") != 0,
    )


def setting(conf: bytes | None, key: str) -> str | None:
    """A text from a libvirt configuration file; of several libvirt takes the first (virConfGetValue)."""
    text = (conf or b"").decode("utf-8", "surrogateescape")
    found = re.search(rf"""^[ \t]*{re.escape(key)}[ \t]*=[ \t]*(["'])(.*?)\1""", text, re.MULTILINE)
    return found[2] if found else None


def _number(conf: bytes, key: str) -> int | None:
    text = conf.decode("utf-8", "surrogateescape")
    found = re.search(rf"^[ \t]*{re.escape(key)}[ \t]*=[ \t]*([0-9]+)", text, re.MULTILINE)
    return int(found[1]) if found else None


def _list(conf: bytes, key: str) -> tuple[str, ...]:
    text = conf.decode("utf-8", "surrogateescape")
    found = re.search(rf"^[ \t]*{re.escape(key)}[ \t]*=[ \t]*\[([^\]]*)\]", text, re.MULTILINE)
    return tuple(re.findall(r"""["']([^"']*)["']""", found[1])) if found else ()
