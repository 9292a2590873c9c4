"""What runs on the second host: libvirt, and hostagent with both QEMUs, until the first one lets go of it.

Says "up" once it is in its namespaces, waits for a line, which means that the network was plugged in, says "ready", and
ends when its input does.
"""

import argparse
import sys
from pathlib import Path

from tests.bench.lab import Lab
from tests.bench.link import B, bring_up
from tests.bench.listening import ListeningHost

UP, READY = "up\n", "ready\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.second_host")
    parser.add_argument("--ram", required=True)
    parser.add_argument("--credentials", type=Path, required=True)
    asked = parser.parse_args()
    _say(UP)
    sys.stdin.readline()
    with ListeningHost(B, asked.credentials, ram=asked.ram) as host:
        bring_up(B)
        Lab.set_up(start=host.start_command)
        _say(READY)
        sys.stdin.read()


def _say(word: str) -> None:
    sys.stdout.write(word)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
