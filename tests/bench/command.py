"""hostagent's command line on the bench's host, as a person calls it."""

import subprocess
import sys
from pathlib import Path

HOSTAGENT = Path(sys.executable).with_name("hostagent")


def hostagent(*words: str) -> subprocess.CompletedProcess[str]:
    """What it said, and how it ended; nobody is there to be asked."""
    return subprocess.run(
        [str(HOSTAGENT), *words], check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
