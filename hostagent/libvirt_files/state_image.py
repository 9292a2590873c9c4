"""libvirt's save image of a guest, with the beginning of the QEMU stream in it: read, and changed in place; pure.

    LibvirtQemudSave, five little-endian u32 (version, data_len, was_running, format, cookie offset), zeros up to 92
    data_len bytes: the guest's XML, NUL; its cookie at its offset, NUL; zeros
    QEVM, version 3                                           all of QEMU's is big-endian
    7  u32 length, machine type
       5  u8 length, "configuration/capabilities", u32 version; u32 count, each u8 length, name
    1  u32 section, u8 length, "ram", u32 instance, u32 version
       u64 total | 4; for each RAM block u8 length, name, u64 size, and with x-ignore-shared u64 address
       u64 16
    126 u32 section
    ... RAM that is not shared, devices
    0
    6  u32 length, a description of all that in JSON

Sources: libvirt, src/qemu/qemu_saveimage.c (virQEMUSaveDataWrite); QEMU, migration/savevm.c (vmstate_configuration,
qemu_savevm_state_complete_precopy_non_iterable), migration/ram.c (ram_save_setup). A list of what is known: anything
else is refused, with the place where it stands.
"""

import json
import struct
from dataclasses import dataclass, field, replace
from typing import NoReturn

from hostagent.errors import Refused
from hostagent.libvirt_files.xml_spans import Span, spliced

IGNORE_SHARED = "x-ignore-shared"
HEADER_BYTES = 92
IMAGE_LIMIT = 2 << 30  # device state, and what RAM is in no file: a display's, firmware's
_MAGIC, _PARTIAL = b"LibvirtQemudSave", b"LibvirtQemudPart"
_VERSION, _RAW = 2, 0
_FIELDS = struct.Struct("<5I")
_LENGTH = struct.Struct(">I")
_STREAM, _STREAM_VERSION = b"QEVM", 3
_EOF, _SECTION_START, _SUBSECTION, _DESCRIPTION, _CONFIGURATION, _FOOTER = 0, 1, 5, 6, 7, 0x7E  # QEMU_VM_* of savevm.h
_CAPABILITIES = "configuration/capabilities"
_RAM, _RAM_VERSION = "ram", 4
_SIZES, _END = 0x04, 0x10  # RAM_SAVE_FLAG_MEM_SIZE and RAM_SAVE_FLAG_EOS of migration/ram.c
_FLAGS = 0xFFF  # the lower bits of an address or size in the stream, which is one of a page
_LONGEST_NAME = 255
_LONGEST_DESCRIPTION = 4 << 20  # some hundred KiB; read into memory, it takes 25 times that
_BLOCKS = 1024  # more than any guest has
_DOING = "reading a save image"


class ImageNotUnderstood(Refused):
    """The image holds something unknown here, or is damaged: it is not loaded."""

    kind = "image-not-understood"


@dataclass(frozen=True)
class RamBlock:
    """One of the guest's RAM blocks as the stream names it."""

    name: str
    size: int  # bytes in use
    address: int | None  # in the guest's memory; only in a stream that leaves shared RAM out


@dataclass(frozen=True)
class StateImage:
    """A save image. Two are equal when they say the same, however long the XML's padding is."""

    data: bytes = field(repr=False, compare=False)
    was_running: bool
    xml: str
    cookie: str
    machine: str
    capabilities: tuple[str, ...]  # those that the loading QEMU must have on as well
    ram: tuple[RamBlock, ...]
    rest: bytes = field(repr=False)  # of the stream, from the end of the list of blocks on
    _marks: tuple[Span, ...] = field(repr=False, compare=False)

    @staticmethod
    def parse(data: bytes) -> "StateImage":
        """Read an image; ImageNotUnderstood for one that is not whole, or not known in every byte up to the RAM."""
        return _Reader(data).image()

    @property
    def leaves_shared_ram_out(self) -> bool:
        """Whether RAM in shared files is not in it."""
        return IGNORE_SHARED in self.capabilities

    def sealed(self) -> bytes:
        """The image as a QEMU loads it that has no capability on: only the marks of x-ignore-shared are cut out.

        Raises ImageNotUnderstood when there are none, or when the result does not say the same.
        """
        if not self.leaves_shared_ram_out:
            _refuse(f"a stream with {IGNORE_SHARED}", "one without", HEADER_BYTES)
        result = spliced(self.data, [(mark, b"") for mark in self._marks])
        plain = tuple(replace(block, address=None) for block in self.ram)
        if StateImage.parse(result) != replace(self, capabilities=(), ram=plain):
            _refuse("the sealed image to say the same", "something else", self._marks[0].start)
        return result

    def with_xml(self, xml: str) -> bytes:
        """The image with another definition of the guest, which has to fit where the old one is."""
        text, cookie = xml.encode() + b"\0", self.cookie.encode() + b"\0" if self.cookie else b""
        fields = list(_FIELDS.unpack_from(self.data, len(_MAGIC)))
        length = fields[1]
        if "\0" in xml or len(text) + len(cookie) > length:
            _refuse(f"a definition of at most {length - len(cookie) - 1} bytes", f"{len(text) - 1}", HEADER_BYTES)
        fields[4] = len(text) if cookie else 0
        head = _MAGIC + _FIELDS.pack(*fields) + self.data[len(_MAGIC) + _FIELDS.size : HEADER_BYTES]
        result = head + (text + cookie).ljust(length, b"\0") + self.data[HEADER_BYTES + length :]
        if StateImage.parse(result) != replace(self, xml=xml):
            _refuse("the image to say the same but for its definition", "something else", HEADER_BYTES)
        return result


def was_finished(data: bytes) -> bool:
    """Whether libvirt wrote the image to its end, which it marks then, understood or not."""
    return data.startswith(_MAGIC)


def is_all_written(data: bytes) -> bool:
    """Whether QEMU has written its stream to the end, and libvirt has yet to mark the image as whole.

    The description comes last (it is left out with `suppress-vmdesc`, which libvirt does not set). An image that
    libvirt has compressed does not end so.
    """
    tail = _LENGTH.size + 1
    at = len(data)
    for _ in range(tail):  # its length may hold the same byte
        at = data.rfind(_DESCRIPTION, HEADER_BYTES, at)
        if at < 0 or not data.startswith(_PARTIAL):
            return False
        told = data[at + tail :]
        if len(told) > _LONGEST_DESCRIPTION:
            return False
        if data[at - 1] == _EOF and data[at + 1 : at + tail] == _LENGTH.pack(len(told)):
            return _is_description(told)
    return False


def _is_description(told: bytes) -> bool:
    try:
        found = json.loads(told)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "devices" in found


def finished(data: bytes) -> bytes:
    """The image as libvirt marks it once all of it is written."""
    return _MAGIC + data[len(_MAGIC) :] if data.startswith(_PARTIAL) else data


def _refuse(expected: str, found: str, at: int) -> NoReturn:
    raise ImageNotUnderstood(
        _DOING, expected=expected, found=f"{found} at byte {at}", hint="the guest's RAM and its disks are untouched"
    )


class _Reader:
    """Goes through an image once, from its beginning."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def image(self) -> StateImage:
        was_running, xml, cookie = self._header()
        machine, capabilities, marks = self._configuration()
        ram, more = self._ram(with_addresses=IGNORE_SHARED in capabilities)
        rest = self.data[self.at :]
        self._end_of_setup()
        return StateImage(self.data, was_running, xml, cookie, machine, capabilities, ram, rest, (*marks, *more))

    def _header(self) -> tuple[bool, str, str]:
        magic = self._take(len(_MAGIC))
        if magic != _MAGIC:
            words = "one that was never finished" if magic == _PARTIAL else repr(magic)
            _refuse("a save image of libvirt's", words, 0)
        version, length, running, form, cookie_at = _FIELDS.unpack(self._take(_FIELDS.size))
        self._same("version 2 of libvirt's image", _VERSION, version, back=_FIELDS.size)
        self._same("an image that is not compressed", _RAW, form, back=8)
        if running not in (0, 1):
            _refuse("0 or 1 for a guest that ran", str(running), 24)
        unused = self._take(HEADER_BYTES - self.at)
        if unused.strip(b"\0"):
            _refuse("zeros at the end of libvirt's header", "something else", HEADER_BYTES - len(unused))
        if cookie_at and not 0 < cookie_at < length:
            _refuse(f"a cookie within the {length} bytes of libvirt's data", f"one at {cookie_at}", 32)
        xml = self._text("the guest's XML", cookie_at or length, exact=bool(cookie_at))
        cookie = self._text("its cookie", length - cookie_at, exact=False) if cookie_at else ""
        if not xml:
            _refuse("the guest's XML", "none", HEADER_BYTES)
        return bool(running), xml, cookie

    def _text(self, what: str, length: int, *, exact: bool) -> str:
        """A text that ends with a zero; after it zeros only, or nothing if it has to be as long as that."""
        start = self.at
        text, zero, padding = self._take(length).partition(b"\0")
        if not zero or padding.strip(b"\0") or (exact and padding):
            _refuse(f"{what} up to a zero", "something else", start + len(text))
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            _refuse(f"{what} in UTF-8", "other bytes", start + error.start)

    def _configuration(self) -> tuple[str, tuple[str, ...], tuple[Span, ...]]:
        if (magic := self._take(4)) != _STREAM:
            _refuse("QEMU's stream", repr(magic), self.at - 4)
        self._same("version 3 of QEMU's stream", _STREAM_VERSION, self._u32(), back=4)
        self._same("the configuration first", _CONFIGURATION, self._u8(), back=1)
        machine = self._name("a machine type", self._u32())
        start = self.at
        if self.data[start : start + 1] != bytes((_SUBSECTION,)):
            return machine, (), ()
        self._take(1)
        name = self._name("a part of the configuration", self._u8())
        if name != _CAPABILITIES:
            _refuse(f"no part of the configuration but {_CAPABILITIES}", name, start)
        self._same("version 1 of it", 1, self._u32(), back=4)
        count = self._u32()
        names = tuple(self._name("a capability", self._u8()) for _ in range(min(count, 2)))
        if count > 1 or names not in ((), (IGNORE_SHARED,)):
            _refuse(f"no capability but {IGNORE_SHARED}", ", ".join(names), start)
        if not names:
            _refuse("a capability where some are announced", "none", start)
        return machine, names, (Span(start, self.at),)

    def _ram(self, *, with_addresses: bool) -> tuple[tuple[RamBlock, ...], tuple[Span, ...]]:
        self._same("the RAM's section next", _SECTION_START, self._u8(), back=1)
        self._section = self._u32()
        start = self.at
        name = self._name("a section's name", self._u8())
        if name != _RAM:
            _refuse("the RAM's section next", name, start)
        self._same("the only RAM", 0, self._u32(), back=4)
        self._same("version 4 of the RAM's section", _RAM_VERSION, self._u32(), back=4)
        total = self._u64()
        self._same("the sizes of the RAM's blocks", _SIZES, total & _FLAGS, back=8)
        left, blocks, marks = total - _SIZES, list[RamBlock](), list[Span]()
        while left:
            block_at = self.at
            name, size = self._name("a RAM block's name", self._u8()), self._u64()
            if size == 0 or size & _FLAGS or size > left or len(blocks) == _BLOCKS:
                _refuse(f"RAM blocks of {total - _SIZES} bytes together", f"{name} with {size}", block_at)
            address = None
            if with_addresses:
                marks.append(Span(self.at, self.at + 8))
                address = self._u64()
            blocks.append(RamBlock(name, size, address))
            left -= size
        if len({block.name for block in blocks}) < len(blocks):
            _refuse("RAM blocks of different names", "one twice", start)
        return tuple(blocks), tuple(marks)

    def _end_of_setup(self) -> None:
        """What follows proves that no block was read as long as it is not: the end mark, and the section's footer."""
        self._same("the end of the list of RAM blocks", _END, self._u64(), back=8)
        self._same("the footer of the RAM's section", _FOOTER, self._u8(), back=1)
        self._same("the number of the RAM's section", self._section, self._u32(), back=4)

    def _same(self, what: str, expected: int, found: int, *, back: int) -> None:
        if expected != found:
            _refuse(f"{what} ({expected})", str(found), self.at - back)

    def _name(self, what: str, length: int) -> str:
        at = self.at
        if not 1 <= length <= _LONGEST_NAME:
            _refuse(f"{what} of 1 to {_LONGEST_NAME} characters", str(length), at)
        name = self._take(length)
        if not name.isascii() or not name.decode("ascii", "replace").isprintable():
            _refuse(f"{what} in plain characters", repr(name), at)
        return name.decode("ascii")

    def _u8(self) -> int:
        return self._take(1)[0]

    def _u32(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def _u64(self) -> int:
        return int.from_bytes(self._take(8), "big")

    def _take(self, length: int) -> bytes:
        found = self.data[self.at : self.at + length]
        if len(found) < length:
            _refuse(f"{length} more bytes", f"{len(found)}", self.at)
        self.at += length
        return found
