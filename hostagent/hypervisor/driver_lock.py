"""libvirt's own lock on /run/libvirt/qemu/driver.pid: while we hold it no QEMU driver starts, whoever tries.

libvirt takes it with fcntl(F_SETLK) before it reads any guest's record (src/qemu/qemu_driver.c,
qemuStateInitialize), and exits when it cannot. Ours belongs to the open file: a guard that shares it keeps the lock
when the updater dies, without a gap.
"""

from dataclasses import dataclass

from hostagent.locks import OpenFileLock


@dataclass
class DriverLock(OpenFileLock):
    """The lock that keeps libvirt's daemon out; the file's mode is libvirt's."""

    mode: int = 0o644
