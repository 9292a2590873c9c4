"""What libvirt saved of a guest, and what is made of that: sealed images, by which either QEMU loads it.

Whatever is loaded is whole: each image's digest is in the journal.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from hostagent.errors import Failed, HostagentError, NeedsOperator
from hostagent.libvirt_files.held_definition import held_definition
from hostagent.libvirt_files.state_image import IMAGE_LIMIT, ImageNotUnderstood, StateImage, finished, was_finished
from hostagent.libvirt_files.xml_spans import PlainXmlError
from hostagent.update import files
from hostagent.update.guest_hold import GuestHold, SavedImage, Side
from hostagent.update.held import entry

_HEAD = 64  # bytes of an image
_READING = "{}: reading what libvirt saved"
_SEALING = threading.Semaphore(os.cpu_count() or 1)  # a seal has an image in memory several times


def seal(hold: GuestHold) -> None:
    """Make of libvirt's image one for each side, and write down what is in all three."""
    with _SEALING:
        seal_this(hold, _plain(hold))


def seal_this(hold: GuestHold, plain: bytes) -> None:
    """As `seal`, of libvirt's image as it will be once libvirt has marked it whole."""
    notes, images, sealed = hold.notes, {}, _sealed(hold, plain)
    for side in Side:
        data = _for_side(hold, sealed, side)
        files.write_private(Path(notes.image(side).path), data)
        images[str(side)] = SavedImage(notes.image(side).path, _digest(data))
    hold.note(plain=SavedImage(notes.plain.path, _digest(plain)), **images)


def elsewhere(name: str, told: Path) -> Path:
    """Where an image in memory is; `told` is the folder in which the hook is told of guests."""
    return entry(name, told).with_suffix(".image")


def good_image(hold: GuestHold, side: Side) -> Path:
    """An image whose every byte is as it was written; made anew from libvirt's own if need be.

    QEMU loads whatever is in the file. Raises NeedsOperator when none is left: the guest stays held.
    """
    image, plain = hold.notes.image(side), hold.notes.plain
    if image.digest and _is_whole(image):
        return Path(image.path)
    if plain.digest and not _is_whole(plain, finished):
        raise _damaged(hold, f"{image.path} and {plain.path} damaged, or gone")
    try:
        seal(hold)  # a crash came between libvirt's writing and our own, or our own was damaged
    except ImageNotUnderstood as error:
        raise _damaged(hold, str(error)) from error
    except Failed:
        return _seal_elsewhere(hold, side)
    return Path(hold.notes.image(side).path)


def has_state(hold: GuestHold) -> bool:
    """Whether all that libvirt writes of a guest was written, damaged or not understood as it may be.

    Raises Failed when that cannot be told.
    """
    path = Path(hold.notes.plain.path)
    if hold.notes.plain.digest:
        return True
    try:
        with path.open("rb") as file:
            return was_finished(file.read(_HEAD))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise Failed(f"{hold.name}: reading {path}", found=error.strerror or str(error)) from error


def _plain(hold: GuestHold) -> bytes:
    """libvirt's own image. What was written down of it is whole, whether or not libvirt got to marking it so."""
    data = files.read_private(Path(hold.notes.plain.path), IMAGE_LIMIT)
    marked = finished(data)
    return marked if _digest(marked) == hold.notes.plain.digest else data


def _seal_elsewhere(hold: GuestHold, side: Side) -> Path:
    """One of them in memory, with nothing written down: a full disk does not keep a guest from coming back."""
    path = elsewhere(hold.name, hold.ports.config.paths.held)
    files.write_private(path, _for_side(hold, _sealed(hold, _plain(hold)), side))
    return path


def _sealed(hold: GuestHold, plain: bytes) -> StateImage:
    """What a plain restore loads, on every QEMU; raises Failed for an image that has not kept the RAM out."""
    doing = _READING.format(hold.name)
    image = StateImage.parse(plain)
    if not image.leaves_shared_ram_out:
        raise Failed(doing, expected="a state without its RAM", found="its RAM in it")
    missing = sorted(pin.size for pin in hold.notes.pins)
    for block in image.ram:
        if block.size in missing:
            missing.remove(block.size)
    if missing:
        raise Failed(doing, expected="RAM as large as its files", found=f"none of {missing[0]} bytes")
    if len(image.rest) > sum(pin.size for pin in hold.notes.pins) // 8 + (64 << 20):
        raise Failed(doing, expected="next to nothing saved", found=f"{len(image.rest)} bytes")
    return StateImage.parse(image.sealed())


def _for_side(hold: GuestHold, sealed: StateImage, side: Side) -> bytes:
    try:
        definition = held_definition(sealed.xml, token=hold.notes.held.token, emulator=hold.emulator(side))
    except PlainXmlError as error:
        doing = _READING.format(hold.name)
        raise Failed(doing, expected="a definition of libvirt's", found=str(error)) from error
    return sealed.with_xml(definition)


def _is_whole(image: SavedImage, read: Callable[[bytes], bytes] = bytes) -> bool:
    try:
        return _digest(read(files.read_private(Path(image.path), IMAGE_LIMIT))) == image.digest
    except HostagentError:
        return False


def _damaged(hold: GuestHold, found: str) -> NeedsOperator:
    return NeedsOperator(
        f"{hold.name}: restoring it: it is held, with its RAM, and nothing of it runs",
        expected="its state as it was saved",
        found=found,
        hint="put the file back, then: hostagent recover",
    )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
