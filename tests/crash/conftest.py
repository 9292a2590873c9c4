"""Reading libvirt's XML is most of what a fake update takes; the same bytes are read thousands of times here."""

from collections.abc import Iterator
from functools import cache

import pytest

from hostagent.arguments.command_line import CommandLine
from hostagent.libvirt_files import capability_cache
from hostagent.libvirt_files.runtime_record import RuntimeRecord


@pytest.fixture(scope="package", autouse=True)
def texts_are_read_once() -> Iterator[None]:
    """These readers are pure and their results frozen: remembering them changes nothing but the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capability_cache, "parse_xml", cache(capability_cache.parse_xml))
        patch.setattr(RuntimeRecord, "parse", staticmethod(cache(RuntimeRecord.parse)))
        read = cache(CommandLine.parse)
        patch.setattr(CommandLine, "parse", staticmethod(lambda argv: read(tuple(argv))))
        yield
