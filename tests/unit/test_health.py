"""The health gate: what is complained of, what is excused, what is asked of the outside, and how long it is given."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from journals import Writer

from hostagent.clock import AgentError, AgentFault, Reason
from hostagent.clock import Outcome as ClockOutcome
from hostagent.config import Config, HealthSettings
from hostagent.errors import Failed, HostagentError
from hostagent.facts import GuestState
from hostagent.hypervisor import Standing
from hostagent.plan import GuestPlan, Method, Verdict
from hostagent.planning.health import Before, Check, Now, Sign, checks_of, complaints_of
from hostagent.planning.update_domains import Placed
from hostagent.update import probes
from hostagent.update.health import Gate
from hostagent.update.journal import Outcome, UpdateRecord
from hostagent.update.subject import Ports

RAN = Before("web1", "uuid of web1", GuestState.RUNNING, answered=True)
RUNS = Now(GuestState.RUNNING, "", None)


def said(before: Before, now: Now) -> list[str]:
    return [str(complaint) for complaint in complaints_of(before, now)]


# -- what is complained of


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (RAN, RUNS),
        (replace(RAN, state=GuestState.PAUSED_BY_OWNER, answered=False), Now(GuestState.PAUSED_BY_OWNER, "user", None)),
        (replace(RAN, state=GuestState.PAUSED_BY_OWNER), RUNS),  # its owner has resumed it
        (replace(RAN, answered=False), replace(RUNS, silent="agent-timeout")),
        (RAN, replace(RUNS, clock_was_read=True, clock_outcome="corrected")),
        (RAN, Now(None, "", None, left=True)),
    ],
)
def test_as_well_as_before(before: Before, now: Now) -> None:
    assert said(before, now) == []


@pytest.mark.parametrize(
    "reason", [Reason.POLICY, Reason.HOST_UNSYNCED, Reason.AHEAD, Reason.COMMAND_DISABLED, "paused"]
)
def test_a_clock_that_could_not_have_been_set_before_is_excused(reason: str) -> None:
    now = replace(RUNS, clock_was_read=True, clock_outcome=ClockOutcome.UNCORRECTED, clock_reason=reason)
    assert said(RAN, now) == []


def test_a_clock_that_was_never_read_is_excused() -> None:
    assert said(RAN, replace(RUNS, clock_outcome="uncorrected", clock_reason="no-agent")) == []


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (Now(GuestState.SHUT_OFF, "crashed", None), "web1: expected it running as before, found it shut off (crashed)"),
        (
            Now(GuestState.PAUSED_BY_OWNER, "", None),
            "web1: expected it running as before, found it paused by its owner",
        ),
        (Now(None, "", None), "web1: expected it running as before, found no such guest"),
        (replace(RUNS, silent="no-agent"), "web1: expected its guest agent to answer, as before, found no-agent"),
        (
            replace(RUNS, clock_was_read=True, clock_outcome="uncorrected", clock_reason="still-behind"),
            "web1: expected its clock to be right, found it left as it is (still-behind)",
        ),
    ],
)
def test_what_is_not_as_before(now: Now, words: str) -> None:
    assert said(RAN, now) == [words]


def test_all_of_it_is_said() -> None:
    now = replace(RUNS, silent="no-agent", clock_was_read=True, clock_outcome="uncorrected", clock_reason="no-agent")
    assert [complaint.sign for complaint in complaints_of(RAN, now)] == [Sign.AGENT, Sign.CLOCK]


# -- whom checks concern

SETTINGS = (
    HealthSettings(availability_set="db", tcp="10.0.0.5:5432"),
    HealthSettings(guest="web*", command=("/usr/bin/true",), within_seconds=5.0),
    HealthSettings(guest="[x]", tcp="[fd00::5]:80"),
)


def test_each_check_is_asked_once_if_it_concerns_a_guest_of_the_group() -> None:
    db = [Placed("a", "db"), Placed("b", "db")]
    assert [(one.of, one.address, one.sign) for one in checks_of(SETTINGS, db)] == [
        ("availability set db", ("10.0.0.5", 5432), Sign.TCP)
    ]
    assert [(one.of, one.command, one.sign) for one in checks_of(SETTINGS, [Placed("web7")])] == [
        ("guest web*", ("/usr/bin/true",), Sign.COMMAND)
    ]
    assert [one.address for one in checks_of(SETTINGS, [Placed("[x]")])] == [("fd00::5", 80)]  # a name, as it stands
    assert checks_of(SETTINGS, [Placed("db", ""), Placed("other", "set")]) == ()


# -- the outside

WITHIN = 10.0


def command(*words: str) -> Check:
    return Check("guest web*", WITHIN, None, words)


def test_a_command_that_is_well() -> None:
    assert probes.ask(command("/bin/true"), WITHIN) == ""


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("/bin/false",), "exit status 1"),
        ((sys.executable, "-c", "print('no quorum'); raise SystemExit(2)"), "exit status 2: no quorum"),
        (
            (sys.executable, "-c", "import sys; print('\\x1b[2J' + 'x' * 900); sys.exit(3)"),
            "exit status 3: \\x1b[2J" + "x" * (probes.SAID_LIMIT - 7),
        ),
        ((sys.executable, "-c", "while True: print('x' * 100000)"), "more"),
        (("/does/not/exist",), ""),
    ],
)
def test_a_command_that_is_not(words: tuple[str, ...], found: str) -> None:
    said = probes.ask(command(*words), WITHIN)
    assert said.startswith(found)
    assert said
    assert said.isprintable()
    assert len(said) < probes.SAID_LIMIT + 40


def test_a_command_that_hangs_is_ended() -> None:
    assert probes.ask(command("/bin/sleep", "600"), 0.05) == "none, so it was killed"


def test_a_port_that_answers_and_one_that_does_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = ("127.0.0.1", server.getsockname()[1])
        assert probes.ask(Check("x", WITHIN, address, ()), WITHIN) == ""
    assert probes.ask(Check("x", WITHIN, address, ()), WITHIN) == "Connection refused"


def test_a_name_that_no_resolver_takes() -> None:
    assert probes.ask(Check("x", WITHIN, (f"{'a' * 200}.b", 80), ()), WITHIN)


# -- the gate


@dataclass
class Agents:
    """Guests of a host that is made up."""

    states: dict[str, GuestState | HostagentError]
    silent: dict[str, AgentFault] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)

    def standing(self, uuid: str) -> Standing | None:
        if uuid in self.gone:
            return None
        state = self.states[uuid]
        if isinstance(state, HostagentError):
            raise state
        return Standing(state, "", None, "")

    @contextmanager
    def agent(self, uuid: str) -> Iterator[object]:
        yield SimpleNamespace(ask=lambda *_: self._ask(uuid))

    def _ask(self, uuid: str) -> object:
        if uuid in self.silent:
            raise AgentError(self.silent[uuid])
        return {}

    def disconnect(self) -> None: ...


@dataclass
class World:
    """A gate with a clock of its own."""

    agents: Agents
    settings: tuple[HealthSettings, ...] = ()
    now: float = 0.0
    answers: list[str] = field(default_factory=list)  # of what is asked of the outside; then all is well
    asked: list[Check] = field(default_factory=list)
    stop_at: float = float("inf")
    mends: Any = None

    @property
    def gate(self) -> Gate:
        ports = SimpleNamespace(libvirt=self.agents, monotonic=lambda: self.now, config=Config())
        placed = {name: Placed(name, "db") for name in ("web1", "db9")}
        return Gate(
            cast(Ports, ports), placed, self.settings, 30.0, lambda: self.now >= self.stop_at, self._pause, self._probe
        )

    def _pause(self, seconds: float) -> None:
        self.now += seconds
        if self.mends is not None and self.now >= 5:
            self.mends()

    def _probe(self, check: Check, within_seconds: float) -> str:
        self.asked.append(check)
        return self.answers.pop(0) if self.answers else ""


def guests(*names: str) -> list[GuestPlan]:
    return [GuestPlan(name, f"uuid of {name}", Verdict.UPDATE, Method.IN_PLACE, None, None, (), 30.0) for name in names]


def updated(*names: str, method: Method = Method.IN_PLACE, **measured: object) -> UpdateRecord:
    writer = Writer()
    writer.begin("u1", *names, method=method)
    for name in names:
        writer.measured("u1", name, **measured)
        writer.end_guest("u1", name, Outcome.UPDATED)
    return writer.records()[0]


def host(**silent: AgentFault) -> Agents:
    return Agents(
        {f"uuid of {name}": GuestState.RUNNING for name in ("web1", "db9")},
        {f"uuid of {name}": fault for name, fault in silent.items()},
    )


def test_only_agents_that_answered_before_are_missed() -> None:
    world = World(host(db9=AgentFault.NO_AGENT))
    before = world.gate.before(guests("web1", "db9"))
    assert [one.answered for one in before] == [True, False]
    world.agents.silent["uuid of web1"] = AgentFault.TIMEOUT
    health = world.gate.after(before, [updated("web1", "db9")])
    assert str(health) == "web1: expected its guest agent to answer, as before, found agent-timeout"


def test_an_agent_that_says_no_has_answered() -> None:
    world = World(host(web1=AgentFault.COMMAND_DISABLED))
    assert [one.answered for one in world.gate.before(guests("web1"))] == [True]


def test_what_comes_right_in_time_is_well() -> None:
    world = World(host())
    before = world.gate.before(guests("web1"))
    world.agents.silent["uuid of web1"] = AgentFault.TIMEOUT
    world.mends = world.agents.silent.clear
    assert world.gate.after(before, [updated("web1")]).good
    assert world.now < 30


def test_what_does_not_is_told_once_its_time_is_over() -> None:
    world = World(host())
    before = world.gate.before(guests("web1"))
    world.agents.states["uuid of web1"] = Failed("asking libvirt", found="no answer")
    health = world.gate.after(before, [updated("web1")])
    assert str(health) == "web1: expected it running as before, found it unknown (asking libvirt: no answer)"
    assert 30 <= world.now < 31


def test_the_last_update_of_a_guest_counts() -> None:
    world = World(host())
    before = world.gate.before(guests("web1"))
    bad = updated("web1", clock_before_seconds=0.0, clock_outcome="uncorrected", clock_reason="still-behind")
    good = updated("web1", clock_before_seconds=0.0, clock_outcome="corrected")
    assert world.gate.after(before, [bad, good]).good
    assert not world.gate.after(before, [good, bad]).good


def test_one_that_went_to_another_host_is_not_looked_for_here() -> None:
    world = World(host())
    before = world.gate.before(guests("web1"))
    world.agents.gone.add("uuid of web1")
    assert world.gate.after(before, [updated("web1", method=Method.LIVE_MIGRATE)]).good
    assert not world.gate.after(before, [updated("web1")]).good


CHECK = HealthSettings(availability_set="db", tcp="db.example:5432", within_seconds=8.0)


def test_the_outside_is_asked_until_it_is_well() -> None:
    world = World(host(), (CHECK,), answers=["Connection refused", "no answer"])
    assert world.gate.has_checks_for(["web1"])
    assert world.gate.after(world.gate.before(guests("web1")), [updated("web1")]).good
    assert len(world.asked) == 3


def test_or_until_its_time_is_over() -> None:
    world = World(host(), (CHECK,), answers=["Connection refused"] * 100)
    health = world.gate.after(world.gate.before(guests("web1")), [updated("web1")])
    assert str(health) == (
        "availability set db: expected db.example port 5432 to take a connection within 8 s, found Connection refused"
    )
    assert 8 <= world.now < 9


def test_whoever_asks_to_stop_is_heeded() -> None:
    world = World(host(), (CHECK,), answers=["Connection refused"] * 100, stop_at=2.0)
    before = world.gate.before(guests("web1"))
    world.agents.silent["uuid of web1"] = AgentFault.TIMEOUT
    assert not world.gate.after(before, [updated("web1")]).good
    assert world.now < 3
