"""Setting a host up: below a root of its own, with mounts that are only remembered."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hosts_set_up import CONF, FSTAB, RAM, Host, new_host

from hostagent.config import Config
from hostagent.errors import Failed, Refused
from hostagent.hypervisor.qemu_conf import setting
from hostagent.libvirt_files.hook import HOOK
from hostagent.setup import setup_host
from hostagent.setup.host_files import Mount
from hostagent.setup.setup_host import Report, check, tasks
from hostagent.setup.setup_tasks import mount_of, passable, private

NAMES = ["/var/lib/hostagent", "fstab", str(RAM), "memory_backing_dir", "libvirt's hook"]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return new_host(tmp_path / "root")


def test_check_names_every_need_and_touches_nothing(host: Host) -> None:
    before = host.everything()
    assert host.check() == dict.fromkeys(NAMES, False)
    assert host.everything() == before
    needs = check(tasks(host.wanted, host.files, host.mounts, ()))
    assert all(need.change and need.why and not need.in_the_way for need in needs)


def test_apply_meets_every_need_and_asks_for_a_restart(host: Host) -> None:
    report = host.apply()
    assert report.restart_libvirtd and len(report.done) == 5
    assert host.check() == dict.fromkeys(NAMES, True)
    conf = host.path("/etc/libvirt/qemu.conf").read_bytes()
    assert conf.startswith(CONF) and setting(conf, "memory_backing_dir") == str(RAM)
    assert host.path("/var/lib/hostagent").stat().st_mode & 0o777 == 0o711


def test_the_mount_is_for_qemus_user_alone_now_and_after_a_reboot(host: Host) -> None:
    host.apply()
    uid = os.getuid()
    assert host.mounts.options == (
        f"mode=0700,uid={uid},gid={os.getgid()},size=50%,huge=within_size,nosuid,nodev,noexec"
    )
    line = host.path("/etc/fstab").read_text().splitlines()[-2].split()
    assert line[:3] == ["hostagent-ram", str(RAM), "tmpfs"]
    assert line[3].startswith(host.mounts.options + ",nofail,x-systemd.before=libvirtd.service")


def test_an_old_kernel_gets_no_huge_option(host: Host) -> None:
    assert "huge" not in setup_host.tmpfs_options(replace(host.wanted, huge_pages=False))


def test_applying_again_does_nothing(host: Host) -> None:
    host.apply()
    before = host.everything()
    assert host.apply() == Report((), restart_libvirtd=False)
    assert host.everything() == before


def test_undo_restores_the_host_exactly(host: Host) -> None:
    before = host.everything()
    host.apply()
    (host.path(RAM) / "libvirt/qemu").mkdir(parents=True)  # libvirtd started meanwhile
    report = host.undo()
    assert report.restart_libvirtd
    assert host.everything() == before
    assert host.mounts.mounts() == (Mount(Path("/"), "ext4"),)
    assert host.undo() == Report((), restart_libvirtd=False)


def test_undo_keeps_what_was_edited_since_and_what_holds_something(host: Host) -> None:
    host.apply()
    conf = host.path("/etc/libvirt/qemu.conf")
    conf.write_bytes(b"# top\n" + conf.read_bytes() + b"max_files = 1\n")
    (host.path("/var/lib/hostagent") / "journal").write_text("j")
    host.undo()
    assert conf.read_bytes() == b"# top\n" + CONF + b"\nmax_files = 1\n"
    assert (host.path("/var/lib/hostagent") / "journal").exists()


def test_undo_is_refused_while_ram_files_are_there(host: Host) -> None:
    """Of a running guest, or of a held one that nobody sees running."""
    host.apply()
    (host.path(RAM) / "libvirt/qemu/1-a").mkdir(parents=True)
    (host.path(RAM) / "libvirt/qemu/1-a/pc.ram").write_text("ram")
    before = host.everything()
    with pytest.raises(Refused, match=r"files in /var/lib/libvirt/ram: /var/lib/libvirt/ram/libvirt/qemu/1-a/pc\.ram"):
        host.undo()
    assert host.everything() == before


def test_undo_is_refused_while_a_guest_is_held(host: Host) -> None:
    host.apply()
    host.path("/run/hostagent/held").mkdir(parents=True)
    host.path("/run/hostagent/held/web1.held").write_text("update u1")
    with pytest.raises(Refused, match="guests that are held: web1"):
        host.undo()
    assert host.check()["libvirt's hook"]


def test_the_hook_of_another_version_is_replaced_and_that_of_somebody_else_is_left(host: Host) -> None:
    host.apply()
    hook = host.path(HOOK)
    assert hook.stat().st_mode & 0o777 == 0o755
    right = hook.read_bytes()
    hook.write_bytes(right + b"# older\n")
    assert host.check()["libvirt's hook"] is False
    host.apply()
    assert hook.read_bytes() == right
    hook.write_bytes(b"#!/bin/sh\n")
    with pytest.raises(Refused, match="somebody else's"):
        host.apply()
    assert host.undo() and hook.read_bytes() == b"#!/bin/sh\n"


def test_the_hook_looks_where_the_settings_say(host: Host) -> None:
    host.wanted = replace(host.wanted, held=Path("/srv/held"))
    host.apply()
    assert b"HOSTAGENT_HELD:-/srv/held}" in host.path(HOOK).read_bytes()


def test_an_undo_that_stopped_midway_can_be_repeated(host: Host) -> None:
    before = host.everything()
    host.apply()
    host.mounts.busy = True
    with pytest.raises(Failed, match="busy"):
        host.undo()
    host.mounts.busy = False
    host.undo()
    assert host.everything() == before


def test_running_guests_with_ram_elsewhere_are_in_the_way(host: Host) -> None:
    host.ram_paths = (Path("/var/lib/libvirt/qemu/ram/1-a/pc.ram"),)
    before = host.everything()
    with pytest.raises(Refused, match=r"running guests with their RAM in /var/lib/libvirt/qemu/ram/1-a/pc\.ram"):
        host.apply()
    assert host.everything() == before
    assert host.check()["memory_backing_dir"] is False  # looking is not refused


def test_running_guests_with_ram_in_our_place_are_not(host: Host) -> None:
    host.apply()
    host.ram_paths = (RAM / "libvirt/qemu/1-a/pc.ram",)
    host.path("/etc/fstab").write_bytes(FSTAB)  # somebody lost our line
    report = host.apply()
    assert [words[:22] for words in report.done] == ["put into /etc/fstab: h"]
    assert not report.restart_libvirtd


def test_files_that_a_mount_would_hide_are_in_the_way(host: Host) -> None:
    (host.path(RAM) / "libvirt/qemu/1-a").mkdir(parents=True)
    with pytest.raises(Refused, match=f"files in {RAM}"):
        host.apply()


def test_a_tmpfs_of_somebody_else_is_left_as_it_is(host: Host) -> None:
    """Somebody set our place to /dev/shm: its mode is not ours to change."""
    host.wanted = replace(host.wanted, memory_backing_dir=Path("/dev/shm"))
    host.path("/dev/shm").mkdir(parents=True)
    host.path("/dev/shm").chmod(0o1777)
    host.mounts.seen.append(Mount(Path("/dev/shm"), "tmpfs"))
    with pytest.raises(Refused, match="a tmpfs that setup did not mount on /dev/shm, mode 1777"):
        host.apply()
    assert host.path("/dev/shm").stat().st_mode & 0o7777 == 0o1777


def test_having_set_up_another_place_does_not_make_this_one_ours(host: Host) -> None:
    host.apply()
    host.wanted = replace(host.wanted, memory_backing_dir=Path("/dev/shm"))
    host.path("/dev/shm").mkdir(parents=True)
    host.path("/dev/shm").chmod(0o1777)
    host.mounts.seen.append(Mount(Path("/dev/shm"), "tmpfs"))
    with pytest.raises(Refused, match="a tmpfs that setup did not mount"):
        host.apply()
    host.undo()
    assert Mount(Path("/dev/shm"), "tmpfs") in host.mounts.seen


def test_a_disk_mounted_there_is_in_the_way(host: Host) -> None:
    host.path(RAM).mkdir()
    host.mounts.seen.append(Mount(RAM, "xfs"))
    with pytest.raises(Refused, match=f"xfs mounted on {RAM}"):
        host.apply()


def test_our_mount_with_a_wrong_mode_is_mended(host: Host) -> None:
    host.apply()
    host.path(RAM).chmod(0o755)
    assert host.check()[str(RAM)] is False
    host.apply()
    assert host.path(RAM).stat().st_mode & 0o777 == 0o700


def test_an_administrators_own_mount_and_line_are_good_enough(host: Host) -> None:
    host.path("/etc/fstab").write_bytes(f"ram {RAM}\ttmpfs mode=0711 0 0\n".encode())
    host.path("/etc/libvirt/qemu.conf").write_bytes(f"memory_backing_dir = '{RAM}/'\n".encode())
    host.path(RAM).mkdir(mode=0o711)
    host.mounts.seen.append(Mount(RAM, "tmpfs"))
    assert len(host.apply().done) == 2  # our directory, and the hook
    host.undo()
    assert Mount(RAM, "tmpfs") in host.mounts.seen
    assert b"0711" in host.path("/etc/fstab").read_bytes()


def test_another_memory_backing_dir_wins_if_it_is_in_memory(host: Host) -> None:
    conf = host.path("/etc/libvirt/qemu.conf")
    conf.write_bytes(b'memory_backing_dir = "/srv/ram/guests"\n')
    with pytest.raises(Refused, match=r"memory_backing_dir = /srv/ram/guests in qemu\.conf, on ext4"):
        host.apply()
    host.mounts.seen.append(Mount(Path("/srv/ram"), "tmpfs"))
    host.apply()
    assert host.check() == dict.fromkeys([NAMES[0], "memory_backing_dir", NAMES[-1]], True)
    assert conf.read_bytes() == b'memory_backing_dir = "/srv/ram/guests"\n'
    assert host.path("/etc/fstab").read_bytes() == FSTAB


def test_a_changed_setting_replaces_the_blocks(host: Host) -> None:
    before = host.path("/etc/libvirt/qemu.conf").read_bytes()
    host.apply()
    host.wanted = replace(host.wanted, memory_backing_dir=Path("/mnt/ram"), ram_size="8g")
    host.apply()
    assert setting(host.path("/etc/libvirt/qemu.conf").read_bytes(), "memory_backing_dir") == "/mnt/ram"
    assert host.path("/etc/fstab").read_text().count("hostagent-ram") == 1
    host.undo()
    assert host.path("/etc/libvirt/qemu.conf").read_bytes() == before


def test_files_that_are_not_there_are_made_and_removed(host: Host) -> None:
    host.path("/etc/libvirt/qemu.conf").unlink()
    host.path("/etc/fstab").unlink()
    before = host.everything()
    host.apply()
    assert host.path("/etc/libvirt/qemu.conf").stat().st_mode & 0o777 == 0o600
    host.undo()
    assert host.everything() == before


def test_without_libvirts_folder_nothing_is_touched(host: Host) -> None:
    shutil.rmtree(host.path("/etc/libvirt"))
    before = host.everything()
    with pytest.raises(Refused, match="no folder /etc/libvirt"):
        host.apply()
    assert host.everything() == before


@pytest.mark.parametrize("name", ["/etc/libvirt/qemu.conf", "/etc/fstab"])
def test_a_linked_file_is_refused_before_anything_is_touched(host: Host, name: str) -> None:
    host.path(name).rename(host.path("/etc/real"))
    host.path(name).symlink_to("/etc/real")
    with pytest.raises(Refused, match="no link"):
        host.apply()
    assert not host.path("/var/lib/hostagent").exists()


def test_a_place_with_a_blank_is_written_as_fstab_wants_it(host: Host) -> None:
    host.wanted = replace(host.wanted, memory_backing_dir=Path("/mnt/a b"))
    host.apply()
    assert "hostagent-ram /mnt/a\\040b tmpfs" in host.path("/etc/fstab").read_text()
    assert all(host.check().values())


@pytest.mark.parametrize(
    ("conf", "value"),
    [
        (None, None),
        (b"", None),
        (b'# user = "a"\n', None),
        (b'user="a"\nuser = "b"\n', "a"),
        (b"  user = 'a' # c\n", "a"),
        (b'superuser = "a"\n', None),
        (b'\xff\nuser = "a"\n', "a"),
        (b'user = ""\n', ""),
    ],
)
def test_a_setting_is_read_as_libvirt_reads_it(conf: bytes | None, value: str | None) -> None:
    assert setting(conf, "user") == value


def test_qemus_user_comes_from_qemu_conf(host: Host) -> None:
    conf = host.path("/etc/libvirt/qemu.conf")
    conf.write_bytes(b'user = "+4242"\n')
    assert setup_host.wanted_on_this_host(Config(), host.files).qemu_uid == 4242
    conf.write_bytes(b'user = "root"\n')
    assert setup_host.wanted_on_this_host(Config(), host.files).qemu_uid == 0
    conf.write_bytes(b'user = "nobody-has-this-name"\n')
    with pytest.raises(Refused, match="a user nobody-has-this-name, found none"):
        setup_host.wanted_on_this_host(Config(), host.files)


def test_who_passes_and_who_lists() -> None:
    assert private(0o700) and private(0o711) and not private(0o750) and not private(0o1777)
    assert passable(0o700, 107, 107) and passable(0o711, 0, 107) and not passable(0o700, 0, 107)


def test_the_mount_a_path_lies_on() -> None:
    mounts = (Mount(Path("/"), "ext4"), Mount(Path("/a"), "xfs"), Mount(Path("/a"), "tmpfs"))
    assert mount_of(Path("/a/b"), mounts) == mounts[2]
    assert mount_of(Path("/ab"), mounts) == mounts[0]
    assert mount_of(Path("/a"), ()) is None


# -- AppArmor


LOCAL = Path("/etc/apparmor.d/local")


@pytest.fixture
def confined(host: Host, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """libvirtd has a profile; which profiles are loaded anew."""
    (host.path(LOCAL) / "abstractions").mkdir(parents=True)
    (host.path(LOCAL) / "usr.sbin.libvirtd").write_text("# somebody's own\n")
    host.wanted = replace(host.wanted, confined=("libvirtd",))
    loaded: list[Path] = []
    monkeypatch.setattr("hostagent.setup.setup_host.load_profile", loaded.append)
    return loaded


def test_apparmor_lets_other_qemus_run(host: Host, confined: list[Path]) -> None:
    before = host.everything()
    host.apply()
    rules = (host.path(LOCAL) / "usr.sbin.libvirtd").read_text()
    assert rules.startswith("# somebody's own\n")
    assert '  "/var/lib/hostagent/qemu/*/usr/bin/qemu-system-*" PUx,\n' in rules
    assert '  "/var/lib/hostagent/qemu/**" rmix,\n' in (host.path(LOCAL) / "abstractions/libvirt-qemu").read_text()
    assert confined == [Path("/etc/apparmor.d/usr.sbin.libvirtd")]
    assert all(host.check().values())
    host.undo()
    assert {path: seen for path, seen in host.everything().items() if "apparmor" in path} == {
        path: seen for path, seen in before.items() if "apparmor" in path
    }
    assert len(confined) == 2


@pytest.mark.parametrize(("enabled", "found"), [("Y\n", ("libvirtd",)), ("N\n", ()), (None, ())])
def test_whether_apparmor_confines_libvirt(host: Host, enabled: str | None, found: tuple[str, ...]) -> None:
    if enabled is not None:
        host.path("/sys/module/apparmor/parameters").mkdir(parents=True)
        host.path("/sys/module/apparmor/parameters/enabled").write_text(enabled)
    host.path("/etc/apparmor.d").mkdir(parents=True, exist_ok=True)
    host.path("/etc/apparmor.d/usr.sbin.libvirtd").write_text("profile\n")
    host.path("/etc/libvirt/qemu.conf").write_text('user = "root"\n')
    assert setup_host.wanted_on_this_host(Config(), host.files).confined == found
