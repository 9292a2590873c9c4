"""Which of a guest's disks can be copied to another host, by its XML."""

import pytest

from hostagent.facts import Disk
from hostagent.hypervisor.disk_images import read_disks


def found(disk: str) -> tuple[Disk, ...]:
    return read_disks("u", f"<domain><devices><emulator>/q</emulator>{disk}</devices></domain>")


def plain(**changed: str) -> str:
    told = {
        "attributes": "type='file' device='disk'",
        "driver": "<driver name='qemu' type='qcow2'/>",
        "source": "<source file='/d/1' index='1'/>",
        "more": "<backingStore/>",
    } | changed
    target = "<target dev='vda' bus='virtio'/>"
    return f"<disk {told['attributes']}>{told['driver']}{told['source']}{told['more']}{target}</disk>"


@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
def test_an_image_in_a_file(image_format: str) -> None:
    disk = plain(driver=f"<driver name='qemu' type='{image_format}' cache='none' discard='unmap'/>")
    assert found(disk) == (Disk("u", "vda", "/d/1", image_format),)


BELOW = "<backingStore type='file'><format type='raw'/><source file='/d/0'/><backingStore/></backingStore>"


@pytest.mark.parametrize(
    ("disk", "fault"),
    [
        (plain(attributes="type='file' device='cdrom'"), "a cdrom, of which libvirt copies none"),
        (plain(attributes="type='file' device='floppy'"), "a floppy, of which libvirt copies none"),
        (plain(attributes="type='file' device='lun'"), "a lun, of which libvirt copies none"),
        (plain(more="<readonly/>"), "a read-only disk, of which libvirt copies none"),
        (plain(attributes="type='block' device='disk'", source="<source dev='/dev/sdb'/>"), "a disk of type block"),
        (plain(driver="<driver name='qemu' type='vmdk'/>"), "an image of format vmdk"),
        (plain(driver=""), "an image of format unknown"),
        (plain(source="<source file='/d/1'><encryption format='luks'/></source>"), "<encryption> in its <source>"),
        (plain(source="<source file='/d/1'><slices/></source>"), "<slices> in its <source>"),
    ],
)
def test_what_nobody_has_tried_is_not_copied(disk: str, fault: str) -> None:
    (one,) = found(disk)
    assert one.fault == fault


def test_no_image_of_a_chain_is_copied() -> None:
    disks = found(plain(more=BELOW))
    assert [(disk.path, disk.fault) for disk in disks] == [
        ("/d/1", "a chain of 2 images"),
        ("/d/0", "a chain of 2 images"),
    ]


def test_what_is_no_file_of_this_host_s_is_none_of_them() -> None:
    network = plain(attributes="type='network' device='disk'", source="<source protocol='rbd' name='p/1'/>")
    empty = plain(attributes="type='file' device='cdrom'", source="")
    assert found(network + empty) == ()
