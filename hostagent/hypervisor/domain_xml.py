"""Everything that reads or writes libvirt's domain XML: one door to four pure modules."""

from hostagent.hypervisor.changed_since_boot import changed_since_boot, live_differences, network_cards
from hostagent.hypervisor.live_definition import read_definition
from hostagent.hypervisor.rehearsal_xml import PlaceholderDisk, RehearsalGuest, rehearsal_xml, shape_digest

__all__ = [
    "PlaceholderDisk",
    "RehearsalGuest",
    "changed_since_boot",
    "live_differences",
    "network_cards",
    "read_definition",
    "rehearsal_xml",
    "shape_digest",
]
