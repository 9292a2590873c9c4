"""Runs commands side by side, each line that they say with the name of who says it.

    python -m tests.bench.side_by_side 'NAME=COMMAND WORD...' ...

Ends with the worst of their exit codes. A signal that ends it ends them first.
"""

import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import FrameType

_LOCK = threading.Lock()


def run(name: str, command: Sequence[str]) -> tuple[subprocess.Popen[str], threading.Thread]:
    """Start one; the thread ends with its output."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )

    def tell() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with _LOCK:
                print(f"{name}| {line}", end="", flush=True)

    teller = threading.Thread(target=tell)
    teller.start()
    return process, teller


def main() -> int:
    asked = [word.partition("=") for word in sys.argv[1:]]
    running = [run(name, shlex.split(command)) for name, _, command in asked]

    def pass_on(number: int, _frame: FrameType | None) -> None:
        for process, _ in running:
            process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    for process, teller in running:
        process.wait()
        teller.join()
    return max(abs(int(process.returncode)) for process, _ in running)


if __name__ == "__main__":
    sys.exit(main())
