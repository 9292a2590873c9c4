"""hostagent as somebody calls it, on a host of its own: settings and journal below a folder, libvirt made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import sampled
from click.testing import CliRunner, Result
from journals import NEW, OLD, Writer

from hostagent import wiring
from hostagent.cli import main
from hostagent.cli.common import Call
from hostagent.config import Config
from hostagent.errors import HostagentError
from hostagent.facts import Guest, GuestState, Host, QemuTree, RamBacking
from hostagent.observed import Observed, observe
from hostagent.plan import Plan
from hostagent.planning.guest_policy import Policies
from hostagent.update.host_lock import HostLock
from hostagent.update.journal import UpdateRecord

KEPT = replace(OLD, name="kept", emulator="/kept/qemu-system-x86_64")
"""The system's own, as it is kept for a way back."""


def guest(name: str, **changed: Any) -> Guest:
    """A guest that can be updated in place, unless changed."""
    return replace(sampled.guest(), **{"name": name, "uuid": f"uuid of {name}", "qemu": OLD, **changed})


def with_private_ram(name: str) -> Guest:
    """A guest that cannot."""
    plain = guest(name)
    return replace(plain, definition=replace(plain.definition, ram=RamBacking.PRIVATE_FILE))


def shut_off(name: str) -> Guest:
    return guest(name, state=GuestState.SHUT_OFF, process=None, qemu=None, domain_id=None)


@dataclass
class Caller:
    """Calls hostagent, and keeps what the world around it does."""

    state: Path
    monkeypatch: pytest.MonkeyPatch
    host: Host = field(
        default_factory=lambda: sampled.host(qemu=(OLD, NEW, KEPT), guests=(guest("web1"), guest("db9")))
    )
    plans: list[Plan] = field(default_factory=list)
    keeping_fails: HostagentError | None = None
    libvirt_fails: HostagentError | None = None  # as it is looked at for metrics
    dismissed: list[str] = field(default_factory=list)  # guards that were told that all is over

    def __post_init__(self) -> None:
        self.settings = self.state.parent / "hostagent.toml"
        if not self.settings.exists():
            self.settings.write_text(f'[paths]\nstate = "{self.state}"\nlibvirt_run = "{self.state.parent}/run"\n')
        self.monkeypatch.setattr(Call, "host", lambda _: self.host)
        self.monkeypatch.setattr("hostagent.wiring.observed_of", self._observed)
        self.monkeypatch.setattr("hostagent.cli.common.qemu_trees.keep", self._keep)
        self.monkeypatch.setattr("os.geteuid", lambda: 0)
        self.monkeypatch.setattr("hostagent.session.Guard", lambda *_: _NoGuard(self.dismissed))
        self.monkeypatch.setenv("COLUMNS", "100")
        self.monkeypatch.setenv("HOSTAGENT_AGENT", "off")  # one that this machine may have is left alone

    def _observed(self, config: Config) -> Observed:
        if self.libvirt_fails:
            raise self.libvirt_fails
        return observe(self.host, [], Policies(config.policy.layers()), at=1_795_326_000.0)

    def _keep(self, _state: Path, _emulator: Path) -> QemuTree:
        if self.keeping_fails:
            raise self.keeping_fails
        self.host = replace(self.host, qemu=(*self.host.qemu, KEPT))
        return KEPT

    def __call__(self, *words: str, answer: str | None = None) -> Result:
        return CliRunner().invoke(main, ["--config", str(self.settings), *words], input=answer)

    def json(self, *words: str, code: int = 0) -> Any:
        result = self(*words, "--json")
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    def config(self) -> Config:
        return Config.load(self.settings)

    def write(self, fill: Callable[[Writer], object]) -> None:
        """Put a journal there."""
        writer = Writer()
        fill(writer)
        self.state.mkdir(exist_ok=True)
        writer.save(wiring.journal_path(self.config()))

    def updates_by(self, fill: Callable[[Writer, str], object] | HostagentError) -> None:
        """What the update will do instead of touching guests: write a journal, or raise."""

        def update(
            _ports: object, _host: Host, plan: Plan, *, update_id: str, tell: Any, cancelled: Any
        ) -> UpdateRecord:
            self.plans.append(plan)
            for planned in plan.to_update:
                tell(planned.uuid, "switch", "begun")
            tell("", "attach", "begun")
            if isinstance(fill, HostagentError):
                raise fill
            writer = Writer()
            fill(writer, update_id)
            return writer.records()[-1]

        self.monkeypatch.setattr("hostagent.cli.roll.update_qemu", update)

    def held_by_somebody(self, doing: str) -> HostLock:
        self.state.mkdir(exist_ok=True)
        lock = HostLock.at(wiring.host_lock_path(self.config()))
        lock.take(doing, 1_795_326_000.0)
        return lock


@dataclass
class _NoGuard:
    """Watches nothing: no guest is touched here."""

    dismissed: list[str]

    def dismiss(self) -> None:
        self.dismissed.append("dismissed")
