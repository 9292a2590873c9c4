"""The emulator in a guest's XML, and nothing else of it."""

from __future__ import annotations

import pytest

from hostagent.hypervisor.domain_xml import read_definition
from hostagent.libvirt_files.emulator import with_emulator
from hostagent.libvirt_files.xml_spans import PlainXmlError
from tests.unit import sampled


@pytest.mark.parametrize("name", sampled.ALL)
def test_only_that_changes(name: str) -> None:
    xml = sampled.xml(name)
    changed = with_emulator(xml, "/opt/a&b/<qemu>")
    assert read_definition(changed).emulator == "/opt/a&b/<qemu>"
    assert with_emulator(changed, read_definition(xml).emulator) == xml


@pytest.mark.parametrize(
    "xml",
    [
        "<domain/>",
        "<domain><devices/></domain>",
        "<domain><devices><emulator>a</emulator><emulator>b</emulator></devices></domain>",
        "<domstatus><devices><emulator>a</emulator></devices></domstatus>",
        "<domain>",
    ],
)
def test_where_there_is_no_place_for_it(xml: str) -> None:
    with pytest.raises(PlainXmlError):
        with_emulator(xml, "/q")
