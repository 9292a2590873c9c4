"""libvirt's save images: read, sealed, given another definition; and damaged in every way."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostagent.hypervisor import fake_image
from hostagent.hypervisor.domain_xml import read_definition
from hostagent.hypervisor.fake_image import PADDING, name
from hostagent.libvirt_files.state_image import ImageNotUnderstood, RamBlock, StateImage, finished, is_all_written

IMAGES = Path(__file__).parent / "images"
REAL = sorted(path.name for path in IMAGES.glob("*.image.gz"))
BLOCKS = (
    RamBlock("pc.ram", 512 << 20, 0),
    RamBlock("0000:00:02.0/vga.vram", 16 << 20, 0xFD000000),
    RamBlock("/rom@etc/acpi/tables", 0x20000, (1 << 64) - 1),
)


def image(
    *,
    xml: str = "<domain type='kvm'/>",
    cookie: str = "<cookie/>",
    machine: str = "pc-q35-7.2",
    capabilities: Sequence[str] = ("x-ignore-shared",),
    ram: Sequence[RamBlock] = BLOCKS,
    rest: bytes = b"\x7f devices, and what else there is",
    was_running: bool = True,
    padding: int = PADDING,
) -> bytes:
    """As libvirt and QEMU write it."""
    return fake_image.image(
        xml=xml,
        cookie=cookie,
        machine=machine,
        capabilities=capabilities,
        ram=ram,
        rest=rest,
        was_running=was_running,
        padding=padding,
    )


def plain(blocks: Sequence[RamBlock]) -> tuple[RamBlock, ...]:
    return tuple(replace(block, address=None) for block in blocks)


def test_what_is_read() -> None:
    found = StateImage.parse(image())
    assert (found.was_running, found.xml, found.cookie) == (True, "<domain type='kvm'/>", "<cookie/>")
    assert (found.machine, found.capabilities, found.ram) == ("pc-q35-7.2", ("x-ignore-shared",), BLOCKS)
    assert found.leaves_shared_ram_out
    ordinary = StateImage.parse(image(capabilities=(), cookie="", was_running=False))
    assert (ordinary.was_running, ordinary.cookie, ordinary.capabilities) == (False, "", ())
    assert ordinary.ram == plain(BLOCKS)


def test_sealing_cuts_the_marks_of_the_capability_and_nothing_else() -> None:
    assert StateImage.parse(image()).sealed() == image(capabilities=())


def written(description: bytes, *, eof: bytes = b"\0") -> bytes:
    """Up to the end of QEMU's stream, before libvirt has marked it."""
    rest = b"devices \x06\0\0" + eof + b"\x06" + struct.pack(">I", len(description)) + description
    return fake_image.unfinished(image(rest=rest))


@pytest.mark.parametrize("length", [40, 0x0606, 0x1006, 0x060000])
def test_all_of_it_is_written(length: int) -> None:
    """Also where the length of the description looks like its mark."""
    data = written(b'{"devices": []}'.ljust(length))
    assert is_all_written(data)
    assert finished(data) == fake_image.unfinished(data).replace(b"LibvirtQemudPart", b"LibvirtQemudSave")
    assert not is_all_written(finished(data))  # nobody has to do anything about that any more
    assert finished(finished(data)) == finished(data)


def test_not_all_of_it_is_written() -> None:
    whole = written(b'{"page_size": 4096, "devices": [{"name": "a\x06"}]}')
    assert not any(is_all_written(whole[:length]) for length in range(len(whole)))
    assert not is_all_written(whole + b"\0")
    for data in (
        written(b'{"page_size": 4096}'),
        written(b"[]"),
        written(b"3"),
        written(b"\xff\xff"),
        written(b"[" * 100_000),
        written(b'{"devices": []}'.ljust((4 << 20) + 1)),
        written(b'{"devices": []}', eof=b"\1"),
    ):
        assert not is_all_written(data)


def test_what_has_no_marks_is_not_sealed() -> None:
    with pytest.raises(ImageNotUnderstood, match="x-ignore-shared"):
        StateImage.parse(image(capabilities=())).sealed()


@pytest.mark.parametrize("cookie", ["", "<cookie/>"])
def test_another_definition(cookie: str) -> None:
    before = image(cookie=cookie)
    other = "<domain>" + "x" * 1000 + "</domain>"
    after = StateImage.parse(before).with_xml(other)
    assert len(after) == len(before)
    assert StateImage.parse(after) == replace(StateImage.parse(before), xml=other)
    assert StateImage.parse(after).with_xml("<domain type='kvm'/>") == before


@pytest.mark.parametrize("xml", ["x" * (PADDING + 100), "a\0b", ""])
def test_a_definition_that_cannot_be_in_it(xml: str) -> None:
    with pytest.raises(ImageNotUnderstood):
        StateImage.parse(image()).with_xml(xml)


def changed(old: bytes, new: bytes) -> bytes:
    data = image()
    assert data.count(old) == 1
    return data.replace(old, new)


HEADER = struct.Struct("<5I")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "expected 16 more bytes, found 0 at byte 0"),
        (changed(b"LibvirtQemudSave", b"LibvirtQemudPart"), "one that was never finished at byte 0"),
        (changed(b"LibvirtQemudSave", b"LibvirtQemudSafe"), "a save image of libvirt's"),
        (image()[:16] + b"\3" + image()[17:], "version 2 of libvirt's image (2), found 3 at byte 16"),
        (image()[:24] + b"\2" + image()[25:], "0 or 1 for a guest that ran, found 2 at byte 24"),
        (image()[:28] + b"\1" + image()[29:], "not compressed (0), found 1 at byte 28"),
        (image()[:32] + b"\xff\xff\xff" + image()[35:], "a cookie within"),
        (image()[:91] + b"\1" + image()[92:], "zeros at the end of libvirt's header, found something else at byte 36"),
        (changed(b"<cookie/>\0\0", b"<cookie/>\0!"), "its cookie up to a zero"),
        (changed(b"<domain type='kvm'/>\0", b"<domain\0type='kvm'/>\0"), "the guest's XML up to a zero"),
        (image(xml="é").replace("é".encode(), b"\xff\xff"), "the guest's XML in UTF-8"),
        (changed(b"QEVM", b"QEVN"), "QEMU's stream"),
        (changed(b"QEVM\0\0\0\3", b"QEVM\0\0\0\4"), "version 3 of QEMU's stream (3), found 4"),
        (changed(b"pc-q35-7.2", b"pc-q35\0007.2"), "a machine type in plain characters"),
        (image(capabilities=("mapped-ram",)), "no capability but x-ignore-shared, found mapped-ram"),
        (image(capabilities=("x-ignore-shared", "mapped-ram")), "found x-ignore-shared, mapped-ram"),
        (changed(b"configuration/capabilities", b"configuration/target-page1"), "but configuration/capabilities"),
        (changed(name("ram") + bytes(4), name("tim") + bytes(4)), "the RAM's section next, found tim"),
        (changed(name("ram") + bytes(7) + b"\4", name("ram") + bytes(7) + b"\5"), "version 4 of the RAM's section"),
        (image(ram=(BLOCKS[0], BLOCKS[0])), "RAM blocks of different names"),
        (image(ram=(replace(BLOCKS[0], size=4097),)), "the sizes of the RAM's blocks (4), found 5"),
        (changed(struct.pack(">QB", 16, 0x7E), struct.pack(">QB", 17, 0x7E)), "the end of the list of RAM blocks"),
        (
            changed(struct.pack(">QBI", 16, 0x7E, 2), struct.pack(">QBI", 16, 0x7E, 3)),
            "number of the RAM's section (2)",
        ),
    ],
)
def test_what_is_not_known_is_refused_with_its_place(data: bytes, words: str) -> None:
    with pytest.raises(ImageNotUnderstood) as refused:
        StateImage.parse(data)
    assert words in str(refused.value)
    assert "at byte " in str(refused.value)


def test_an_image_that_was_cut_off_is_refused_wherever_that_is() -> None:
    whole = image(xml="<d/>", padding=3, rest=b"")
    for length in range(len(whole)):
        with pytest.raises(ImageNotUnderstood):
            StateImage.parse(whole[:length])


# -- any image, and any damage ---------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=40)
names = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)
blocks = st.lists(
    st.builds(RamBlock, names, st.integers(1, 1 << 30).map(lambda pages: pages << 12), st.integers(0, (1 << 64) - 1)),
    min_size=1,
    max_size=8,
    unique_by=lambda block: block.name,
)


@given(xml=texts.filter(bool), cookie=texts, machine=names, ram=blocks, rest=st.binary(), ran=st.booleans())
def test_any_image_comes_back_and_is_sealed(
    xml: str, cookie: str, machine: str, ram: list[RamBlock], rest: bytes, ran: bool
) -> None:
    def written(*capabilities: str) -> bytes:
        return image(
            xml=xml, cookie=cookie, machine=machine, ram=ram, rest=rest, was_running=ran, capabilities=capabilities
        )

    found = StateImage.parse(written("x-ignore-shared"))
    assert (found.xml, found.cookie, found.machine, found.was_running) == (xml, cookie, machine, ran)
    assert found.ram == tuple(ram)
    assert found.sealed() == written()
    assert StateImage.parse(written()).ram == plain(ram)


SMALL = image(padding=8, rest=b"rest")
MARKS = StateImage.parse(SMALL)._marks


@settings(max_examples=2000)
@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_image_is_refused_or_only_its_marks_are_cut(damage: list[tuple[int, int]]) -> None:
    data = bytearray(SMALL)
    for place, value in damage:
        data[place] = value
    try:
        found = StateImage.parse(bytes(data))
    except ImageNotUnderstood:
        return
    if not found.leaves_shared_ram_out:
        return
    assert found._marks[0] == MARKS[0]
    again = StateImage.parse(found.sealed())
    assert (again.xml, again.machine, again.rest) == (found.xml, found.machine, found.rest)
    assert len(found.sealed()) == len(SMALL) - sum(mark.end - mark.start for mark in found._marks)


@given(st.binary(max_size=300))
def test_any_bytes_are_an_image_or_refused(data: bytes) -> None:
    with pytest.raises(ImageNotUnderstood):
        StateImage.parse(b"LibvirtQemudSave" + data)


def test_every_single_byte_damaged() -> None:
    """In what has a length or a meaning nothing goes unseen: a change there is refused, or said."""
    sound = StateImage.parse(SMALL)
    for place in range(len(SMALL)):
        for value in (0, 1, SMALL[place] ^ 1, SMALL[place] ^ 0x80, 0xFF):
            if value == SMALL[place]:
                continue
            data = SMALL[:place] + bytes((value,)) + SMALL[place + 1 :]
            try:
                found = StateImage.parse(data)
            except ImageNotUnderstood:
                continue
            assert found != sound, place


# -- real ones -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", REAL)
def test_a_real_image(which: str) -> None:
    data = gzip.decompress((IMAGES / which).read_bytes())
    found = StateImage.parse(data)
    machine, qemu, *_ = which.split("-")
    assert found.leaves_shared_ram_out
    assert found.machine == f"pc-{'i440fx' if machine == 'pc' else machine}-{qemu}"
    guest = read_definition(found.xml)
    assert guest.machine == found.machine
    own = {
        block.name: block.size for block in found.ram if block.name in ("pc.ram", "ram-node0", "ram-node1", "memdimm0")
    }
    assert sum(own.values()) == guest.memory
    marks = sum(mark.end - mark.start for mark in found._marks)
    assert marks == 8 * len(found.ram) + len("x-ignore-shared") + len("configuration/capabilities") + 11
    assert len(found.sealed()) == len(data) - marks
