"""What is swapped for the whole host while all of its guests are held: a step for each component."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hostagent.components import HostComponent
from hostagent.errors import Failed
from hostagent.update.saga import Step
from hostagent.update.subject import Ports


@dataclass
class HostHold:
    """The subject of these steps."""

    ports: Ports
    update: str
    components: Sequence[HostComponent] = ()

    @property
    def key(self) -> str:
        """The host's key in the journal."""
        return ""

    @property
    def steps(self) -> tuple[Step[HostHold], ...]:
        """In the order in which they are swapped."""
        return tuple(_step(component) for component in self.components)


def _step(component: HostComponent) -> Step[HostHold]:
    def apply(host: HostHold) -> None:
        if component.holds and (running := host.ports.libvirt.active()):
            raise Failed(f"swapping {component.name}", expected="no guest to run", found=", ".join(running))
        component.apply()

    return Step(
        step_name(component.name),
        apply,
        lambda _: component.is_applied(),
        undo=lambda _: component.roll_back(),
    )


def step_name(component: str) -> str:
    """The step's, as the journal has it."""
    return f"swap {component}"
