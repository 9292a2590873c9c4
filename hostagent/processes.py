"""Other programs: the only door to subprocess.

Nothing here uses a shell, everything has a deadline, and what a program says is kept only up to a limit.
"""

import asyncio
import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import IO

import psutil

from hostagent.errors import Failed

STDOUT_LIMIT = 4 * 1024 * 1024  # more than any program asked here has to say
STDERR_LIMIT = 64 * 1024
_CHUNK = 64 * 1024

WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")
"""Before a program that must not outlive who waits for it: recovery would undo what it goes on doing. util-linux."""

DEVNULL = subprocess.DEVNULL
PIPE = subprocess.PIPE
TimeoutExpired = subprocess.TimeoutExpired
Process = subprocess.Popen[bytes]
"""A program that was started and left running."""


@dataclass(frozen=True)
class Completed:
    """A program that ended with an accepted exit status."""

    argv: tuple[str, ...]
    exit_status: int
    stdout: str
    stderr: str  # its last 64 KiB


def c_locale(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Our environment in the C locale, so that what programs print can be read, plus `more`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))}
    return {**kept, "LC_ALL": "C", **(more or {})}


def run(
    argv: Sequence[str],
    *,
    within_seconds: float,
    input: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    accept: Collection[int] = (0,),
) -> Completed:
    """Run a program to its end and return what it said.

    `env` is the whole environment; None means ours in the C locale. A program that has exited is done, even
    if something it left in the background still holds its output. One that is late is killed with its whole
    process group. Raises Failed: not startable, exit status not in `accept`, late, or talking without end.
    """
    doing = f"running {_short(argv)}"
    with _as_stdin(input) as stdin:
        process = _spawn(
            doing,
            argv,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            cwd=cwd,
            new_session=True,  # Ctrl-C at the terminal is for us alone; a late program dies with its children
        )
    try:
        stdout, stderr = _listen(doing, process, within_seconds)
    finally:
        _end(process)
    if process.returncode not in accept:
        raise Failed(doing, expected=_statuses(accept), found=f"{_status(process.returncode)}{_last(stderr)}")
    return Completed(tuple(argv), process.returncode, _text(stdout), _text(stderr))


def start(
    argv: Sequence[str],
    *,
    pass_fds: Sequence[int] = (),
    stdin: int | IO[bytes] | None = DEVNULL,
    stdout: int | IO[bytes] | None = DEVNULL,
    stderr: int | IO[bytes] | None = DEVNULL,
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
    new_session: bool = True,
) -> Process:
    """Start a program and leave it running; the caller waits for it or gives it away.

    `pass_fds` stay open under their own numbers. None for a stream means ours. With `new_session` it
    outlives our terminal. Raises Failed when it cannot be started.
    """
    return _spawn(
        f"starting {_short(argv)}",
        argv,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=env,
        cwd=cwd,
        pass_fds=pass_fds,
        new_session=new_session,
    )


@asynccontextmanager
async def listening_to(pipe: IO[bytes]) -> AsyncIterator[asyncio.StreamReader]:
    """What comes out of a program that was started with that pipe; it is held back where nobody reads."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    try:
        yield reader
    finally:
        transport.close()


async def exited(process: Process) -> int:
    """Wait until it has ended, whoever else holds its output; what it ended with, -n for signal n.

    asyncio's own processes are killed when the loop that began them ends: these are not.
    """
    if process.poll() is not None:
        return process.wait()
    over = asyncio.Event()
    loop, fd = asyncio.get_running_loop(), os.pidfd_open(process.pid)
    loop.add_reader(fd, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    return process.wait()


def executables() -> Iterator[tuple[int, str]]:
    """Every process that runs a file: its pid, and the file's path."""
    for process in psutil.process_iter(["exe"]):
        if process.info["exe"]:
            yield process.pid, process.info["exe"]


def _spawn(
    doing: str,
    argv: Sequence[str],
    *,
    stdin: int | IO[bytes] | None,
    stdout: int | IO[bytes] | None,
    stderr: int | IO[bytes] | None,
    env: Mapping[str, str] | None,
    cwd: str | None = None,
    pass_fds: Sequence[int] = (),
    new_session: bool,
) -> Process:
    try:
        return subprocess.Popen(
            list(argv),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=c_locale() if env is None else dict(env),
            cwd=cwd,
            pass_fds=tuple(pass_fds),
            start_new_session=new_session,
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in an argument
        raise Failed(doing, found=getattr(error, "strerror", None) or str(error)) from error


def _as_stdin(data: bytes | None) -> IO[bytes]:
    """A file to read `data` from: unlike a pipe it cannot block us while the program blocks on its output."""
    if data is None:
        return open(os.devnull, "rb")  # noqa: PTH123
    file = os.fdopen(os.memfd_create("hostagent-input"), "w+b")
    file.write(data)
    file.seek(0)
    return file


def _listen(doing: str, process: Process, within_seconds: float) -> tuple[bytes, bytes]:
    """Collect both outputs until the program exits; Failed when it is late or says too much."""
    assert process.stdout is not None and process.stderr is not None  # noqa: S101 -- both are pipes, for mypy
    deadline = time.monotonic() + within_seconds
    out, err = process.stdout.fileno(), process.stderr.fileno()
    said = {out: bytearray(), err: bytearray()}
    exited = os.pidfd_open(process.pid)
    poll = select.poll()
    for fd in (out, err, exited):
        poll.register(fd, select.POLLIN)
    for fd in (out, err):
        os.set_blocking(fd, False)
    try:
        running = True
        while running:
            left = deadline - time.monotonic()
            ready = {fd for fd, _ in poll.poll(max(0, left * 1000))}
            if not ready and left <= 0:
                raise Failed(doing, expected=f"an exit within {within_seconds:g} s", found="none, so it was killed")
            running = exited not in ready
            for fd in (out, err):
                # After the exit everything it wrote is in the pipe: drain it, but wait for nobody else.
                while (fd in ready or not running) and (chunk := _read(fd)) is not None:
                    if not chunk:
                        with suppress(KeyError):
                            poll.unregister(fd)
                        break
                    said[fd] += chunk
                    del said[err][:-STDERR_LIMIT]
                    if len(said[out]) > STDOUT_LIMIT:
                        raise Failed(doing, expected=f"at most {STDOUT_LIMIT} bytes of output", found="more")
                    if running:
                        break
    finally:
        os.close(exited)
    process.wait()
    return bytes(said[out]), bytes(said[err])


def _read(fd: int) -> bytes | None:
    """What is there now: None when nothing is, empty at the end."""
    try:
        return os.read(fd, _CHUNK)
    except BlockingIOError:
        return None


def _end(process: Process) -> None:
    """See the program gone, however we got here, and close our ends."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _short(argv: Sequence[str]) -> str:
    line = shlex.join(argv)
    return line if len(line) <= 160 else line[:157] + "..."


def _status(returncode: int) -> str:
    if returncode >= 0:
        return str(returncode)
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"


def _statuses(accept: Collection[int]) -> str:
    return "exit " + " or ".join(str(status) for status in sorted(accept))


def _last(stderr: bytes) -> str:
    lines = [line.strip() for line in _text(stderr).splitlines() if line.strip()]
    return f": {lines[-1][:300]}" if lines else ""


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
