"""A definition whose RAM is in shared files from then on; nothing else of it changes."""

import pytest
import sampled

from hostagent.facts import RamBacking
from hostagent.hypervisor.domain_xml import live_differences, read_definition
from hostagent.libvirt_files.memory_backing import with_shared_ram
from hostagent.libvirt_files.xml_spans import PlainXmlError


@pytest.mark.parametrize("name", ["anonymous", "memfd"])
def test_its_ram_is_in_shared_files(name: str) -> None:
    before = sampled.xml(name)
    after = with_shared_ram(before)
    assert read_definition(before).ram is not RamBacking.SHARED_FILE
    assert read_definition(after).ram is RamBacking.SHARED_FILE
    assert all("memoryBacking" in line for line in live_differences(before, after))
    assert with_shared_ram(after) == after


def test_what_has_it_stays_as_it_is() -> None:
    xml = sampled.xml("q35-rich")
    assert with_shared_ram(xml) == xml


def test_huge_pages_stay() -> None:
    xml = "<domain><memory>1</memory><memoryBacking><hugepages/></memoryBacking></domain>"
    assert with_shared_ram(xml) == xml


def test_other_wishes_stay() -> None:
    xml = "<domain><memory>1</memory><memoryBacking><locked/><source type='memfd'/></memoryBacking></domain>"
    assert "<locked/><source type='file'/><access mode='shared'/></memoryBacking>" in with_shared_ram(xml)


def test_a_document_type_is_refused() -> None:
    with pytest.raises(PlainXmlError):
        with_shared_ram("<!DOCTYPE x><domain><memory>1</memory></domain>")
