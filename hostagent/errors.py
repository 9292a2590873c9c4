"""Every error that leaves a border of hostagent, as one small tree.

::

    HostagentError                what was being done, what was expected and found, what to do next
    ├── UsageError        exit 2  the words, the configuration or a file given are wrong
    ├── Refused           exit 3  nothing was touched
    ├── Failed            exit 4  it went wrong and was rolled back
    ├── NeedsOperator     exit 5  a person has to act; the hint holds the command
    └── OutcomeUnknown            no answer in time; ask the world. Never leaves the engine
"""

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What the command line ends with."""

    DONE = 0
    LOWER_RUNG = 1
    USAGE = 2
    REFUSED = 3
    FAILED = 4
    NEEDS_OPERATOR = 5
    UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h: a fault of hostagent itself
    SIGNAL = 128  # plus the signal's number


class HostagentError(Exception):
    """An error that prints as one line a person can act on."""

    exit_code: ClassVar[ExitCode] = ExitCode.FAILED
    kind: ClassVar[str] = "error"  # bounded, for metrics and the journal

    def __init__(
        self,
        doing: str,
        *,
        expected: str | None = None,
        found: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(doing)
        self.doing = doing
        self.expected = expected
        self.found = found
        self.hint = hint

    def __str__(self) -> str:
        parts = []
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        if self.found is not None:
            parts.append(f"found {self.found}" if self.expected is not None else self.found)
        line = self.doing + (": " + ", ".join(parts) if parts else "")
        return f"{line} (hint: {self.hint})" if self.hint else line


class UsageError(HostagentError):
    """The words given are wrong; nothing was touched."""

    exit_code = ExitCode.USAGE
    kind = "usage"


class Refused(HostagentError):
    """hostagent would not begin; nothing was touched."""

    exit_code = ExitCode.REFUSED
    kind = "refused"


class Failed(HostagentError):
    """It went wrong before the commit point; what had begun is undone by the engine."""

    exit_code = ExitCode.FAILED
    kind = "failed"


class NeedsOperator(HostagentError):
    """Neither forward nor back is possible without a person."""

    exit_code = ExitCode.NEEDS_OPERATOR
    kind = "needs-operator"


class OutcomeUnknown(HostagentError):
    """No answer within the deadline: what was asked may or may not have happened."""

    kind = "outcome-unknown"
