"""Runs commands side by side, each line that they say with the name of who says it.

    python -m tests.bench.side_by_side 'NAME=COMMAND WORD...' ...

Ends with the worst of their exit codes. A signal that ends it ends them first. What those that failed said last is said
once more at the end: the others go on long after it.
"""

import shlex
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from types import FrameType

_LOCK = threading.Lock()
_LAST_WORDS = 25  # lines: a summary of failed tests and what was left on the machine


class Told:
    """A command that runs, and a thread that says what it says."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.last_words: deque[str] = deque(maxlen=_LAST_WORDS)
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._teller = threading.Thread(target=self._tell)
        self._teller.start()

    def _tell(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.last_words.append(line)
            with _LOCK:
                print(f"{self.name}| {line}", end="", flush=True)

    def ended(self) -> int:
        """Wait for the end of both; the exit code, without a sign."""
        code = self.process.wait()
        self._teller.join()
        return abs(code)


def main() -> int:
    asked = [word.partition("=") for word in sys.argv[1:]]
    running = [Told(name, shlex.split(command)) for name, _, command in asked]

    def pass_on(number: int, _frame: FrameType | None) -> None:
        for told in running:
            told.process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    codes = [told.ended() for told in running]
    for told, code in zip(running, codes, strict=True):
        if code:
            print(f"\n{told.name} ended with {code}; its last words:\n{''.join(told.last_words)}", flush=True)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
