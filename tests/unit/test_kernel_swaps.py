"""What a host needs so that guests' RAM outlives its kernel, and what of a plan speaks against it."""

from __future__ import annotations

from pathlib import Path

import pytest
import sampled
from called import guest

from hostagent.errors import Refused
from hostagent.facts import Component, Freshness
from hostagent.plan import Reason, Verdict
from hostagent.planning.host_planner import Swap, plan_everything, plan_host
from hostagent.planning.kernel_checks import KernelSwap
from hostagent.planning.prediction import Past
from hostagent.setup.host_files import HostFiles, Mount, parse_mountinfo
from hostagent.setup.kernel_swaps import GRUB, SETTINGS, UNIT, PersistentRam, WholeFile, swap_tasks
from hostagent.setup.persistent_ram import Region, choose_region, reserved

IOMEM = """\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
00100000-7ffd9fff : System RAM
  01000000-01e01b67 : Kernel code
100000000-17fffffff : System RAM
180000000-1bfffffff : System RAM
"""
GIB = 1 << 30
RAM = "/var/lib/libvirt/ram"


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


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostFiles:
    """A host's, with every command taken down."""
    for folder in ("etc/default", "etc/systemd/system", "etc/hostagent"):
        (tmp_path / folder).mkdir(parents=True)
    commands: list[str] = []
    monkeypatch.setattr(
        "hostagent.setup.kernel_swaps.processes.run",
        lambda argv, within_seconds: commands.append(" ".join(argv)),
    )
    monkeypatch.setattr(HostFiles, "make_folder", lambda self, path, *_: self._at(path).mkdir(parents=True))
    files = HostFiles(tmp_path)
    files.commands = commands  # type: ignore[attr-defined]
    return files


def test_a_host_is_prepared_and_left_as_it_was(files: HostFiles) -> None:
    tasks = swap_tasks(files, GIB, IOMEM)
    assert [task.look().satisfied for task in tasks] == [False] * 3
    for task in tasks:
        task.apply()
    assert b'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX memmap=1024M!6144M"\n' in (files.read(GRUB) or b"")
    assert files.read(SETTINGS) == b'[setup]\nram_device = "/dev/pmem0"\n'
    unit = (files.read(UNIT) or b"").decode()
    assert "Before=libvirtd.service virtqemud.service libvirt-guests.service\n" in unit
    assert "recover --at-boot\n" in unit
    assert files.commands == [  # type: ignore[attr-defined]
        "update-grub",
        "systemctl daemon-reload",
        "systemctl enable hostagent-boot.service",
    ]
    # RAM that is reserved stays where it is, whatever is asked for later.
    assert [task.look().satisfied for task in swap_tasks(files, GIB // 2, IOMEM)] == [True] * 3
    for task in tasks:
        assert task.undo()
        assert not task.undo()
    assert [files.read(path) for path in (GRUB, SETTINGS, UNIT)] == [None] * 3


class Mounts:
    def __init__(self, *mounts: Mount) -> None:
        self._mounts = mounts

    def mounts(self) -> tuple[Mount, ...]:
        return self._mounts

    def mount_tmpfs(self, target: Path, options: str) -> None: ...
    def unmount(self, target: Path) -> None: ...


@pytest.mark.parametrize(
    ("cmdline", "mount", "satisfied", "said"),
    [
        ("quiet", None, False, "reboot the host once"),
        ("memmap=1G!4G", None, False, "make a file system on /dev/pmem0"),
        ("memmap=1G!4G", Mount(Path(RAM), "ext4"), True, ""),
        ("quiet", Mount(Path(RAM), "tmpfs"), False, "reboot the host once"),
    ],
)
def test_the_file_system(files: HostFiles, cmdline: str, mount: Mount | None, satisfied: bool, said: str) -> None:
    mounts = Mounts(Mount(Path("/"), "ext4"), *([mount] if mount else []))
    need = PersistentRam(Path(RAM), 1, 1, lambda: cmdline, lambda: False, files, mounts).look()
    assert (need.satisfied, said in need.change) == (satisfied, True)


def test_a_whole_file_says_what_it_runs(files: HostFiles) -> None:
    task = WholeFile("x", "y", Path("/etc/x"), "a\n", files, after=(("update-grub",),))
    assert task.look().change == "write /etc/x; then update-grub"


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
