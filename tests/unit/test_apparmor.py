"""A guest's AppArmor profile is told what the new QEMU opens. No host with AppArmor was at hand to try it on."""

import json
from pathlib import Path

import pytest
import sampled

from hostagent import processes
from hostagent.errors import Failed
from hostagent.hypervisor import apparmor

PROFILE = "libvirt-03848e6a-a2b0-5eae-9a24-fb77046ecdbd"


@pytest.mark.parametrize(
    ("label", "profile"),
    [
        (f"{PROFILE} (enforce)", PROFILE),
        (PROFILE, PROFILE),
        ("", ""),
        ("unconfined", ""),
        ("/usr/sbin/libvirtd (enforce)", ""),
        (f"{PROFILE}//null-x (enforce)", ""),
        ("system_u:system_r:svirt_t:s0:c1,c2", ""),
        ("libvirt-../../x (enforce)", ""),
    ],
)
def test_only_libvirt_s_own_labels_are_known(label: str, profile: str) -> None:
    assert apparmor.profile_of(label) == profile


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The calls of the parser."""
    calls: list[list[str]] = []
    monkeypatch.setattr(processes, "run", lambda argv, **_: calls.append(argv))
    return calls


def test_what_the_new_one_opens_is_added_once(tmp_path: Path, parsed: list[list[str]]) -> None:
    rules = tmp_path / f"{PROFILE}.files"
    rules.write_text('  "/var/log/libvirt/**/web1.log" w,\n')
    argv = ("/var/lib/hostagent/qemu/10.0/usr/bin/qemu-system-x86_64", *sampled.argv("q35-plain")[1:])
    for _ in range(2):
        apparmor.allow(f"{PROFILE} (enforce)", argv, tmp_path)
    ram = "/var/lib/libvirt/qemu/ram/libvirt/qemu/1-q35-plain/pc.ram"
    assert rules.read_text().splitlines() == [
        '  "/var/log/libvirt/**/web1.log" w,',
        '  "/dev/net/tun" rw,',
        f'  "{ram}" rw,',
        '  "/var/lib/hostagent/qemu/10.0/usr/bin/qemu-system-x86_64" rmix,',
        '  "/var/lib/hostagent/qemu/10.0/**" rm,',
    ]
    assert parsed == [["apparmor_parser", "-r", str(tmp_path / PROFILE)]] * 2


def test_the_system_s_own_qemu_is_in_the_profile_already(tmp_path: Path, parsed: list[list[str]]) -> None:
    rules = tmp_path / f"{PROFILE}.files"
    rules.touch()
    apparmor.allow(PROFILE, tuple(sampled.argv("q35-plain")), tmp_path)
    assert "qemu-system" not in rules.read_text()


def test_a_guest_s_name_means_itself_alone(tmp_path: Path, parsed: list[list[str]]) -> None:
    rules = tmp_path / f"{PROFILE}.files"
    rules.touch()
    ram = {"qom-type": "memory-backend-file", "id": "pc.ram", "mem-path": '/ram/1-a*"{b},/pc.ram', "size": 1}
    apparmor.allow(PROFILE, ("/usr/bin/qemu", "-object", json.dumps(ram)), tmp_path)
    assert '"/ram/1-a\\*\\"\\{b\\}\\,/pc.ram" rw,' in rules.read_text()


@pytest.mark.parametrize("path", ["/ram/1-a\n  / rwx,\n/pc.ram", "ram/pc.ram"])
def test_what_is_no_path_is_refused(tmp_path: Path, parsed: list[list[str]], path: str) -> None:
    (tmp_path / f"{PROFILE}.files").touch()
    ram = {"qom-type": "memory-backend-file", "id": "pc.ram", "mem-path": path, "size": 1}
    with pytest.raises(Failed, match="a plain path"):
        apparmor.allow(PROFILE, ("/usr/bin/qemu", "-object", json.dumps(ram)), tmp_path)
    assert parsed == []


def test_a_label_of_somebody_else_s_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="a label of libvirt's"):
        apparmor.allow("svirt_t", (), tmp_path)
    with pytest.raises(Failed, match="No such file"):
        apparmor.allow(PROFILE, tuple(sampled.argv("q35-plain")), tmp_path / "none")
