"""What a host needs so that guests' RAM outlives its kernel, and what of a plan speaks against it."""

from __future__ import annotations

from pathlib import Path

import pytest
import sampled
from called import guest

from hostagent.errors import HostagentError, Refused
from hostagent.facts import Component, Freshness
from hostagent.plan import Reason, Verdict
from hostagent.planning.host_planner import Swap, plan_everything, plan_host
from hostagent.planning.kernel_checks import KernelSwap
from hostagent.planning.prediction import Past
from hostagent.setup.host_files import parse_mountinfo
from hostagent.setup.persistent_ram import Region, choose_region, regions_of, require_set_aside, reserved

IOMEM = """\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
00100000-7ffd9fff : System RAM
  01000000-01e01b67 : Kernel code
100000000-17fffffff : System RAM
180000000-1bfffffff : System RAM
"""
GIB = 1 << 30


@pytest.mark.parametrize(
    ("size", "region", "parameter"),
    [
        (1 * GIB, Region(0x180000000, GIB), "memmap=1024M!6144M"),
        (2 * GIB, Region(0x100000000, 2 * GIB), "memmap=2048M!4096M"),
        (GIB - 1, Region(0x180000000, GIB), "memmap=1024M!6144M"),
        (256 << 20, Region(0x1B0000000, 256 << 20), "memmap=256M!6912M"),
    ],
)
def test_the_highest_piece_of_ram_that_is_large_enough(size: int, region: Region, parameter: str) -> None:
    assert choose_region(IOMEM, size) == region
    assert region.parameter == parameter


@pytest.mark.parametrize("size", [3 * GIB, 1 << 50])
def test_no_piece_is_large_enough(size: int) -> None:
    """Below 4 GiB lies what devices and firmware use."""
    with pytest.raises(Refused, match="found 2048 MiB"):
        choose_region(IOMEM, size)


@pytest.mark.parametrize(
    ("cmdline", "found"),
    [
        ("quiet memmap=2048M!6144M", True),
        ("memmap=1G!4G quiet", True),
        ("memmap=1G$4G", False),
        ("xmemmap=1G!4G", False),
        ("", False),
    ],
)
def test_whether_the_kernel_was_told(cmdline: str, found: bool) -> None:
    assert reserved(cmdline) is found


@pytest.mark.parametrize(
    ("text", "regions"),
    [
        ("quiet memmap=2048M!6144M", [Region(6 * GIB, 2 * GIB)]),
        ('GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX memmap=1G!4G"\n', [Region(4 * GIB, GIB)]),
        ("memmap=1G!4G memmap=2G!8G", [Region(4 * GIB, GIB), Region(8 * GIB, 2 * GIB)]),
        ("memmap=1073741824!4294967296", [Region(4 * GIB, GIB)]),
        ("memmap=1G$4G memmap=1G!4Gx xmemmap=1G!4G", []),
    ],
)
def test_which_memory_it_was_told_of(text: str, regions: list[Region]) -> None:
    assert list(regions_of(text)) == regions


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ("0x140000000", ""),
        ("0x17fffffff", ""),
        ("0x180000000", "found memory at 0x180000000, which may have somebody's data"),
        ("0x100000000", "found memory at 0x100000000, which may have somebody's data"),
        ("", "looking where /dev/pmem0 begins"),
    ],
)
def test_a_file_system_is_made_only_on_memory_that_was_set_aside(tmp_path: Path, start: str, said: str) -> None:
    """Others that are called so keep what is on them: NVDIMMs."""
    for name, content in (("sys/class/block/pmem0/device/resource", start), ("proc/cmdline", "quiet memmap=1G!5G")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(f"{content}\n")
    if not said:
        require_set_aside(Path("/dev/pmem0"), root=tmp_path)
        return
    with pytest.raises(HostagentError, match=said):
        require_set_aside(Path("/dev/pmem0"), root=tmp_path)


@pytest.mark.parametrize(
    ("line", "outlives"),
    [
        ("/ram rw - ext4 /dev/pmem0 rw,dax=always", True),
        ("/ram rw - xfs /dev/pmem1 rw,dax", True),
        ("/ram rw - ext4 /dev/pmem0 rw", False),
        ("/ram rw - ext4 /dev/pmem0 rw,dax=never", False),
        ("/ram rw - ext4 /dev/vda1 rw,dax=always", False),
        ("/ram rw - tmpfs hostagent-ram rw", False),
    ],
)
def test_which_file_systems_outlive_a_kernel(line: str, outlives: bool) -> None:
    (mount,) = parse_mountinfo(f"36 22 0:31 / {line}\n")
    assert mount.outlives_the_kernel is outlives


# -- planning


def kernel(*folders: str, boots: bool = True) -> Swap:
    change = Component("kernel", "6.1", "6.12", Freshness.OUTDATED)
    return Swap(change, holds=True, first_seconds=5.0, kernel=KernelSwap(folders, boots))


def test_a_guest_whose_ram_goes_with_the_kernel_is_refused() -> None:
    host = sampled.host(guests=(guest("web1"),), hold_hook=True)
    plan = plan_host(host, "kernel", [kernel()], policies=sampled.within(30.0), past=Past())
    (web1,) = plan.guests
    assert web1.verdict is Verdict.BLOCKED
    assert [blocker.reason for blocker in web1.blockers] == [Reason.RAM_FILE]
    assert "setup --kernel-swaps" in str(web1.blockers[0].hint)


def test_a_guest_whose_ram_outlives_it_is_held() -> None:
    one = guest("web1")
    folder = str(Path(one.ram_files[0].path).parents[4])
    plan = plan_host(
        sampled.host(guests=(one,), hold_hook=True),
        "kernel",
        [kernel(folder)],
        policies=sampled.within(30.0),
        past=Past(),
    )
    assert (plan.blockers, [one.verdict for one in plan.guests]) == ((), [Verdict.UPDATE])


def test_nobody_would_resume_the_guests() -> None:
    plan = plan_host(
        sampled.host(guests=()), "kernel", [kernel(boots=False)], policies=sampled.within(30.0), past=Past()
    )
    assert [blocker.found for blocker in plan.blockers] == ["none"]


def test_the_kernel_comes_last_and_brings_its_own_modules() -> None:
    def swap(name: str) -> Swap:
        return Swap(Component(name, "1", "2", Freshness.OUTDATED), holds=True, first_seconds=1.0)

    (plan,) = plan_everything(
        sampled.host(guests=()), [kernel(), swap("kvm"), swap("firmware")], policies=sampled.within(30.0), past=Past()
    )
    assert [change.name for change in plan.changes] == ["firmware", "kernel"]
