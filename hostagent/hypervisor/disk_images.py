"""Which images of a guest's disks libvirt can copy to another host, as far as its live XML says. Pure.

libvirt copies what the guest sees of a disk into an image of the same format (qemuMigrationSrcNBDStorageCopy of 9.0).
Only what has been tried is let through.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from hostagent.facts import Disk
from hostagent.hypervisor.live_definition import attribute, images_of, parse, source_of

FORMATS = ("qcow2", "raw")


def read_disks(uuid: str, live_xml: str) -> tuple[Disk, ...]:
    """Every image that its disks have on this host, those below others too; sizes are not in there."""
    return tuple(_disks(uuid, parse(live_xml)))


def _disks(uuid: str, root: Element) -> Iterator[Disk]:
    for element in root.iterfind("devices/disk"):
        images = list(images_of(element))
        if not images or images[0].get("type") not in ("file", "block"):
            continue  # an empty drive, or on a network that both hosts reach
        fault = _fault(element, len(images))
        for image in images:
            yield Disk(
                guest=uuid,
                target=attribute(element.find("target"), "dev"),
                path=source_of(image),
                format=attribute(element.find("driver"), "type"),
                fault=fault,
            )


def _fault(disk: Element, images: int) -> str:
    """Why it cannot be copied; "" when it can."""
    device, kind = disk.get("device", "disk"), disk.get("type", "")
    image_format = attribute(disk.find("driver"), "type")
    inside = [element.tag for element in disk.iterfind("source/*")]
    found = {
        f"a {device}, of which libvirt copies none": device != "disk",
        "a read-only disk, of which libvirt copies none": disk.find("readonly") is not None,
        f"a disk of type {kind}": kind != "file",
        f"an image of format {image_format or 'unknown'}": image_format not in FORMATS,
        f"a chain of {images} images": images > 1,
        f"<{''.join(inside[:1])}> in its <source>": bool(inside),
    }
    return next((words for words, is_so in found.items() if is_so), "")
