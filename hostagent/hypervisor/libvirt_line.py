"""A connection to a libvirt, this host's or another's: each call has a deadline, and its errors become ours."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import libvirt
import libvirt_qemu

from hostagent.clock import AgentError, AgentFault, GuestAgent
from hostagent.errors import Failed, HostagentError, OutcomeUnknown, Refused
from hostagent.facts import GuestState
from hostagent.hypervisor.deadline import Worker

T = TypeVar("T")

REPLY_LIMIT = 1 << 16  # an agent's answer is hostile input
POLL_SECONDS = 0.02
CLOSE_SECONDS = 1.0  # nobody needs an answer to that, and over a network that is gone there is none

STATES = {
    libvirt.VIR_DOMAIN_RUNNING: GuestState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: GuestState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: GuestState.PAUSED_OTHERWISE,
    libvirt.VIR_DOMAIN_SHUTDOWN: GuestState.SHUTTING_DOWN,
    libvirt.VIR_DOMAIN_SHUTOFF: GuestState.SHUT_OFF,
    libvirt.VIR_DOMAIN_CRASHED: GuestState.CRASHED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: GuestState.PM_SUSPENDED,
}
PAUSES = {
    libvirt.VIR_DOMAIN_PAUSED_USER: "user",
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION: "migration",
    libvirt.VIR_DOMAIN_PAUSED_SAVE: "save",
    libvirt.VIR_DOMAIN_PAUSED_DUMP: "dump",
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: "I/O error",
    libvirt.VIR_DOMAIN_PAUSED_WATCHDOG: "watchdog",
    libvirt.VIR_DOMAIN_PAUSED_SNAPSHOT: "snapshot",
    libvirt.VIR_DOMAIN_PAUSED_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PAUSED_STARTING_UP: "starting up",
    libvirt.VIR_DOMAIN_PAUSED_POSTCOPY: "post-copy",
}
SHUT_OFF = {
    libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN: "",
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: "shut down",
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: "destroyed",
    libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_SHUTOFF_SAVED: "saved",
    libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED: "migrated",
    libvirt.VIR_DOMAIN_SHUTOFF_FAILED: "failed",
    libvirt.VIR_DOMAIN_SHUTOFF_DAEMON: "daemon",  # libvirt's, which ended it as it came back
}


class Gone(Exception):
    """libvirt does not know the guest (any more)."""


@contextmanager
def known(doing: str, uuid: str) -> Iterator[None]:
    """Raises Failed when libvirt does not know the guest (any more)."""
    try:
        yield
    except Gone as error:
        raise Failed(doing, expected=f"guest {uuid}", found="none") from error


_LOST: list[libvirt.virConnect] = []
"""Connections with a call that was late. Whoever lets go of the last of one closes it, and waits for an answer to that
without end: were it the garbage collector, it would be in the middle of anything."""
_LOSING = threading.Lock()  # several threads at once, when libvirt falls silent


def _lose(connection: libvirt.virConnect) -> None:
    """Keep it for as long as nobody has seen its end."""
    with _LOSING:
        _LOST[:] = [lost for lost in _LOST if _is_alive(lost)]
        _LOST.append(connection)


def _is_alive(connection: libvirt.virConnect) -> bool:
    """Asks nobody: whether the socket is open (virConnectIsAlive)."""
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


class LibvirtLine:
    """One connection for each thread, made anew when it broke or was closed; `disconnect` once it is not needed."""

    hint = "is libvirt's daemon running?"  # to whoever it does not answer

    def __init__(self, uri: str, call_seconds: float) -> None:
        self._uri = uri
        self._call_seconds = call_seconds
        self._opened: dict[threading.Thread, tuple[libvirt.virConnect, Worker]] = {}
        libvirt.registerErrorHandler(lambda *_: None, None)  # errors are raised; libvirt would print them as well

    @contextmanager
    def agent(self, uuid: str) -> Iterator[GuestAgent]:
        own = LibvirtLine(self._uri, self._call_seconds)  # a connection of its own: agents are asked side by side
        try:
            yield _Agent(own, uuid)
        finally:
            own.disconnect()

    def resume(self, uuid: str) -> None:
        """Have it run; done when it does."""

        def work() -> None:
            if domain.state()[0] != libvirt.VIR_DOMAIN_RUNNING:  # for which it is an error
                domain.resume()

        with known("resuming a guest", uuid):
            domain = self._domain(uuid)
            self._on(domain, "resuming it", work)

    def disconnect(self) -> None:
        """Close this thread's connection, and those of threads that have ended."""
        for thread in list(self._opened):
            if thread is not threading.current_thread() and thread.is_alive():
                continue
            if (opened := self._opened.pop(thread, None)) is not None:  # another thread may be closing it as well
                self._close(*opened)

    @staticmethod
    def _close(connection: libvirt.virConnect, worker: Worker) -> None:
        try:
            worker.call("closing the connection", connection.close, CLOSE_SECONDS)
        except OutcomeUnknown:
            _lose(connection)
        except libvirt.libvirtError:
            pass  # it was broken
        worker.end()

    @staticmethod
    def _wait_until(within_seconds: float, condition: Callable[[], bool]) -> bool:
        ends = time.monotonic() + within_seconds
        while not condition():
            if time.monotonic() > ends:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def _domain(self, uuid: str) -> libvirt.virDomain:
        return self._ask(f"finding guest {uuid}", lambda c: c.lookupByUUIDString(uuid))

    def _on(
        self,
        domain: libvirt.virDomain,
        doing: str,
        work: Callable[[], T],
        within_seconds: float | None = None,
    ) -> T:
        return self._ask(f"{domain.name()}: {doing}", lambda _: work(), within_seconds=within_seconds)

    def _ask(self, doing: str, work: Callable[[libvirt.virConnect], T], *, within_seconds: float | None = None) -> T:
        """One call; a connection that broke (the daemon was restarted) is made anew once."""
        seconds = within_seconds or self._call_seconds
        for fresh in (threading.current_thread() not in self._opened, True):
            with asking(doing, self.hint):
                try:
                    connection, worker = self._connect(fresh=fresh)
                    return worker.call(doing, lambda c=connection: work(c), seconds)  # type: ignore[misc]
                except OutcomeUnknown:
                    if (late := self._opened.pop(threading.current_thread(), None)) is not None:
                        _lose(late[0])  # its worker's thread may hang for ever
                    raise
                except libvirt.libvirtError as error:
                    if fresh or not _is_broken(error):
                        raise
        raise AssertionError("the second turn returns or raises")

    def _connect(self, *, fresh: bool) -> tuple[libvirt.virConnect, Worker]:
        """Each thread has its own: guests are saved and restored side by side."""
        me = threading.current_thread()
        if fresh or me not in self._opened:
            self.disconnect()
            worker = Worker()
            uri, opened = self._uri, _asking_nobody(self._uri)
            connection = worker.call(f"connecting to {uri}", lambda: libvirt.open(opened), self._call_seconds)
            driver = worker.call(f"connecting to {uri}", connection.getType, self._call_seconds)
            if driver != "QEMU":
                raise Refused(f"connecting to {uri}", expected="libvirt's QEMU driver", found=driver)
            self._opened[me] = connection, worker
        return self._opened[me]


def state_of(number: int, why: int) -> tuple[GuestState, str]:
    """libvirt's state and reason in our words."""
    state = STATES.get(number, GuestState.UNKNOWN)
    if state is GuestState.PAUSED_OTHERWISE and why == libvirt.VIR_DOMAIN_PAUSED_USER:
        state = GuestState.PAUSED_BY_OWNER
    reasons = {libvirt.VIR_DOMAIN_PAUSED: PAUSES, libvirt.VIR_DOMAIN_SHUTOFF: SHUT_OFF}.get(number)
    return state, reasons.get(why, str(why)) if reasons else ""


class _Agent:
    """A guest's agent, through libvirt; the deadline is the call's own, nothing is set on the guest."""

    def __init__(self, api: LibvirtLine, uuid: str) -> None:
        self._api = api
        self._uuid = uuid

    def ask(self, command: str, arguments: dict[str, object] | None, within_seconds: float) -> object:
        words = json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})})
        seconds = max(1, round(within_seconds))
        try:
            domain = self._api._domain(self._uuid)
            said = self._api._on(
                domain,
                f"asking its agent: {command}",
                lambda: libvirt_qemu.qemuAgentCommand(domain, words, seconds, 0),
                within_seconds=seconds + 5.0,  # libvirt first waits for the guest's turn
            )
        except _AgentSilent as error:
            raise AgentError(error.fault, str(error)) from error
        except (Gone, HostagentError) as error:
            fault = AgentFault.TIMEOUT if isinstance(error, OutcomeUnknown) else AgentFault.NO_AGENT
            raise AgentError(fault, str(error)) from error
        if len(said) > REPLY_LIMIT:
            raise AgentError(AgentFault.BAD_REPLY, f"{command}: {len(said)} characters")
        try:
            reply = json.loads(said)
        except (ValueError, RecursionError) as error:
            raise AgentError(AgentFault.BAD_REPLY, f"{command}: not JSON") from error
        if not isinstance(reply, dict) or "return" not in reply:
            raise AgentError(AgentFault.BAD_REPLY, f"{command}: no return value")
        value: object = reply["return"]
        return value


class _AgentSilent(HostagentError):
    """The agent did not answer, or refused."""

    def __init__(self, doing: str, fault: AgentFault, found: str) -> None:
        super().__init__(doing, found=found)
        self.fault = fault


_AGENT_FAULTS = {
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE: AgentFault.TIMEOUT,
    libvirt.VIR_ERR_AGENT_UNSYNCED: AgentFault.TIMEOUT,
    # virterror.h; a binding built against an older libvirt does not name these two
    112: AgentFault.TIMEOUT,  # VIR_ERR_AGENT_COMMAND_TIMEOUT
    113: AgentFault.COMMAND_FAILED,  # VIR_ERR_AGENT_COMMAND_FAILED
}


@contextmanager
def asking(doing: str, hint: str) -> Iterator[None]:
    """libvirt's errors as ours, in one place."""
    try:
        yield
    except libvirt.libvirtError as error:
        code, said = error.get_error_code(), error.get_error_message() or str(error)
        if code == libvirt.VIR_ERR_NO_DOMAIN:
            raise Gone(doing) from error
        if code in _AGENT_FAULTS:
            disabled = "has been disabled" in said or "not found" in said
            raise _AgentSilent(doing, AgentFault.COMMAND_DISABLED if disabled else _AGENT_FAULTS[code], said) from error
        if code == libvirt.VIR_ERR_OPERATION_INVALID and "agent" in said.lower():
            raise _AgentSilent(doing, AgentFault.NO_AGENT, said) from error
        if _is_broken(error) or code in {libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_AUTH_FAILED}:
            if _NOT_VERIFIED in said:
                raise Refused(doing, expected="libvirt to answer", found=_of_a_key(said), hint=_KEY_HINT) from error
            raise Refused(doing, expected="libvirt to answer", found=said, hint=hint) from error
        raise Failed(doing, found=said) from error


def _asking_nobody(uri: str) -> str:
    """ssh would ask on the terminal that hostagent was called from, and wait past our deadline (libvirt, "URIs")."""
    scheme, _, rest = uri.partition("://")
    if not scheme.endswith("+ssh") or "no_tty=" in rest:
        return uri
    return f"{uri}{'&' if '?' in rest else '?'}no_tty=1"


def _of_a_key(said: str) -> str:
    """In a line: what ssh says to a host's key that is not the known one fills a screen (OpenSSH, sshconnect.c)."""
    known = "another than the one in known_hosts" if _CHANGED in said else "not in known_hosts"
    return f"that ssh refuses it: its host key is {known}"


_NOT_VERIFIED = "Host key verification failed"
_CHANGED = "IDENTIFICATION HAS CHANGED"
_KEY_HINT = "see whether the key is its own; then put it into root's known_hosts, on the host that it is reached from"


def _is_broken(error: Any) -> bool:
    return error.get_error_code() in {
        libvirt.VIR_ERR_RPC,
        libvirt.VIR_ERR_SYSTEM_ERROR,
        libvirt.VIR_ERR_INVALID_CONN,
    } and (error.get_error_domain() in {libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE, libvirt.VIR_FROM_NONE})
