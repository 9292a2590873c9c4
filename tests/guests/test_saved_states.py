"""What a hold takes a saved state for, and what it cuts out of it, is what QEMU's own script reads there.

States of both QEMUs: pc and q35, 1 and 4 vCPUs, with and without disk, network card and NUMA nodes. The script is the
one of QEMU 10.0. It knows x-ignore-shared only from what 10.0 says of it in the description, for such scripts alone,
that follows a state: QEMU loads a state without looking at it, so that sealing leaves it as it is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from hostagent import wiring
from hostagent.libvirt_files.state_image import IGNORE_SHARED, StateImage, finished, is_all_written
from tests.bench.guest_spec import GuestSpec
from tests.bench.host import Host
from tests.bench.lab import Lab
from tests.bench.paths import ANALYZER
from tests.bench.proof import Proof

SECONDS = 300.0
SHAPES = {
    "pc-4": GuestSpec(machine="pc", vcpus=4),
    "q35-1": GuestSpec(),
    "pc-1": GuestSpec(machine="pc", disk=False, nic=False),
    "q35-4-numa": GuestSpec(vcpus=4, disk=False, numa_nodes=2, memory_slots=1),
}
QEMUS = ("7.2", "10.0")
STREAM = b"QEVM\0\0\0\3"  # the zeros keep it apart from a definition


@dataclass(frozen=True)
class Saved:
    """A guest's state as libvirt wrote it."""

    spec: GuestSpec
    qemu: str
    image: StateImage
    told: list[bytes]  # to whoever was asked before its QEMU ended


@pytest.fixture(scope="module")
def states(host: Host, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], Saved]]:
    """Those with a disk are up and at work as they are saved; the others have just begun to boot."""
    assert ANALYZER.exists(), f"expected {ANALYZER} (hint: make rootfs)"
    folder, api = tmp_path_factory.mktemp("states"), wiring.libvirt_of(lab.config)
    made: dict[tuple[str, str], Saved] = {}
    with ExitStack() as stack:
        stack.callback(api.disconnect)
        for disk in (True, False):
            specs = {key: spec for key, spec in every_spec(lab).items() if spec.disk is disk}
            for spec in specs.values():
                stack.enter_context(host.guest(spec))
            for key, spec in specs.items():
                if disk:
                    Proof(host.connection.lookupByUUIDString(spec.uuid)).wait_booted(connected=False)
                with api.sender(spec.uuid) as monitor:
                    monitor.set_capabilities({IGNORE_SHARED: True})
                path, told = folder / spec.name, list[bytes]()
                now = api.standing(spec.uuid)
                assert now is not None and now.process is not None
                api.save(spec.uuid, now.process, path, SECONDS, lambda image, _, told=told: told.append(image))  # type: ignore[misc]
                made[key] = Saved(spec, key[0], StateImage.parse(path.read_bytes()), told)
        yield made


def every_spec(lab: Lab) -> dict[tuple[str, str], GuestSpec]:
    emulators = dict(zip(QEMUS, (lab.system.emulator, lab.newer.emulator), strict=True))
    kinds = list(product(QEMUS, SHAPES))
    return {
        (qemu, shape): replace(
            SHAPES[shape], name=f"{qemu}-{shape}", index=index, memory_mib=256, emulator=emulators[qemu]
        )
        for index, (qemu, shape) in enumerate(kinds, start=1)
    }


@pytest.fixture(params=list(product(QEMUS, SHAPES)), ids="-".join)
def saved(states: dict[tuple[str, str], Saved], request: pytest.FixtureRequest) -> Saved:
    return states[request.param]


class NotReadError(Exception):
    """What the script said instead."""


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], dict[str, Any]]:
    """What the script finds in an image, by section."""

    def found(image: bytes) -> dict[str, Any]:
        stream = tmp_path / "stream"
        stream.write_bytes(image[image.index(STREAM) :])
        argv = [sys.executable, str(ANALYZER), "--file", str(stream)]
        said = subprocess.run(argv, capture_output=True, text=True, check=False)
        if said.returncode:
            raise NotReadError(said.stderr)
        return {name.rpartition(" (")[0]: value for name, value in json.loads(said.stdout).items()}

    return found


def without_its_capabilities(image: bytes) -> bytes:
    """An image whose description says nothing of them; it stands at the end, after the last zero and its length."""
    begin = image.index(b"{", image.rindex(b"\0"))
    length = int.from_bytes(image[begin - 4 : begin], "big")
    assert begin + length == len(image)
    description = json.loads(image[begin:])
    if "configuration" in description:
        (gone,) = description["configuration"].pop("subsections")
        assert gone["vmsd_name"] == "configuration/capabilities"
    text = json.dumps(description).encode()
    return image[: begin - 4] + len(text).to_bytes(4, "big") + text


def test_the_script_reads_what_was_sealed(saved: Saved, read: Callable[[bytes], dict[str, Any]]) -> None:
    """The same RAM blocks, and every device to its end: a byte too many or too few would make nonsense of the rest."""
    found = read(without_its_capabilities(saved.image.sealed()))
    assert found["ram"]["section sizes"] == {block.name: f"0x{block.size:016x}" for block in saved.image.ram}
    kinds = {name.rpartition("/")[2] for name in found}
    assert {"timer", "cpu_common", "cpu", "virtio-rng", "virtio-console"} <= kinds
    assert ("virtio-blk" in kinds, "virtio-net" in kinds) == (saved.spec.disk, saved.spec.nic)


def test_all_of_it_is_there_before_the_qemu_ends(saved: Saved) -> None:
    (image,) = saved.told
    assert is_all_written(image)
    assert finished(image) == saved.image.data
    assert not is_all_written(saved.image.data)  # libvirt has marked it since
    for length in (len(image) - 1, len(image) * 9 // 10, len(image) // 2):
        assert not is_all_written(image[:length])


def test_sealing_changes_nothing_of_it(saved: Saved, read: Callable[[bytes], dict[str, Any]]) -> None:
    """As the script reads it before, which it does for 10.0 alone."""
    if saved.qemu == "7.2":
        with pytest.raises(NotReadError):
            read(saved.image.data)
    else:
        assert read(saved.image.data) == read(without_its_capabilities(saved.image.sealed()))
