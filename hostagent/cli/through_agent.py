"""Verbs through the agent, when it runs: it runs the same verb for whoever asks, and what it says is shown here.

So the output is the same, and who is in the agent's group need not be root. Root goes on by himself without an agent.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hostagent import config_files
from hostagent.cli.signals import STOPPING, Signals
from hostagent.cli.verbs import Asked
from hostagent.errors import ExitCode, HostagentError, UsageError
from hostagent.front import AGENT_VARIABLE, ATTACHED, OFF, UNANSWERED, Front, digest_of

if TYPE_CHECKING:
    from hostagent.cli.output import Output
    from hostagent.operations import Operation, Parameters
    from hostagent.remote import Agent, Call

_SOCKET, _SETTINGS = "/run/hostagent/agent.sock", "/etc/hostagent/hostagent.toml"
_CONNECT_SECONDS = 5.0
_LOOK_SECONDS = 0.1
_INTERRUPTED = ExitCode.SIGNAL + signal.SIGINT


def done_by_agent(asked: Asked, name: str, params: Mapping[str, Any]) -> int | None:
    """Have the agent carry the operation out; what it ended with. None: it is to be done in this process.

    Raises UsageError, with what to do, when the agent cannot be asked and whoever asks is not root.
    """
    if asked.no_agent or asked.connect is not None or os.environ.get(AGENT_VARIABLE) == OFF:
        return None
    settings = os.path.abspath(asked.config or _SETTINGS)  # noqa: PTH100 - as text: the agent has it so, links and all
    path = _socket_path(Path(settings))
    connection = _connect(path)
    if connection is None:
        return None
    from hostagent.remote import Agent, NotThisAgent  # noqa: PLC0415 - most have no agent, and it takes its time

    agent = Agent(path, settings)
    try:
        return _carried_out(_Chosen(agent, connection, name), asked, params)
    except NotThisAgent as other:
        if os.geteuid() == 0:
            return None
        raise other.error from other
    finally:
        connection.close()


def _socket_path(settings: Path) -> Path:
    """What the settings say; whether they are right is for whoever carries the verb out to see."""
    try:
        table = config_files.merge(config_files.read(settings)).get("agent")
    except HostagentError:
        return Path(_SOCKET)
    named = table.get("socket") if isinstance(table, dict) else None
    return Path(named if isinstance(named, str) else _SOCKET)


def _connect(path: Path) -> socket.socket | None:
    """None: there is no agent, and root needs none."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    made.settimeout(_CONNECT_SECONDS)
    try:
        made.connect(str(path))
    except (OSError, ValueError) as error:
        made.close()
        if os.geteuid() == 0:
            return None
        raise _not_reached(path, error) from error
    return made


def _not_reached(path: Path, error: Exception) -> UsageError:
    asking, user = "asking hostagent's agent", f"user {os.geteuid()}"
    if getattr(error, "errno", None) in (errno.EACCES, errno.EPERM):
        hint = "use sudo; or have yourself put into its group, hostagent, and log in again"
        return UsageError(asking, expected="root, or a member of its group", found=user, hint=hint)
    found, hint = f"{user}, and no agent at {path}", "use sudo, or: systemctl start hostagent"
    return UsageError(asking, expected="it to run, or to be root", found=found, hint=hint)


class _Chosen:
    """An operation of an agent; the connection is for its first call."""

    def __init__(self, agent: Agent, connection: socket.socket, name: str) -> None:
        from hostagent.operations import operation  # noqa: PLC0415 - not without an agent

        self.operation: Operation = operation(name)
        self._agent = agent
        self._connection: socket.socket | None = connection

    def call(self, wanted: Parameters, front: Front) -> Call:
        connection, self._connection = self._connection, None
        return self._agent.call(self.operation, wanted, front, connection)


def _carried_out(chosen: _Chosen, asked: Asked, params: Mapping[str, Any]) -> int:
    from hostagent.cli.output import Output  # noqa: PLC0415 - not needed for --help
    from hostagent.printable import one_line  # noqa: PLC0415

    save: Path | None = params.get("save")
    wanted, out = _parameters(chosen.operation, params), Output(as_json=asked.as_json)
    front = replace(out.as_front(debug=asked.debug), saves=one_line(str(save)) if save else "")
    shown, code = _once(chosen, wanted, out, front)
    while code == UNANSWERED:
        from hostagent.cli.carry import said_no  # noqa: PLC0415 - whoever may be asked has loaded it

        if not out.answered_yes():
            raise said_no()
        shown, code = _once(chosen, wanted, out, replace(front, said_yes_to=digest_of(shown)))
    if save is not None and (content := shown.partition(ATTACHED)[2]):
        from hostagent.update.files import replace as put  # noqa: PLC0415 - not without an agent

        put(save, content.encode())
    return code


def _parameters(operation: Operation, params: Mapping[str, Any]) -> Parameters:
    """As the API has them; files are read here, by whoever may read them."""
    from pydantic import ValidationError  # noqa: PLC0415 - not without an agent

    from hostagent.operations import wrong  # noqa: PLC0415

    kind = operation.parameters
    found = {name: value for name, value in params.items() if name in kind.model_fields and value is not None}
    if "save" in params:
        from hostagent.cli.plan import require_folder  # noqa: PLC0415 - the verb itself

        found["save"] = params["save"] is not None
        if params["save"] is not None:
            require_folder(params["save"])
    if params.get("saved") is not None:
        from hostagent.cli.plan import saved_plan  # noqa: PLC0415 - the verb has loaded it

        found["plan"] = saved_plan(params["saved"])
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        raise wrong(error) from error


def _once(chosen: _Chosen, wanted: Parameters, out: Output, front: Front) -> tuple[str, int]:
    """Have it carried out, and show what it says; that, with what is attached, and what it ended with."""
    said: list[str] = []
    with _signals(held=chosen.operation.changes) as signals:
        call = chosen.call(wanted, front)
        with _passed_on(signals, call):
            attached = False
            for one in call:
                text = one.text
                if not one.to_stderr:
                    said.append(text)
                    text, mark, _ = ("", "", "") if attached else text.partition(ATTACHED)
                    attached = attached or bool(mark)
                out.relay(text, to_stderr=one.to_stderr)
        code = call.exit_code
    assert code is not None  # noqa: S101 - the call has ended
    if call.error is not None:
        out.error(call.error)
    if code == _INTERRUPTED and signals.first is not None:
        code = ExitCode.SIGNAL + signals.first  # it was asked to stop by the agent, whose signal is always the same
    return "".join(said), code


@contextmanager
def _signals(*, held: bool) -> Iterator[Signals]:
    """What changes something is asked to stop; who only looks is left, which ends it."""
    signals = Signals()
    if not held:
        yield signals
        return
    with signals.held():
        yield signals


@contextmanager
def _passed_on(signals: Signals, call: Call) -> Iterator[None]:
    """Ask it to stop once a signal came, again and again until it has heard."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_SECONDS):
            if signals.cancelled() and call.stop():
                return

    watching = threading.Thread(target=watch, name="signals", daemon=True)
    # Signals are for this thread alone, which waits for the agent and must be woken by them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        watching.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield
    finally:
        over.set()
        watching.join()
