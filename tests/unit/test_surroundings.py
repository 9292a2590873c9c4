"""Whether a process lives, and whether it is on its way out."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from hostagent.hypervisor import ProcessId
from hostagent.hypervisor.surroundings import PROC, alive, leaving

_LEADER_ENDS = """
import ctypes, threading
libc = ctypes.CDLL(None)
threading.Thread(target=libc.pause).start()
print("there", flush=True)
input()
print("bye", flush=True)
libc.syscall(60, 0)  # exit(2): of this thread alone, as main loops do when a process is being ended
"""


@contextmanager
def process(script: str) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", script]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "there\n"
        yield started
        started.kill()


def identity(pid: int) -> ProcessId:
    return ProcessId(pid, int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]))


def test_one_that_lives_is_not_leaving() -> None:
    with process("print('there', flush=True); input()") as started:
        one = identity(started.pid)
        assert (alive(one), leaving(one)) == (True, False)
        another = replace(one, start_ticks=one.start_ticks + 1)
        assert (alive(another), leaving(another)) == (False, False)


def test_one_whose_first_thread_has_ended_is_leaving() -> None:
    """Other threads have its files open still."""
    with process(_LEADER_ENDS) as started:
        one = identity(started.pid)
        assert started.stdin is not None and started.stdout is not None
        started.stdin.write("\n")
        started.stdin.flush()
        assert started.stdout.readline() == "bye\n"
        while not leaving(one):
            assert alive(one)
        assert alive(one)


def test_one_that_is_gone_is_neither() -> None:
    with process("print('there', flush=True); input()") as started:
        one = identity(started.pid)
        started.kill()
        started.wait()
        assert (alive(one), leaving(one)) == (False, False)
