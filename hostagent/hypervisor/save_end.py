"""The end of a guest's save by libvirt, held up until its state is safe.

libvirt writes the state, opens the image once more to mark it as whole, asks QEMU to end, sleeps for 200 ms, and looks
(qemuSaveImageCreate in src/qemu/qemu_saveimage.c, virProcessKillPainfully in src/util/virprocess.c). While it opens it
nobody else gets at the guest, and QEMU has nothing left to do: whoever ends it then spares libvirt the sleep, and
whoever finds the state wrong has libvirt give the save up, with the guest still there.

Where the kernel has no such permission, or anything is not as it is known here, the save takes its ordinary way.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from hostagent.errors import HostagentError
from hostagent.hypervisor import ProcessId, surroundings
from hostagent.hypervisor.descriptors import copy_descriptor
from hostagent.hypervisor.file_gate import FileGate, Opening
from hostagent.hypervisor.surroundings import PROC
from hostagent.libvirt_files.state_image import is_all_written

_DAEMONS = {"libvirtd", "virtqemud"}
_MONITOR = "/monitor.sock"  # its listener is libvirt's, in the guest's own directory
_IMAGE_LIMIT = 2 << 30


@contextmanager
def held_up(path: Path, qemu: ProcessId, written: Callable[[bytes], None]) -> Iterator[None]:
    """While the block saves the guest into `path`: have `written` look at all of it before libvirt ends its QEMU.

    It runs in a thread of its own. When it raises, libvirt's save fails, and that is raised here instead. It may end
    the QEMU: libvirt does not see its monitor go before the block has ended.
    """
    with ExitStack() as stack:
        try:
            path.touch(mode=0o600)
            gate = stack.enter_context(FileGate(path))
        except OSError:
            yield
            return
        end = _End(gate, qemu, written, stack)
        with end.watched():
            yield


class _End:
    """Who waits at the gate."""

    def __init__(self, gate: FileGate, qemu: ProcessId, written: Callable[[bytes], None], kept: ExitStack) -> None:
        self._gate, self._qemu, self._written, self._kept = gate, qemu, written, kept
        self._seen = False
        self._wrong: BaseException | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        stop, ended = os.pipe2(os.O_CLOEXEC)
        thread = threading.Thread(target=self._watch, args=(stop,), name="hostagent save")
        thread.start()
        try:
            yield
        except HostagentError as error:
            if self._wrong is None:
                raise
            raise self._wrong from error
        finally:
            os.close(ended)
            thread.join()
            os.close(stop)
        if self._wrong is not None:
            raise self._wrong

    def _watch(self, stop: int) -> None:
        while openings := self._gate.openings(stop):
            for opening in openings:
                allow = True
                try:
                    if not self._seen and (image := self._whole_image(opening)) is not None:
                        self._seen = True
                        self._written(image)
                except BaseException as error:  # it belongs to whoever saves
                    self._wrong, allow = error, False
                finally:
                    self._gate.answer(opening, allow=allow)

    def _whole_image(self, opening: Opening) -> bytes | None:
        """What libvirt is about to mark as whole; None for whatever else this may be."""
        with suppress(OSError):
            size = os.fstat(opening.fd).st_size
            daemon = (PROC / str(opening.pid) / "comm").read_text().strip()
            if 0 < size <= _IMAGE_LIMIT and daemon in _DAEMONS:
                image = os.pread(opening.fd, size, 0)
                if is_all_written(image):
                    self._keep_monitor()
                    return image
        return None

    def _keep_monitor(self) -> None:
        """libvirt would take its end for a crash."""
        found = _connections(self._qemu.pid, _MONITOR)
        if not found or not surroundings.alive(self._qemu):
            raise FileNotFoundError(f"QEMU {self._qemu.pid} has no monitor of libvirt's")
        for fd in found:
            self._kept.callback(os.close, copy_descriptor(self._qemu.pid, fd))


def _connections(pid: int, listener: str) -> list[int]:
    """Descriptors of a process that lead to a listener of such a name (/proc/PID/net/unix)."""
    rows = ((PROC / str(pid) / "net" / "unix").read_text().splitlines())[1:]
    sockets = {f"socket:[{fields[6]}]" for row in rows if (fields := row.split())[-1].endswith(listener)}
    folder = PROC / str(pid) / "fd"
    return [int(name) for name in os.listdir(folder) if surroundings.link_target(folder / name) in sockets]  # noqa: PTH208
