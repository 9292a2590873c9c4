"""A host's files, asked for and changed through its libvirt: disks that are copied to it are made there beforehand.

libvirt writes a disk that it copies into whatever file has the name (qemuMigrationDstPrecreateStorage of 9.0). So the
file is made first, by a call that fails when there is one, and only in that is a guest's disk ever put.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from uuid import uuid4
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import libvirt
import libvirt_qemu

from hostagent.errors import HostagentError
from hostagent.facts import Place
from hostagent.hypervisor.host_capabilities import parse_as
from hostagent.hypervisor.libvirt_line import LibvirtLine, known
from hostagent.hypervisor.live_definition import amount, attribute
from hostagent.hypervisor.migration_verbs import Image

T = TypeVar("T")

_SECONDS = 30.0  # a directory is read, an image is made


class Storage(LibvirtLine):
    """What is in directories of one host, and the images that are made there."""

    def __init__(self, uri: str, call_seconds: float) -> None:
        super().__init__(uri, call_seconds)
        self._one_pool = threading.Lock()  # two of one directory are an error

    def sees(self, path: Path) -> bool:
        doing = f"asking {self._uri} for {path}"
        return self._in_pool(path.parent, doing, lambda pool: path.name in pool.listVolumes())

    def places(self, paths: Collection[Path]) -> tuple[Place, ...]:
        found: list[Place] = []
        for folder in dict.fromkeys(path.parent for path in paths):
            inside = [path for path in paths if path.parent == folder]

            def work(pool: libvirt.virStoragePool, inside: list[Path] = inside) -> list[Place]:
                room, there = int(pool.info()[3]), frozenset(pool.listVolumes())
                return [Place(str(path), room, _worded(pool, path) if path.name in there else "") for path in inside]

            try:
                found += self._in_pool(folder, f"asking {self._uri} for {folder}", work)
            except HostagentError as error:
                found += [Place(str(path), fault=error.found or str(error)) for path in inside]
        return tuple(found)

    def disk_size(self, uuid: str, target: str) -> int:
        with known("asking for the size of a disk", uuid):
            domain = self._domain(uuid)
            return int(self._on(domain, f"asking for the size of {target}", lambda: domain.blockInfo(target)[0]))

    def image(self, path: Path) -> Image | None:
        def work(pool: libvirt.virStoragePool) -> Image | None:
            return _read(pool.storageVolLookupByName(path.name), path) if path.name in pool.listVolumes() else None

        return self._in_pool(path.parent, f"looking at {path}", work)

    def make_image(self, image: Image) -> None:
        doing = f"making {image.path}"
        self._in_pool(image.path.parent, doing, lambda pool: bool(pool.createXML(_volume(image), 0)))

    def remove_image(self, path: Path) -> None:
        def work(pool: libvirt.virStoragePool) -> None:
            if path.name in pool.listVolumes():
                pool.storageVolLookupByName(path.name).delete(0)

        self._in_pool(path.parent, f"removing {path}", work)

    def cut_copies(self, uuid: str) -> None:
        # `yank` of QAPI waits for nobody; the block nodes that libvirt copies to are called "migration-TARGET-storage".

        def work() -> None:
            found = json.loads(libvirt_qemu.qemuMonitorCommand(domain, json.dumps({"execute": "query-yank"}), 0))
            copies = [one for one in found["return"] if one.get("node-name", "").startswith("migration-")]
            words = {"execute": "yank", "arguments": {"instances": copies}}
            if copies:
                libvirt_qemu.qemuMonitorCommand(domain, json.dumps(words), 0)

        with known("cutting the copies of its disks off", uuid):
            domain = self._domain(uuid)
            self._on(domain, "cutting the copies of its disks off", work)

    def _in_pool(self, folder: Path, doing: str, work: Callable[[libvirt.virStoragePool], T]) -> T:
        def ask(connection: libvirt.virConnect) -> T:
            with self._one_pool, _pool_of(connection, folder) as pool:
                return work(pool)

        return self._ask(doing, ask, within_seconds=_SECONDS)


@contextmanager
def _pool_of(connection: libvirt.virConnect, folder: Path) -> Iterator[libvirt.virStoragePool]:
    """The owner's, as it is now; where he has none one of ours for as long as it takes, written down nowhere."""
    try:
        pool = connection.storagePoolLookupByTargetPath(str(folder))
    except libvirt.libvirtError:
        pool = None
    if pool is not None and pool.isActive():
        pool.refresh(0)
        yield pool
        return
    ours = connection.storagePoolCreateXML(_pool(folder), 0)
    try:
        yield ours
    finally:
        with suppress(libvirt.libvirtError):
            ours.destroy()


def _worded(pool: libvirt.virStoragePool, path: Path) -> str:
    found = _read(pool.storageVolLookupByName(path.name), path)
    return f"{found.format or 'a file'} of {found.size >> 20} MiB"


def _read(volume: libvirt.virStorageVol, path: Path) -> Image:
    root = parse_as(volume.XMLDesc(), "volume")
    capacity = root.find("capacity")
    size = 0 if capacity is None else amount(capacity.text or "", capacity.get("unit", "bytes"))
    return Image(path, attribute(root.find("target/format"), "type"), size)


def _pool(folder: Path) -> str:
    pool = Element("pool", type="dir")
    SubElement(pool, "name").text = f"hostagent-{uuid4()}"
    SubElement(SubElement(pool, "target"), "path").text = str(folder)
    return ElementTree.tostring(pool, encoding="unicode")


def _volume(image: Image) -> str:
    volume = Element("volume")
    SubElement(volume, "name").text = image.path.name
    SubElement(volume, "capacity", unit="bytes").text = str(image.size)
    SubElement(volume, "allocation", unit="bytes").text = "0"
    target = SubElement(volume, "target")
    SubElement(target, "format", type=image.format)
    permissions = SubElement(target, "permissions")
    SubElement(permissions, "mode").text = f"0{image.mode:o}"
    SubElement(permissions, "owner").text = str(image.owner)
    SubElement(permissions, "group").text = str(image.group)
    return ElementTree.tostring(volume, encoding="unicode")
