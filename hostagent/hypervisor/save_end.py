"""The end of a guest's save by libvirt, held up until its state is safe.

libvirt writes the state, opens the image once more to mark it as whole, asks QEMU to end, sleeps for 200 ms, and looks
(qemuSaveImageCreate in src/qemu/qemu_saveimage.c, virProcessKillPainfully in src/util/virprocess.c). While it opens it
nobody else gets at the guest, and QEMU has nothing left to do: whoever ends it then spares libvirt the sleep, and
whoever finds the state wrong has libvirt give the save up, with the guest still there.

Where the kernel has no such permission, or anything is not as it is known here, the save takes its ordinary way.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from hostagent.errors import HostagentError
from hostagent.hypervisor import ProcessId, surroundings
from hostagent.hypervisor.descriptors import copy_descriptor
from hostagent.hypervisor.file_gate import FileGate, Opening
from hostagent.hypervisor.surroundings import PROC, link_target
from hostagent.libvirt_files.state_image import is_all_written

_DAEMONS = {"libvirtd", "virtqemud"}
_IMAGE_LIMIT = 2 << 30
_PEER = struct.Struct("3i")  # pid, uid, gid


@contextmanager
def held_up(path: Path, qemu: ProcessId, written: Callable[[bytes], None]) -> Iterator[None]:
    """While the block saves the guest into `path`: have `written` look at all of it before libvirt ends its QEMU.

    It runs in a thread of its own. When it raises, libvirt's save fails, and that is raised here instead. It may end
    the QEMU: libvirt does not see its monitor go before the block has ended.
    """
    with ExitStack() as stack:
        try:
            path.unlink(missing_ok=True)  # what was there would be taken for what libvirt is about to write
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
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
                    self._keep_connections(opening.pid)
                    return image
        return None

    def _keep_connections(self, daemon: int) -> None:
        """libvirt would take the end of its monitor for a crash."""
        found = [fd for fd in _sockets(self._qemu.pid) if self._kept_if_of(daemon, fd)]
        if not found or not surroundings.alive(self._qemu):
            raise FileNotFoundError(f"QEMU {self._qemu.pid} has no connection to process {daemon}")

    def _kept_if_of(self, daemon: int, fd: int) -> bool:
        """Keep a copy of that descriptor of QEMU's if the daemon has connected there (unix(7), SO_PEERCRED)."""
        with suppress(OSError), ExitStack() as copied:
            copy = copied.enter_context(socket.socket(fileno=copy_descriptor(self._qemu.pid, fd)))
            pid, _, _ = _PEER.unpack(copy.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
            if pid == daemon:
                self._kept.push(copied.pop_all())
                return True
        return False


def _sockets(pid: int) -> list[int]:
    folder = PROC / str(pid) / "fd"
    return [int(name) for name in os.listdir(folder) if link_target(folder / name).startswith("socket:")]  # noqa: PTH208
