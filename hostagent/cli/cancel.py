"""hostagent cancel: asks the update that is at work on this host to stop."""

from __future__ import annotations

import time

import click

from hostagent import wiring
from hostagent.cli import words
from hostagent.cli.common import begin
from hostagent.cli.output import sentence
from hostagent.cli.verbs import Asked, verb
from hostagent.errors import ExitCode, Failed
from hostagent.update.host_lock import Holder, HostLock
from hostagent.update.report import timestamp
from hostagent.update.stopping import ask_to_stop, ended, who_is_at_work

BEGINNING_SECONDS = 5.0
ENDING_SECONDS = 600.0  # what has begun with a guest is finished or undone first


@verb("cancel", example="hostagent cancel", operation="cancel")
@click.option("--no-wait", is_flag=True, help="Only ask; do not wait until it has ended.")
def cancel(asked: Asked, *, no_wait: bool) -> int:
    """Ask the update that is at work on this host to stop, as Ctrl-C does, and wait until it has.

    What has begun with a guest is finished or undone, and no other guest is begun. Asked twice it does the same.
    `hostagent status` says what became of it. Ends with exit code 0 also when nothing is at work, and with 4 when it is
    still at work after ten minutes.
    """
    call = begin(asked)
    lock = HostLock.at(wiring.host_lock_path(call.config))
    holder = who_is_at_work(lock, within_seconds=BEGINNING_SECONDS, pause=time.sleep, monotonic=time.monotonic)
    if holder is None:
        call.out.show(_document(None, reached=False, over=True), sentence("Nothing is at work on this host."))
        return ExitCode.DONE
    reached = not holder.is_guard and ask_to_stop(holder.process)
    did = f"Asked to stop: {holder}." if reached else f"The update has died, and its guard sees to it: {holder}."
    over = False
    if not no_wait:
        call.out.say(sentence(did))
        over = ended(lock, holder, within_seconds=ENDING_SECONDS, pause=time.sleep, monotonic=time.monotonic)
        if not over:
            raise Failed(
                "waiting for it to stop",
                expected=f"it to end within {words.duration(ENDING_SECONDS)}",
                found=f"still at work: {holder}",
                hint="hostagent status",
            )
    last = "It has ended. What became of it: hostagent status" if over else did
    call.out.show(_document(holder, reached=reached, over=over), sentence(last))
    return ExitCode.DONE


def _document(holder: Holder | None, *, reached: bool, over: bool) -> dict[str, object]:
    who = holder and {"pid": holder.process.pid, "doing": holder.doing, "since": timestamp(holder.since)}
    return {"at_work": who, "asked": reached, "ended": over}
