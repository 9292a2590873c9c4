"""Setting a host up for swaps of its kernel, over boots and back, cut off anywhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hosts_set_up import FSTAB, RAM, FakeMounts, Host, new_host

from hostagent.errors import Failed, Refused
from hostagent.setup.boot_unit import INSTALLED, SYSTEMD, UNIT, WANTED_UNIT, unit_text
from hostagent.setup.host_files import HostFiles, Mount
from hostagent.setup.kernel_swaps import GRUB, MENU, REBOOT, SETTINGS, UPDATE_GRUB, KernelFacts, gives_back
from hostagent.setup.persistent_ram import regions_of
from hostagent.setup.setup_host import Report, Task, apply, check, kernel_swap_tasks, tasks_to_undo, undo

IOMEM = """\
00100000-7ffd9fff : System RAM
100000000-17fffffff : System RAM
180000000-1bfffffff : System RAM
"""
GIB = 1 << 30
PMEM = Mount(RAM, "ext4", "/dev/pmem0", ("rw", "dax=always"))
COMMANDS = ["update-grub", "systemctl daemon-reload", "systemctl enable hostagent-boot.service"]


class CutOff(BaseException):
    """Nobody catches it: as good as a kill."""


@dataclass
class SwapHost:
    """A host with GRUB and systemd, whose kernel is told what the menu says as it boots."""

    host: Host
    cmdline: str = "quiet"
    leapt: bool = False
    commands: list[str] = field(default_factory=list)
    failing: str = ""  # a command that fails
    cut_off_after: int | None = None  # changes of any kind

    def tasks(self, size: int | None = None) -> tuple[Task, ...]:
        host = self.host
        return kernel_swap_tasks(host.wanted, host.files, host.mounts, host.ram_paths, size=size, kernel=self.kernel)

    @property
    def kernel(self) -> KernelFacts:
        return KernelFacts(lambda: self.leapt, lambda: self.cmdline, lambda: IOMEM, lambda: 2 * GIB)

    def apply(self, size: int | None = None) -> Report:
        return apply(self.tasks(size))

    def missing(self, size: int | None = None) -> list[str]:
        return [need.name for need in check(self.tasks(size)) if not need.satisfied]

    def undo(self) -> Report:
        return undo(tasks_to_undo(self.host.wanted, self.host.files, self.host.mounts, self.kernel))

    def files(self) -> dict[str, object]:
        """Without folders: an empty one that a cut left is no harm."""
        return {path: seen for path, seen in self.host.everything().items() if not self.host.path(f"/{path}").is_dir()}

    def gives_back(self) -> bool:
        return gives_back(self.host.files, self.kernel)

    def read(self, path: Path) -> str:
        return (self.host.files.read(path) or b"").decode()

    def run(self, argv: tuple[str, ...], within_seconds: float) -> None:
        self.changed()
        words = " ".join(argv)
        if self.failing and words.startswith(self.failing):
            raise Failed(f"running {argv[0]}", expected="exit status 0", found="1")
        self.commands.append(words)
        link = self.host.path(WANTED_UNIT)
        if words == "update-grub":
            told = " ".join(region.parameter for region in regions_of(self.read(GRUB)))
            self.host.path(MENU).write_text(f"linux /boot/vmlinuz quiet {told}\n")
        elif "enable" in argv:
            link.unlink(missing_ok=True)
            link.symlink_to(UNIT)
        elif "disable" in argv:
            assert self.read(UNIT) or self.host.files.is_there(INSTALLED[-1])  # an empty file would be a masked unit
            link.unlink(missing_ok=True)

    def mount_ram(self, device: Path, target: Path, _uid: int, _gid: int, *, fresh: bool) -> None:
        self.changed()
        assert (str(device), fresh) == ("/dev/pmem0", not self.leapt)
        self.host.path(target).mkdir(exist_ok=True)
        self.host.mounts.seen.append(PMEM)

    def reboot(self) -> None:
        for mount in self.host.mounts.seen[1:]:
            self.host.mounts.unmount(mount.target)
        self.cmdline = self.read(MENU).removeprefix("linux /boot/vmlinuz ").strip()
        if f" {RAM} tmpfs " in self.read(Path("/etc/fstab")):
            self.host.mounts.mount_tmpfs(RAM, "")
        elif self.read(SETTINGS) and self.host.files.is_there(WANTED_UNIT) and "memmap=" in self.cmdline:
            self.mount_ram(Path("/dev/pmem0"), RAM, 0, 0, fresh=not self.leapt)

    def changed(self) -> None:
        if self.cut_off_after is not None:
            if self.cut_off_after == 0:
                raise CutOff
            self.cut_off_after -= 1


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SwapHost]:
    made = new_host(tmp_path / "root")
    for folder in (GRUB.parent, MENU.parent, WANTED_UNIT.parent, UPDATE_GRUB.parent, SYSTEMD):
        made.path(folder).mkdir(parents=True, exist_ok=True)
    made.path(UPDATE_GRUB).write_text("#!/bin/sh\n")
    made.path(MENU).write_text("linux /boot/vmlinuz quiet \n")
    host = SwapHost(made)

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def count_and_change(*arguments: Any, **named: Any) -> Any:
            host.changed()
            return change(*arguments, **named)

        return count_and_change

    make_folder = HostFiles.make_folder
    mine = (os.getuid(), os.getgid())
    monkeypatch.setattr(
        HostFiles, "make_folder", counted(lambda self, path, mode, *_: make_folder(self, path, mode, *mine))
    )
    monkeypatch.setattr(HostFiles, "write", counted(HostFiles.write))
    monkeypatch.setattr(FakeMounts, "mount_tmpfs", counted(FakeMounts.mount_tmpfs))
    monkeypatch.setattr(FakeMounts, "unmount", counted(FakeMounts.unmount))
    monkeypatch.setattr("hostagent.setup.whole_file.processes.run", host.run)
    monkeypatch.setattr("hostagent.setup.boot_unit.processes.run", host.run)
    monkeypatch.setattr("hostagent.setup.kernel_swaps.mount_ram", host.mount_ram)
    yield host


def test_a_host_is_prepared_rebooted_and_left_as_it_was(host: SwapHost) -> None:
    before = host.host.everything()
    host.apply(GIB)
    assert 'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX memmap=1024M!6144M"\n' in host.read(GRUB)
    assert host.read(SETTINGS) == '[setup]\nram_device = "/dev/pmem0"\n'
    assert "Before=libvirtd.service virtqemud.service libvirt-guests.service\n" in host.read(UNIT)
    assert "recover --at-boot\n" in host.read(UNIT)
    assert host.commands == COMMANDS
    assert host.missing() == [str(RAM)]  # until it is booted
    host.reboot()
    assert host.missing() == []
    assert host.host.mounts.seen[-1] == PMEM
    report = host.undo()
    assert report.restart_libvirtd
    assert [words.split("/")[-1] for words in report.done[:4]] == [
        "ram",
        "hostagent-boot.service",
        "kernel-swaps.toml",
        "hostagent.cfg",
    ]
    assert host.host.everything() == before
    assert host.host.mounts.seen == [Mount(Path("/"), "ext4")]
    assert host.gives_back()  # the memory does not come back before a boot
    assert host.undo() == Report((), restart_libvirtd=False)
    assert host.gives_back()
    host.reboot()
    assert not host.gives_back()


def cut_off(host: SwapHost, after: int, do: Callable[[], object]) -> bool:
    """Do it, and be killed after so many changes; whether that came before the end."""
    host.cut_off_after = after
    try:
        do()
    except CutOff:
        return True
    finally:
        host.cut_off_after = None
    return False


def cuts() -> range:
    """More than there are changes."""
    return range(40)


@pytest.fixture
def installed(host: SwapHost) -> SwapHost:
    """The same host, with hostagent from a package that has the unit."""
    place = host.host.path(INSTALLED[-1])
    place.parent.mkdir(parents=True)
    place.write_text(unit_text(("/usr/bin/hostagent",)))
    return host


def test_an_installations_own_unit_is_enabled_and_left_there(installed: SwapHost) -> None:
    before = installed.host.everything()
    installed.apply(GIB)
    assert installed.commands == ["update-grub", "systemctl enable hostagent-boot.service"]
    assert not installed.host.files.is_there(UNIT)
    installed.reboot()
    assert installed.missing() == []
    assert "disabled hostagent-boot.service" in installed.undo().done
    assert installed.host.everything() == before
    assert installed.host.mounts.seen == [Mount(Path("/"), "ext4")]


def test_a_unit_that_setup_wrote_before_there_was_a_package_starts_what_is_installed(host: SwapHost) -> None:
    host.apply(GIB)
    installed = host.host.path(INSTALLED[-1])
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    assert UNIT.name in host.missing()
    host.apply(GIB)
    assert "ExecStart=/usr/bin/hostagent recover --at-boot\n" in host.read(UNIT)
    host.undo()
    assert not host.host.files.is_there(UNIT) and not host.host.files.is_there(WANTED_UNIT)


@pytest.mark.parametrize("after", cuts())
def test_with_an_installations_unit_it_is_finished_or_undone_from_anywhere(installed: SwapHost, after: int) -> None:
    before = installed.files()
    if cut_off(installed, after, installed.apply):
        installed.undo()
        assert installed.files() == before
    else:
        assert installed.missing() == [str(RAM)]


def test_what_waits_for_the_boot_is_not_said_to_be_done(host: SwapHost) -> None:
    assert not any(REBOOT in words for words in host.apply(GIB).done)
    assert host.apply(GIB) == Report((), restart_libvirtd=False)


def test_undone_before_it_was_booted_nothing_has_to_come_back(host: SwapHost) -> None:
    before = host.host.everything()
    host.apply()
    host.undo()
    assert host.host.everything() == before
    assert not host.gives_back()


def test_the_tmpfs_that_it_stood_in_for_goes_too(host: SwapHost) -> None:
    """Its line in fstab went first, and the tmpfs itself was to go with the boot."""
    before = host.host.everything()
    host.host.apply()
    host.apply()
    assert host.read(Path("/etc/fstab")) == FSTAB.decode()
    assert host.host.mounts.seen[-1].kind == "tmpfs"
    host.undo()
    assert host.host.everything() == before
    assert host.host.mounts.seen == [Mount(Path("/"), "ext4")]


def test_afterwards_it_is_set_up_without_and_with_them_again(host: SwapHost) -> None:
    host.apply(GIB)
    host.reboot()
    host.undo()
    assert set(host.host.check().values()) == {False}
    host.host.apply()
    assert set(host.host.check().values()) == {True}
    host.undo()
    host.apply(GIB)  # the running kernel leaves that memory alone still: it is not looked for elsewhere
    assert "memmap=1024M!6144M" in host.read(GRUB)
    assert host.missing(GIB) == []


@pytest.mark.parametrize("what", ["ram", "held"])
def test_what_is_in_use_stays_and_nothing_is_touched(host: SwapHost, what: str) -> None:
    host.apply()
    host.reboot()
    path = host.host.path(RAM / "libvirt/qemu/1-a/pc.ram" if what == "ram" else "/run/hostagent/held/web1.held")
    path.parent.mkdir(parents=True)
    path.write_text("x")
    before = host.host.everything()
    with pytest.raises(Refused, match=r"files in .*pc\.ram" if what == "ram" else "guests that are held: web1"):
        host.undo()
    assert host.host.everything() == before
    assert host.host.mounts.seen[-1] == PMEM


def test_what_is_mapped_by_somebody_stays_and_so_does_all_else(host: SwapHost) -> None:
    """A file that was removed and is open still is seen by nobody but the kernel."""
    host.apply()
    host.reboot()
    before = host.host.everything()
    host.host.mounts.busy = True
    with pytest.raises(Failed, match="busy"):
        host.undo()
    assert host.host.everything() == before


def test_persistent_memory_of_somebody_else_is_left_mounted(host: SwapHost) -> None:
    host.host.path(RAM).mkdir()
    host.host.mounts.seen.append(PMEM)
    assert host.undo() == Report((), restart_libvirtd=False)
    assert host.host.mounts.seen[-1] == PMEM


def test_a_link_in_the_place_of_a_file_is_refused_before_anything_is_touched(host: SwapHost) -> None:
    host.apply()
    host.reboot()
    host.host.path(GRUB).rename(host.host.path("/etc/real"))
    host.host.path(GRUB).symlink_to("/etc/real")
    before = host.host.everything()
    with pytest.raises(Refused, match="no link"):
        host.undo()
    assert host.host.everything() == before


# -- once more, with another size, and cut off


def test_memory_that_is_reserved_stays_where_it_is(host: SwapHost) -> None:
    host.apply(GIB)
    for size in (None, GIB, GIB - 1):
        assert host.missing(size) == [str(RAM)]
    host.reboot()
    for size in (None, GIB, GIB - 1):
        assert host.missing(size) == []


def test_another_size_counts_until_it_is_booted(host: SwapHost) -> None:
    host.apply(GIB)
    host.apply(GIB // 2)
    assert "memmap=512M!6656M" in host.read(MENU)
    host.reboot()
    with pytest.raises(Refused, match=r"expected --reserve 512M, as is reserved, or none, found 1024M .*--undo"):
        host.apply(GIB)


def test_without_a_size_it_is_half_of_the_memory(host: SwapHost) -> None:
    host.apply()
    assert "memmap=1024M!6144M" in host.read(GRUB)


@pytest.mark.parametrize("failing", ["update-grub", "systemctl daemon-reload", "systemctl enable"])
def test_a_command_that_fails_is_run_the_next_time(host: SwapHost, failing: str) -> None:
    host.failing = failing
    with pytest.raises(Failed):
        host.apply()
    assert str(RAM) != host.missing()[0]
    host.failing = ""
    host.apply()
    assert (host.missing(), host.commands[-1]) == ([str(RAM)], COMMANDS[-1])
    assert "memmap=" in host.read(MENU) and host.host.files.is_there(WANTED_UNIT)


@pytest.mark.parametrize("failing", ["update-grub", "systemctl disable"])
def test_an_undo_that_failed_is_finished_the_next_time(host: SwapHost, failing: str) -> None:
    before = host.host.everything()
    host.apply()
    host.failing = failing
    with pytest.raises(Failed):
        host.undo()
    host.failing = ""
    host.undo()
    assert host.host.everything() == before


@pytest.mark.parametrize("after", cuts())
@pytest.mark.parametrize("before_it", ["nothing", "setup"])
def test_a_setup_that_is_cut_off_anywhere_is_finished_or_undone(host: SwapHost, after: int, before_it: str) -> None:
    before = host.files()
    if before_it == "setup":
        host.host.apply()
    if not cut_off(host, after, host.apply):
        assert host.missing() == [str(RAM)]
        return
    host.undo()
    assert host.files() == before
    if before_it == "setup":
        host.host.apply()
    assert cut_off(host, after, host.apply)
    host.reboot()  # whatever was there by then: guests' RAM is in memory, or nowhere yet
    host.apply()
    host.reboot()
    assert host.missing() == []
    assert host.host.mounts.seen[-1] == PMEM


@pytest.mark.parametrize("after", cuts())
def test_an_undo_that_is_cut_off_anywhere_is_finished_or_taken_back(host: SwapHost, after: int) -> None:
    before = host.host.everything()
    host.apply()
    host.reboot()
    if cut_off(host, after, host.undo):
        host.apply()
        assert host.missing() == []
        assert cut_off(host, after, host.undo)
    host.undo()
    assert host.host.everything() == before


def test_there_are_no_more_changes_than_are_cut(host: SwapHost) -> None:
    host.host.apply()
    assert not cut_off(host, cuts()[-1], host.apply)
    assert not cut_off(host, cuts()[-1], host.undo)


# -- what is in the way


@pytest.mark.parametrize(
    ("cmdline", "mount", "satisfied", "said", "in_the_way"),
    [
        ("quiet", None, False, "reboot the host once", ""),
        ("memmap=1G!4G", None, False, "make a file system on /dev/pmem0", ""),
        ("memmap=1G!4G", PMEM, True, "", ""),
        ("quiet", Mount(RAM, "tmpfs"), False, "reboot the host once", ""),
        ("memmap=1G!4G", Mount(RAM, "tmpfs"), False, "reboot the host once", ""),
        ("memmap=1G!4G", Mount(RAM, "ext4", "/dev/vdb"), False, "mount /dev/pmem0", f"ext4 mounted on {RAM}"),
        ("quiet", Mount(RAM, "xfs", "/dev/vdb"), False, "mount /dev/pmem0", f"xfs mounted on {RAM}"),
    ],
)
def test_the_file_system(
    host: SwapHost, cmdline: str, mount: Mount | None, satisfied: bool, said: str, in_the_way: str
) -> None:
    host.cmdline = cmdline
    host.host.mounts.seen += [mount] if mount else []
    need = check(host.tasks())[-1]
    assert (need.satisfied, need.in_the_way, said in need.change) == (satisfied, in_the_way, True)


@pytest.mark.parametrize(
    ("lost", "found"), [(UPDATE_GRUB, "no /usr/sbin/update-grub"), (SYSTEMD, "no systemd")], ids=["grub", "systemd"]
)
def test_only_grub_and_systemd_are_known(host: SwapHost, lost: Path, found: str) -> None:
    place = host.host.path(lost)
    place.rename(place.with_name("gone"))
    before = host.host.everything()
    with pytest.raises(Refused, match=found):
        host.apply()
    assert host.host.everything() == before


def test_a_tmpfs_of_somebody_else_in_fstab_is_in_the_way(host: SwapHost) -> None:
    """As the host boots it would be there before the persistent memory."""
    fstab = host.host.path("/etc/fstab")
    fstab.write_text(f"ram {RAM}\ttmpfs mode=0711 0 0\n")
    with pytest.raises(Refused, match=f"somebody else's line in /etc/fstab: ram {RAM}\ttmpfs"):
        host.apply()


def test_setups_line_in_fstab_goes_whatever_it_says(host: SwapHost) -> None:
    host.host.apply()
    host.host.wanted = replace(host.host.wanted, ram_size="8g")
    host.apply()
    assert host.read(Path("/etc/fstab")) == FSTAB.decode()
