"""The command line: `main` finds the verb, runs it, and turns whatever comes of it into words and an exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import click

from hostagent import __version__
from hostagent.cli.signals import Stopped
from hostagent.cli.verbs import Asked, Verbs
from hostagent.errors import ExitCode, HostagentError, UsageError
from hostagent.front import UNANSWERED, Unanswered

_VERBS = {
    "inspect": ("hostagent.cli.inspect:inspect", "See the host and its guests, and what can be updated in place."),
    "qemu": ("hostagent.cli.qemu:qemu", "Add QEMU versions beside the system's own, or list them."),
    "guest": (
        "hostagent.cli.guest:guest",
        "See and say how a guest may be updated; put its RAM where updates keep it.",
    ),
    "plan": ("hostagent.cli.plan:plan", "See what an update would do to each guest; touches none."),
    "update": ("hostagent.cli.update:update", "Bring guests onto another version while they run, their RAM kept."),
    "cancel": ("hostagent.cli.cancel:cancel", "Have the update that is at work stop where that is safe."),
    "rollback": ("hostagent.cli.rollback:rollback", "Bring the guests of an update back to where they were."),
    "status": ("hostagent.cli.status:status", "See what became of updates, and whether one is open."),
    "history": ("hostagent.cli.history:history", "See every update of this host, or one step by step."),
    "recover": ("hostagent.cli.recover:recover", "Finish or undo what an interrupted update left open."),
    "metrics": ("hostagent.cli.metrics:metrics", "Print all metrics in Prometheus' text format."),
    "agent": ("hostagent.cli.agent:agent", "Serve this host: heal, watch the guests, serve metrics and the API."),
    "setup": ("hostagent.cli.setup:setup", "Give this host what in-place updates need, or take it away again."),
}


class Fault(HostagentError):
    """Something that nobody foresaw: hostagent's own fault."""

    exit_code = ExitCode.UNEXPECTED
    kind = "fault"

    def __init__(self, error: Exception) -> None:
        super().__init__(
            "a fault of hostagent itself",
            found=f"{type(error).__name__}: {error}",
            hint="hostagent status; and please report it, with what --debug shows",
        )


class Main(Verbs):
    """The outermost group: every error ends here."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> NoReturn:
        """Run the command line; exits."""
        words = list(sys.argv[1:] if args is None else args)
        # Known before anything is parsed, so that an error in the words themselves is told as asked.
        asked = Asked(as_json="--json" in words, debug="--debug" in words)
        code = self._exit_code(words, asked)
        if code == ExitCode.UNEXPECTED and args is None:
            _leave_at_once(code)
        sys.exit(code)

    def _exit_code(self, words: list[str], asked: Asked) -> int:
        try:
            code = super().main(words, prog_name="hostagent", standalone_mode=False, obj=asked)
            sys.stdout.flush()
        except click.Abort:  # Ctrl-C
            return ExitCode.SIGNAL + signal.SIGINT
        except Unanswered:
            return UNANSWERED
        except Stopped as stopped:
            return ExitCode.SIGNAL + stopped.number
        except Exception as error:
            return _told(error, asked)
        return int(code or ExitCode.DONE)


def _leave_at_once(code: int) -> NoReturn:
    """After a fault a guest may stand still, and its guard acts once this process is gone: no tidying up."""
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _told(error: Exception, asked: Asked) -> int:
    """Tell a person, or a program, what went wrong."""
    from hostagent.cli.output import Output, silence  # noqa: PLC0415 - not needed for --help

    out = Output(as_json=asked.as_json)
    if isinstance(error, BrokenPipeError):
        silence("stdout")
        return ExitCode.DONE
    if asked.debug:
        out.backtrace(error)
    if isinstance(error, click.ClickException):
        error = _usage_error(error)
    if not isinstance(error, HostagentError):
        error = Fault(error)
    out.error(error)
    return error.exit_code


def _usage_error(error: click.ClickException) -> UsageError:
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else "hostagent"
    return UsageError("reading the command line", found=error.format_message(), hint=f"{path} --help")


@click.group(cls=Main, places=_VERBS, name="hostagent", context_settings={"max_content_width": 100})
@click.version_option(__version__, prog_name="hostagent")
def main() -> None:
    """Update the host under running libvirt guests, with their memory kept.

    Exit codes: 0 done, or nothing to do; 1 done, some guest by a lower method than planned; 2 usage or configuration;
    3 refused, nothing was touched; 4 failed and rolled back, or a roll stopped; 5 a person has to act; 70 a fault of
    hostagent's own; 128+n ended by signal n.
    """
