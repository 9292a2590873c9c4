"""What all sweeps over the fake host share."""

from collections.abc import Iterator
from functools import cache

import pytest

from hostagent.arguments.command_line import CommandLine
from hostagent.hypervisor import fake_libvirt
from hostagent.libvirt_files.capability_cache import flags_of_capability_cache
from hostagent.libvirt_files.runtime_record import RuntimeRecord
from hostagent.update import agreement, attachment, clocks


@pytest.fixture(scope="package", autouse=True)
def texts_are_read_once() -> Iterator[None]:
    """Reading libvirt's XML is most of what a fake update takes; the same bytes are read thousands of times here.

    These readers are pure and their results frozen: remembering them changes nothing but the time.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_libvirt, "flags_of_capability_cache", cache(flags_of_capability_cache))
        patch.setattr(attachment, "live_differences", cache(attachment.live_differences))
        patch.setattr(agreement, "network_cards", cache(agreement.network_cards))
        patch.setattr(RuntimeRecord, "parse", staticmethod(cache(RuntimeRecord.parse)))
        read = cache(CommandLine.parse)
        patch.setattr(CommandLine, "parse", staticmethod(lambda argv: read(tuple(argv))))
        yield


@pytest.fixture(scope="package", autouse=True)
def clocks_are_asked_one_after_the_other() -> Iterator[None]:
    """An update has the same moments each time then; the rig's settings have guests held one by one, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clocks, "SIDE_BY_SIDE", 1)
        yield
