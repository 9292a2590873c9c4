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


def read(path: Path) -> QemuConf:
    """Read the file; an absent one means defaults. Refused when it is not readable."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        text = ""
    except OSError as error:
        raise Refused(f"reading {path}", found=error.strerror or str(error)) from error
    return QemuConf(
        memory_backing_dir=_word(text, "memory_backing_dir") or DEFAULT_MEMORY_BACKING_DIR,
        lock_manager=_word(text, "lock_manager"),
        capability_filters=_list(text, "capability_filters"),
    )


def _word(text: str, key: str) -> str:
    found = re.findall(rf'^[ \t]*{key}[ \t]*=[ \t]*"([^"]*)"', text, re.MULTILINE)
    return found[-1] if found else ""


def _list(text: str, key: str) -> tuple[str, ...]:
    found = re.findall(rf"^[ \t]*{key}[ \t]*=[ \t]*\[([^\]]*)\]", text, re.MULTILINE)
    return tuple(re.findall(r'"([^"]*)"', found[-1])) if found else ()
