"""hostagent on the bench's host: a configuration, both QEMUs, and updates run in this process as the CLI runs them."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hostagent import session, wiring
from hostagent.config import Config
from hostagent.facts import Component, Host, QemuTree
from hostagent.libvirt_files.hook import HOOK, hook_text
from hostagent.plan import Method, Plan, Technique
from hostagent.planning.guest_policy import Policies
from hostagent.planning.host_planner import Swap, plan_host
from hostagent.planning.planner import plan_adoption, plan_qemu
from hostagent.planning.prediction import Past
from hostagent.planning.rolling import Rolling, place_of, rolled
from hostagent.policy import Allowed, PolicyPart
from hostagent.setup.host_files import HostFiles
from hostagent.setup.setup_tasks import Hook
from hostagent.trees import qemu_trees
from hostagent.update import host as host_update
from hostagent.update.health import Gate
from hostagent.update.journal import Kind, UpdateRecord
from hostagent.update.journal_reader import read_rows, read_updates
from hostagent.update.roll import Doors, roll
from hostagent.update.rolled import Rolled
from hostagent.update.saga import Teller
from hostagent.update.subject import Ports
from tests.bench.host import LIBVIRTD_START
from tests.bench.paths import BUILD

CONFIG = Path("/etc/hostagent/hostagent.toml")
DEBS = BUILD / "bench" / "debs"
BUDGET_SECONDS = 60.0
"""Of most updates: a guest that stands still for longer never would go on."""
STOPS, RESUMES = ("switch", "pause"), ("resume",)
"""Steps in which a guest stops, of a handover and of a hold, and in which it goes on."""
TOML = """\
# Without systemd libvirt's daemon is stopped by signal and started by this command. What comes at all comes within
# these limits, here and below: guests are emulated, and the machine has other things to do.
[libvirt.daemon]
control = "command"
start = {start}
ready_seconds = 60.0

[update]
rehearse = {rehearse}
start_seconds = 60.0
converge_seconds = 30.0

# The bench's kernel has nobody who keeps its clock right; here it is the reference all the same.
[clock]
require_synchronised_host = false
agent_seconds = 10.0
"""


def say_nothing(key: str, step: str, doing: str) -> None:
    """A teller for tests."""


@dataclass
class Lab:
    """hostagent, set up on the bench's host."""

    config: Config

    @classmethod
    def set_up(cls, *, rehearse: bool = False, start: Sequence[str] = LIBVIRTD_START) -> Lab:
        """Write the configuration and add the second QEMU; nothing is known of earlier updates."""
        cls.write_configuration(rehearse=rehearse, start=start)
        lab = cls.load()
        shutil.rmtree(lab.config.paths.state, ignore_errors=True)
        qemu_trees.add(sorted(DEBS.glob("*.deb")), state=lab.config.paths.state)
        return lab

    def install_hook(self) -> None:
        """As `hostagent setup` does; libvirt looks for hooks as its daemon starts."""
        Hook(HOOK, hook_text(self.config.paths.held), self.config.paths.held, 0, 0, HostFiles()).apply()

    @staticmethod
    def write_configuration(*, rehearse: bool, start: Sequence[str] = LIBVIRTD_START) -> None:
        """What a host without systemd needs."""
        CONFIG.parent.mkdir(exist_ok=True)
        command = "[" + ", ".join(f'"{word}"' for word in start) + "]"
        CONFIG.write_text(TOML.format(start=command, rehearse=str(rehearse).lower()))

    @classmethod
    def load(cls) -> Lab:
        """As it was set up."""
        return cls(Config.load(CONFIG))

    @property
    def system(self) -> QemuTree:
        """Debian's own QEMU, 7.2."""
        return next(tree for tree in wiring.trees_of(self.config) if tree.name == qemu_trees.SYSTEM)

    @property
    def newer(self) -> QemuTree:
        """QEMU 10.0 of the backports, in a tree of its own."""
        return next(tree for tree in wiring.trees_of(self.config) if tree.name != qemu_trees.SYSTEM)

    def update(
        self,
        to: QemuTree,
        guests: Sequence[str] | None = None,
        *,
        budget_seconds: float | None = BUDGET_SECONDS,
        tell: Teller = say_nothing,
        cancelled: Callable[[], bool] = lambda: False,
        technique: Technique | None = None,
        methods: Sequence[Method] | None = None,
    ) -> UpdateRecord:
        """What `hostagent update qemu` does, without its words; methods: that are allowed, and no others."""

        def plan(host: Host) -> Plan:
            policies = self.policies(budget_seconds)
            if methods is not None:
                policies = policies.keeping(replace(policies.asked, allow=frozenset(map(Allowed, methods))))
            return plan_qemu(host, to, guests, policies=policies, technique=technique, methods=methods)

        return self._carry_out("update qemu", plan, tell, cancelled)

    def roll(
        self,
        to: QemuTree,
        *,
        rolling: Rolling = Rolling(),  # noqa: B008 - frozen
        technique: Technique | None = None,
        methods: Sequence[Method] | None = None,
        tell: Teller = say_nothing,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Rolled:
        """What `hostagent update qemu` does with guests in several groups, without its words."""
        policies = self.policies(None)
        with session.changing(self.config, "update qemu", tell) as current:
            session.require_nothing_open(current)
            ports = wiring.ports_of(self.config, current.journal)

            def replan(names: Sequence[str] | None) -> Plan:
                host = wiring.with_peers(self.config, ports.libvirt.host())
                return plan_qemu(host, to, names, policies=policies, technique=technique, methods=methods)

            def carry(part: Plan) -> UpdateRecord:
                with current.guarded() as guarded:
                    host = guarded.libvirt.host()
                    return host_update.update_qemu(
                        guarded, host, part, update_id=_new_id(), tell=tell, cancelled=cancelled
                    )

            host = ports.libvirt.host()
            plan = rolled(replan(None), host, policies, rolling)
            assert not plan.blockers and not plan.blocked, plan
            placed = {guest.name: place_of(guest, policies) for guest in host.guests}
            settings = self.config.roll
            gate = Gate(ports, placed, self.config.health, settings.settle_seconds, cancelled, time.sleep)
            doors = Doors(
                *(carry, replan, gate, lambda *_: None, tell, cancelled),
                pause=time.sleep,
                monotonic=time.monotonic,
            )
            return roll(doors, plan, roll_id=_new_id(), wait_seconds=settings.wait_seconds)

    def policies(self, budget_seconds: float | None) -> Policies:
        """What holds for guests, with that asked for as --budget does; None: it is not."""
        return Policies(self.config.policy.layers(), PolicyPart(budget_seconds=budget_seconds))

    def adopt(self, guest: str) -> UpdateRecord:
        """What `hostagent guest adopt` does, without its words."""

        def plan(host: Host) -> Plan:
            (made,) = plan_adoption(host, [guest], policies=self.policies(BUDGET_SECONDS))
            return made

        return self._carry_out("guest adopt", plan, say_nothing, lambda: False)

    def _carry_out(
        self, doing: str, make: Callable[[Host], Plan], tell: Teller, cancelled: Callable[[], bool]
    ) -> UpdateRecord:
        with self._changing(doing, tell) as ports:
            host = wiring.with_peers(self.config, ports.libvirt.host())
            plan = make(host)
            assert not plan.blockers and not plan.blocked, plan
            return host_update.update_qemu(ports, host, plan, update_id=_new_id(), tell=tell, cancelled=cancelled)

    def swap(
        self, component: str, *, budget_seconds: float = 2 * BUDGET_SECONDS, tell: Teller = say_nothing
    ) -> UpdateRecord:
        """What `hostagent update COMPONENT` does, without its words."""
        with self._changing(f"update {component}", tell) as ports:
            host = wiring.with_peers(self.config, ports.libvirt.host())
            found = ports.components[component]
            swap = Swap(found.look(), found.holds, found.first_seconds)
            plan = plan_host(host, component, [swap], policies=self.policies(budget_seconds), past=Past())
            assert not plan.blockers, plan
            return host_update.update_host(ports, host, plan, update_id=_new_id(), tell=tell, cancelled=lambda: False)

    def components(self) -> dict[str, Component]:
        """What runs of each that is swapped for the whole host, and what is installed."""
        return {one.name: one.look() for one in wiring.host_components(self.config)}

    @contextmanager
    def _changing(self, doing: str, tell: Teller) -> Iterator[Ports]:
        with session.changing(self.config, doing, tell) as current:
            session.require_nothing_open(current)
            with current.guarded() as ports:
                yield ports

    def recover(self) -> tuple[UpdateRecord, ...]:
        """What `hostagent recover` does."""
        with session.changing(self.config, "recover", say_nothing) as current:
            return current.recovered

    def updates(self) -> tuple[UpdateRecord, ...]:
        """Everything in the journal; whoever writes it is not disturbed."""
        return read_updates(wiring.journal_path(self.config))

    def stood_still(self, update: UpdateRecord, guest: str) -> tuple[float, float]:
        """For how long one of its guests stood still by the journal, at least and at most, seconds.

        It stopped while one step was under way, and went on while another was, or the undo of the first. However long a
        busy machine makes a step, it was within it.
        """
        path = wiring.journal_path(self.config)
        rows = [row for row in read_rows(path) if (row.update, row.entry.guest) == (update.id, guest)]

        def at(kind: Kind, steps: Sequence[str]) -> float:
            return next(row.at for row in rows if row.entry.kind is kind and row.entry.step in steps)

        undone = any(row.entry.kind is Kind.UNDO_DONE and row.entry.step in STOPS for row in rows)
        begins, ends, steps = (
            (Kind.UNDO_BEGUN, Kind.UNDO_DONE, STOPS) if undone else (Kind.STEP_BEGUN, Kind.STEP_DONE, RESUMES)
        )
        least = at(begins, steps) - at(Kind.STEP_DONE, STOPS)
        return max(0.0, least), at(ends, steps) - at(Kind.STEP_BEGUN, STOPS)


def _new_id() -> str:
    return f"lab-{secrets.token_hex(4)}"
