"""QEMU processes: started in another one's surroundings, watched, ended. The real `Qemu` port."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from hostagent import processes
from hostagent.errors import Failed, NeedsOperator
from hostagent.hypervisor import LaunchOrder, ProcessId, apparmor, descriptors, surroundings
from hostagent.hypervisor.deadline import Worker
from hostagent.hypervisor.qmp import QmpMonitor
from hostagent.hypervisor.surroundings import PROC

LAUNCH_SECONDS = 30.0  # a Python starts in it; the guest runs meanwhile, and the host may be busy
TAP_INTERVAL = 0.0005  # a starting QEMU resets its taps three times while the old guest still uses them
GUEST_LOGS = Path("/var/log/libvirt/qemu")  # libvirt's own, set when it was built
_LAST_WORDS = 2000


class HostQemu:
    """The QEMU processes of this host."""

    def __init__(self, guest_logs: Path = GUEST_LOGS) -> None:
        self._guest_logs = guest_logs
        self._log_ends: dict[str, int] = {}

    def identify(self, pid: int) -> ProcessId:
        try:
            return surroundings.identify(pid)
        except OSError as error:
            raise Failed(f"looking at process {pid}", expected="it running", found="no such process") from error

    def alive(self, process: ProcessId) -> bool:
        return surroundings.alive(process)

    def leaving(self, process: ProcessId) -> bool:
        return surroundings.leaving(process)

    def owner(self, process: ProcessId) -> tuple[int, int]:
        try:
            found = (surroundings.PROC / str(process.pid)).stat()
        except OSError as error:
            raise Failed(f"looking at process {process.pid}", expected="it running", found="no such process") from error
        return found.st_uid, found.st_gid

    # -- starting and ending ---------------------------------------------------------------------------------

    def launch(self, order: LaunchOrder) -> Launching:
        for log in self._guest_logs.glob("*.log"):
            self._log_ends[log.stem] = log.stat().st_size
        if label := surroundings.security_label(order.old.pid):
            apparmor.allow(label, order.argv)
        return Launching(order)

    def kill(self, process: ProcessId, within_seconds: float) -> None:
        if not self.alive(process):
            return
        try:
            handle = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return
        try:
            if self.alive(process):  # that pid, now held by the handle, is still that process
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        except ProcessLookupError:
            pass
        finally:
            os.close(handle)
        if not self.wait_gone(process, within_seconds):
            raise NeedsOperator(
                f"ending QEMU {process.pid}",
                expected=f"it gone within {within_seconds:g} s of SIGKILL",
                found="it is still there (a disk that does not answer holds it)",
                hint="hostagent recover, once its disk answers",
            )

    def wait_gone(self, process: ProcessId, within_seconds: float) -> bool:
        try:
            handle = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return True
        try:
            if not self.alive(process):
                return True
            return bool(select.select([handle], [], [], within_seconds)[0]) or not self.alive(process)
        finally:
            os.close(handle)

    def monitor(self, path: Path, within_seconds: float) -> QmpMonitor:
        return QmpMonitor(path, within_seconds)

    def last_words(self, guest: str, within_seconds: float = 0.0) -> str:
        log, start = self._guest_logs / f"{guest}.log", self._log_ends.get(guest, 0)
        ends = time.monotonic() + within_seconds
        while not (words := _said_since(log, start)) and time.monotonic() < ends:
            time.sleep(0.05)
        return words

    def flush(self, process: ProcessId, files: tuple[str, ...], within_seconds: float) -> None:
        wanted = {path for path in files if path.startswith("/")}
        images = [entry for entry in (PROC / str(process.pid) / "fd").iterdir() if _target(entry) in wanted]

        def sync() -> None:
            for image in images:  # through the process' own descriptor: nothing but what it has open
                fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fdatasync(fd)
                finally:
                    os.close(fd)

        worker = Worker()
        try:
            worker.call(f"flushing the disks of QEMU {process.pid}", sync, within_seconds)
        except OSError as error:
            raise Failed(f"flushing the disks of QEMU {process.pid}", found=error.strerror or str(error)) from error
        finally:
            worker.end()

    def remove_log(self, guest: str) -> None:
        (self._guest_logs / f"{guest}.log").unlink(missing_ok=True)

    # -- surroundings ----------------------------------------------------------------------------------------

    def place_threads(self, old: ProcessId, new: ProcessId, pairs: Mapping[int, int]) -> None:
        try:
            for before, after in pairs.items():
                surroundings.place(after, surroundings.placement(old.pid, before))
        except OSError as error:
            raise Failed("placing the new QEMU's threads", expected="as the old one's", found=str(error)) from error

    def differences(self, old: ProcessId, new: ProcessId, *, opened: tuple[str, ...] = ()) -> tuple[str, ...]:
        try:
            return surroundings.differences(surroundings.read(old.pid), surroundings.read(new.pid), opened)
        except OSError as error:
            raise Failed("comparing surroundings", expected="both processes there", found=str(error)) from error

    def ram_inodes(self, process: ProcessId) -> frozenset[tuple[int, int]]:
        found = set()
        for line in (PROC / str(process.pid) / "maps").read_text().splitlines():
            fields = line.split(maxsplit=5)
            if "s" in fields[1] and "w" in fields[1] and fields[4] != "0":
                major, minor = (int(part, 16) for part in fields[3].split(":"))
                found.add((os.makedev(major, minor), int(fields[4])))
        return frozenset(found)

    def log_pipes(self, process: ProcessId) -> tuple[int, ...]:
        folder = PROC / str(process.pid) / "fd"
        targets = {int(entry.name): _target(entry) for entry in folder.iterdir()}
        own_output = {targets.get(1), targets.get(2)}
        found: dict[str, int] = {}
        for fd in sorted(targets):
            target = targets[fd]
            if target.startswith("pipe:") and target not in own_output and _only_written(process.pid, fd):
                found.setdefault(target, fd)
        inside = {target for fd, target in targets.items() if target in found and not _only_written(process.pid, fd)}
        return tuple(fd for target, fd in found.items() if target not in inside)

    def same_file(self, one: ProcessId, fd: int, other: ProcessId, other_fd: int) -> bool:
        try:
            mine = (PROC / str(one.pid) / "fd" / str(fd)).stat()
            theirs = (PROC / str(other.pid) / "fd" / str(other_fd)).stat()
        except OSError:
            return False
        return (mine.st_dev, mine.st_ino) == (theirs.st_dev, theirs.st_ino)

    # -- taps ------------------------------------------------------------------------------------------------

    def tap_descriptor(self, process: ProcessId, name: str) -> int:
        folder = surroundings.PROC / str(process.pid) / "fd"
        try:
            taps = [int(entry.name) for entry in folder.iterdir() if _target(entry) == "/dev/net/tun"]
        except OSError as error:
            raise Failed(f"finding tap {name}", expected=f"QEMU {process.pid}", found=str(error)) from error
        for fd in sorted(taps):
            with _copied(process, fd) as tap:
                if descriptors.tap_name(tap) == name:
                    return fd
        raise Failed(f"finding tap {name}", expected=f"QEMU {process.pid} to have it", found="no such descriptor")

    def tap_settings(self, process: ProcessId, taps: tuple[int, ...]) -> Mapping[int, str]:
        settings = {}
        for fd in taps:
            with _copied(process, fd) as tap:
                settings[fd] = f"{descriptors.tap_header_length(tap)} {descriptors.tap_offloads(tap)}"
        return settings

    def put_taps(self, process: ProcessId, settings: Mapping[int, str]) -> None:
        for fd, text in settings.items():
            if _target(surroundings.PROC / str(process.pid) / "fd" / str(fd)) != "/dev/net/tun":
                continue  # its card was taken out meanwhile
            length, offloads = (int(word) for word in text.split())
            with _copied(process, fd) as tap:
                descriptors.set_tap_header_length(tap, length)
                descriptors.set_tap_offloads(tap, offloads)

    @contextmanager
    def keeping_taps(self, process: ProcessId, settings: Mapping[int, str]) -> Iterator[None]:
        if not settings:
            yield
            return
        done = threading.Event()
        lengths = {}
        for fd, text in settings.items():
            lengths[descriptors.copy_descriptor(process.pid, fd)] = int(text.split()[0])

        def keep() -> None:
            while not done.is_set():
                for tap, length in lengths.items():
                    with suppress(OSError):
                        if descriptors.tap_header_length(tap) != length:
                            descriptors.set_tap_header_length(tap, length)
                time.sleep(TAP_INTERVAL)

        keeper = threading.Thread(target=keep, name="taps", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            done.set()
            keeper.join()
            for tap in lengths:
                os.close(tap)
            self.put_taps(process, settings)


class Launching:
    """A launcher that has reported its pid and waits for `go`."""

    def __init__(self, order: LaunchOrder) -> None:
        waits, self._go = os.pipe2(os.O_CLOEXEC)
        self._heard, tells = os.pipe2(os.O_CLOEXEC)
        self._pipes: tuple[int, ...] = (self._go, self._heard)
        text = json.dumps(
            {
                "old_pid": order.old.pid,
                "argv": list(order.argv),
                "listeners": {number: [str(path), str(like)] for number, (path, like) in order.listeners.items()},
                "taken_over": dict(order.taken_over),
                "vhosts": list(order.vhosts),
                "pid_file": str(order.pid_file),
                "go": waits,
                "report": tells,
            }
        )
        try:
            launcher = processes.start(
                [sys.executable, "-m", "hostagent.hypervisor.launcher"],
                pass_fds=(waits, tells),
                stdin=processes.PIPE,
            )
            assert launcher.stdin is not None  # noqa: S101 - it was asked for
            with launcher.stdin as pipe:
                pipe.write(text.encode())
        finally:
            os.close(waits)
            os.close(tells)
        try:
            said = self._hear(LAUNCH_SECONDS)
            if "pid" not in said:
                raise Failed(
                    "starting the new QEMU",
                    expected="the old one's surroundings",
                    found=str(said.get("error", "nothing")),
                )
            self._process = surroundings.identify(int(str(said["pid"])))
        except BaseException:
            self._close()
            raise
        finally:
            with suppress(processes.TimeoutExpired):
                launcher.wait(LAUNCH_SECONDS)

    @property
    def process(self) -> ProcessId:
        return self._process

    def __enter__(self) -> Launching:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def go(self) -> None:
        """Let it execute QEMU; raises Failed when it cannot."""
        os.write(self._go, b"g")
        said = self._hear(LAUNCH_SECONDS)  # the pipe closes without a word when QEMU is executed
        self._close()
        if said:
            raise Failed("starting the new QEMU", expected="the old one's surroundings", found=str(said.get("error")))

    def _close(self) -> None:
        """One that waits still ends itself when nobody can tell it to go any more."""
        pipes, self._pipes = self._pipes, ()
        for pipe in pipes:
            os.close(pipe)

    def _hear(self, seconds: float) -> dict[str, object]:
        """One line of the launcher; nothing when it closed its end."""
        heard = b""
        ends = time.monotonic() + seconds
        while not heard.endswith(b"\n"):
            if not select.select([self._heard], [], [], max(0.0, ends - time.monotonic()))[0]:
                raise Failed(
                    "starting the new QEMU",
                    expected=f"the launcher's word within {seconds:g} s",
                    found="none",
                )
            piece = os.read(self._heard, 4096)
            if not piece:
                break
            heard += piece
        answer: dict[str, object] = json.loads(heard) if heard else {}
        return answer


@contextmanager
def _copied(process: ProcessId, fd: int) -> Iterator[int]:
    try:
        copy = descriptors.copy_descriptor(process.pid, fd)
    except OSError as error:
        raise Failed(f"reaching tap {fd} of QEMU {process.pid}", found=error.strerror or str(error)) from error
    try:
        yield copy
    except OSError as error:
        raise Failed(f"setting tap {fd} of QEMU {process.pid}", found=error.strerror or str(error)) from error
    finally:
        os.close(copy)


def _target(entry: Path) -> str:
    try:
        return os.readlink(entry)  # noqa: PTH115 - a target need not be a path
    except OSError:
        return ""


def _only_written(pid: int, fd: int) -> bool:
    """Whether a descriptor is open for writing alone (`flags` of /proc/PID/fdinfo/FD, octal)."""
    try:
        text = (PROC / str(pid) / "fdinfo" / str(fd)).read_text()
    except OSError:
        return False
    flags = next(line.split()[1] for line in text.splitlines() if line.startswith("flags:"))
    return int(flags, 8) & os.O_ACCMODE == os.O_WRONLY


def _said_since(log: Path, start: int) -> str:
    """What QEMU itself said in libvirt's log of the guest since the launch, on one line."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - _LAST_WORDS))
            text = file.read(_LAST_WORDS).decode(errors="replace")
    except OSError:
        return ""
    said = re.findall(r"qemu[-\w]*: (.+)", text)
    printable = ("".join(c if c.isprintable() else "?" for c in line.strip()) for line in said)
    return "; ".join(line for line in dict.fromkeys(printable) if not line.startswith("terminating on signal"))
