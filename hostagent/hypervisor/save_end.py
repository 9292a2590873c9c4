"""The end of a guest's save by libvirt, held up until its state is safe.

libvirt writes the state, opens the image once more to mark it as whole, asks QEMU to end, sleeps for 200 ms, and looks
(qemuSaveImageCreate in src/qemu/qemu_saveimage.c, virProcessKillPainfully in src/util/virprocess.c). While it opens it
nobody else gets at the guest, and QEMU has nothing left to do: whoever ends it then spares libvirt the sleep, and
whoever finds the state wrong has libvirt give the save up, with the guest still there.

Where the kernel has no such permission, or QEMU's connections cannot be told, the save takes its ordinary way.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hostagent.errors import HostagentError
from hostagent.hypervisor import BeforeItsEnd, ProcessId, surroundings
from hostagent.hypervisor.descriptors import copy_descriptor
from hostagent.hypervisor.file_gate import FileGate, Opening
from hostagent.hypervisor.surroundings import PROC, link_target
from hostagent.libvirt_files.state_image import IMAGE_LIMIT, ImageNotUnderstood, is_all_written

_DAEMONS = {"libvirtd", "virtqemud"}
_PEER = struct.Struct("3i")  # pid, uid, gid
_GONE = {errno.EBADF, errno.ESRCH, errno.ENOTSOCK}
_AT_ONCE = threading.Semaphore(os.cpu_count() or 1)  # each has an image in memory several times


@contextmanager
def held_up(path: Path, qemu: ProcessId, written: BeforeItsEnd) -> Iterator[None]:
    """While the block saves the guest into `path`: have `written` look at all of it before libvirt ends its QEMU.

    It runs in a thread of its own, and is told how to ask whether libvirt still waits for it. When it raises, libvirt's
    save fails, and that is raised here instead; so it is with a state that is not all there, or not as QEMU writes it.
    It may end the QEMU: libvirt does not see its monitor go before the block has ended.
    """
    with ExitStack() as stack:
        gate: FileGate | None = None
        try:
            path.unlink(missing_ok=True)  # what was there would be taken for what libvirt is about to write
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            gate = stack.enter_context(FileGate(path))
        except OSError:
            pass
        if gate is not None:
            kept = stack.enter_context(ExitStack())  # until nobody watches any more
            stack.enter_context(_Watch(gate, qemu, written, kept).watching())
        yield


class _Watch:
    """Who waits at the gate."""

    def __init__(self, gate: FileGate, qemu: ProcessId, written: BeforeItsEnd, kept: ExitStack) -> None:
        self._gate, self._qemu, self._written, self._kept = gate, qemu, written, kept
        self._asked = False
        self._failed: BaseException | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        stop, ended = os.pipe2(os.O_CLOEXEC)
        thread = threading.Thread(target=self._watch, args=(stop,), name="hostagent save")
        thread.start()
        said: HostagentError | None = None
        try:
            yield
        except HostagentError as error:
            said = error
        finally:
            os.close(ended)
            thread.join()
            os.close(stop)
        if self._failed is not None:
            raise self._failed from said
        if said is not None:
            raise said

    def _watch(self, stop: int) -> None:
        try:
            while (openings := self._gate.openings(stop)) is not None:
                for opening in openings:
                    self._look(opening)
                    self._gate.answer(opening, allow=self._failed is None)
        except BaseException as error:  # nobody may wait at a gate that nobody watches
            self._failed = self._failed or error
        finally:
            self._gate.close()

    def _look(self, opening: Opening) -> None:
        try:
            with _AT_ONCE:
                if not self._asked and (image := _image(opening)) is not None:
                    daemon = surroundings.identify(opening.pid)
                    self._asked = self._keeps_connections(daemon.pid)
                    if self._asked:
                        self._written(image, lambda: _still_waits(daemon))
        except BaseException as error:  # it belongs to whoever saves
            self._failed = error

    def _keeps_connections(self, daemon: int) -> bool:
        """Whether there are any; libvirt would take the end of its monitor for a crash."""
        try:
            kept = [self._keeps_if_of(daemon, fd) for fd in _sockets(self._qemu.pid)]
        except OSError:
            return False
        return any(kept) and surroundings.alive(self._qemu)

    def _keeps_if_of(self, daemon: int, fd: int) -> bool:
        """Keep a copy of that descriptor of QEMU's if the daemon has connected there (unix(7), SO_PEERCRED)."""
        try:
            number = copy_descriptor(self._qemu.pid, fd)
        except OSError as error:
            if error.errno in _GONE:
                return False
            raise
        try:
            copy = socket.socket(fileno=number)
        except OSError:
            os.close(number)
            raise
        pid, _, _ = _PEER.unpack(copy.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if pid != daemon or copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            copy.close()
            return False
        self._kept.callback(copy.close)
        return True


def _image(opening: Opening) -> bytes | None:
    """What libvirt is about to mark as whole; None for any other opening.

    libvirt opens the file twice: as it makes it, and when QEMU has written all. Raises ImageNotUnderstood when that is
    not a whole state: compressed, say.
    """
    size = os.fstat(opening.fd).st_size
    if size == 0 or (PROC / str(opening.pid) / "comm").read_text().strip() not in _DAEMONS:
        return None
    image = os.pread(opening.fd, min(size, IMAGE_LIMIT), 0)
    if size > IMAGE_LIMIT or not is_all_written(image):
        raise ImageNotUnderstood(
            "looking at what libvirt saves",
            expected="QEMU's state to its end, as it wrote it",
            found=f"something else in {size} bytes",
            hint="save_image_format in qemu.conf has to be raw; the guest runs as before",
        )
    return image


def _still_waits(daemon: ProcessId) -> bool:
    return surroundings.alive(daemon) and not surroundings.leaving(daemon)


def _sockets(pid: int) -> list[int]:
    folder = PROC / str(pid) / "fd"
    return [int(name) for name in os.listdir(folder) if link_target(folder / name).startswith("socket:")]  # noqa: PTH208
