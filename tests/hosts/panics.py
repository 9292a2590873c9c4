"""A guest whose own kernel panics as it has migrated: QEMU's emulation sometimes leaves a page behind.

Seen with libvirt alone, of QEMU 7.2 without KVM: of 64 migrations on a busy machine one, and a timer's function pointed
nowhere. It says nothing about hostagent, so such a test is made once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

from tests.bench.guest_spec import GUEST_FILES

WORDS = b"Kernel panic"
TRIES = 3
KVM = Path("/dev/kvm")


@dataclass
class Panics:
    """Those that the guests' consoles have told of."""

    found: int = 0
    _told: dict[Path, int] = field(default_factory=dict)

    def look(self) -> int:
        """How many there were up to now."""
        told = {path: path.read_bytes().count(WORDS) for path in GUEST_FILES.glob("*.console")}
        self.found += sum(max(0, count - self._told.get(path, 0)) for path, count in told.items())
        self._told = told
        return self.found


PANICS = Panics()


def run(item: pytest.Item, nextitem: pytest.Item | None) -> Sequence[pytest.TestReport]:
    """A test's reports, of its last try."""
    for left in reversed(range(TRIES)):
        before = PANICS.look()
        reports: Sequence[pytest.TestReport] = runtestprotocol(item, log=False, nextitem=nextitem)
        failed = any(report.failed for report in reports)
        if not (failed and left and PANICS.look() > before) or KVM.exists():
            break
        print("\nan emulated guest's kernel has panicked: once more")
        item._initrequest()  # type: ignore[attr-defined]  # as pytest-rerunfailures does
    return reports
