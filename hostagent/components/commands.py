"""A component of the host's owner: commands that stage, apply, verify and roll it back."""

from __future__ import annotations

from dataclasses import dataclass

from hostagent import processes
from hostagent.config import ComponentSettings
from hostagent.errors import Failed, HostagentError
from hostagent.facts import Component, Freshness


@dataclass(frozen=True)
class CommandComponent:
    """What a ``[[component]]`` of the settings says."""

    settings: ComponentSettings

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def holds(self) -> bool:
        return self.settings.hold

    @property
    def first_seconds(self) -> float:
        return self.settings.takes_seconds

    def look(self) -> Component:
        try:
            current = self.is_applied()
        except HostagentError:
            return Component(self.name, "", "", Freshness.UNKNOWN)
        return Component(self.name, "", "", Freshness.CURRENT if current else Freshness.OUTDATED)

    def stage(self) -> None:
        if self.settings.stage:
            self._run("staging", self.settings.stage)

    def apply(self) -> None:
        self._run("applying", self.settings.apply)

    def is_applied(self) -> bool:
        """What `verify` says: 0 is yes, any other exit status no."""
        said = processes.run(
            self.settings.verify, within_seconds=self.settings.command_seconds, accept=range(256)
        ).exit_status
        return said == 0

    def is_for_good(self) -> bool:
        return False

    def roll_back(self) -> None:
        self._run("rolling back", self.settings.roll_back)

    def forget(self) -> None:
        """Nothing is kept: what `stage` did is its own business."""

    def _run(self, doing: str, argv: tuple[str, ...]) -> None:
        try:
            processes.run((*processes.WITH_US, *argv), within_seconds=self.settings.command_seconds)
        except Failed as error:
            raise Failed(f"{doing} {self.name}: {error.doing}", expected=error.expected, found=error.found) from error
