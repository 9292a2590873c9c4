"""A guest's definition and arguments, read together. Worked out anew only when one of them is another one; pure."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from hostagent.arguments.command_line import CommandLine, RamBackend
from hostagent.facts import Definition, Difference
from hostagent.hypervisor.changed_since_boot import changed_since_boot
from hostagent.hypervisor.live_definition import read_definition
from hostagent.hypervisor.reconciled import reconciled


@dataclass(frozen=True)
class Understood:
    """What both say."""

    definition: Definition
    ram_backends: tuple[RamBackend, ...] = ()
    drift: tuple[Difference, ...] = ()
    argv: tuple[str, ...] = ()  # as Guest has it: () if nothing changed since boot
    plugged_taps: tuple[tuple[int, str], ...] = ()


def understood(live_xml: str, argv: tuple[str, ...], vhosts: int) -> Understood:
    """Read both; no arguments: it does not run. vhosts: how many descriptors of /dev/vhost-net its QEMU has."""
    definition = read_definition(live_xml)
    if not argv:
        return Understood(definition)
    now = reconciled(live_xml, CommandLine.parse(argv), vhosts)
    return Understood(
        definition,
        now.line.ram_backends(),
        changed_since_boot(live_xml, now.line),
        now.line.argv if now.line.argv != argv else (),
        tuple(now.plugged_taps.items()),
    )


@dataclass
class Readings:
    """The last one of each guest, by uuid."""

    read: Callable[[str, tuple[str, ...], int], Understood] = understood
    _known: dict[str, tuple[tuple[str, tuple[str, ...], int], Understood]] = field(default_factory=dict)

    def of(self, uuid: str, live_xml: str, argv: tuple[str, ...], vhosts: int) -> Understood:
        """That of the guest as it is now."""
        asked = (live_xml, argv, vhosts)
        known = self._known.get(uuid)
        if known is None or known[0] != asked:
            self._known[uuid] = known = (asked, self.read(*asked))
        return known[1]

    def keep(self, uuids: Collection[str]) -> None:
        """There are no other guests."""
        self._known = {uuid: known for uuid, known in list(self._known.items()) if uuid in uuids}
