"""Every reason to refuse, with its own words; and no reason for a plain guest."""

import dataclasses
from typing import Any

import pytest
import sampled
from sampled import guest, host

from hostagent.facts import Definition, Device, Difference, Guest, GuestState, QemuProcess, RamBacking, Version
from hostagent.plan import Blocker, Reason
from hostagent.planning import checks, device_checks


def defined(**changed: Any) -> Guest:
    plain = guest()
    return dataclasses.replace(plain, definition=dataclasses.replace(plain.definition, **changed))


def with_device(device: Device) -> Guest:
    return defined(devices=(*guest().definition.devices, device))


def said(found: tuple[Blocker, ...]) -> list[tuple[str, str, str]]:
    return [(blocker.reason.value, blocker.expected, blocker.found) for blocker in found]


@pytest.mark.parametrize("name", sampled.GOOD)
def test_nothing_stops_a_plain_guest(name: str) -> None:
    assert checks.guest_blockers(guest(name)) == ()


def test_a_guest_paused_by_its_owner_is_fine() -> None:
    assert checks.guest_blockers(guest(state=GuestState.PAUSED_BY_OWNER)) == ()


def test_nothing_stops_a_plain_host() -> None:
    assert checks.host_blockers(host()) == ()
    assert checks.host_blockers(host(machined=Version(252, 0))) == ()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (
            {"state": GuestState.PAUSED_OTHERWISE, "state_reason": "I/O error"},
            ("state", "a guest that runs, or is paused by its owner", "paused (I/O error)"),
        ),
        (
            {"state": GuestState.PM_SUSPENDED},
            ("state", "a guest that runs, or is paused by its owner", "suspended by the guest"),
        ),
        (
            {"state": GuestState.CRASHED},
            ("state", "a guest that runs, or is paused by its owner", "crashed"),
        ),
        (
            {"state": GuestState.SHUTTING_DOWN},
            ("state", "a guest that runs, or is paused by its owner", "shutting down"),
        ),
        ({"process": None}, ("process", "a QEMU process", "none that libvirt's pid file leads to")),
        (
            {"qemu": None},
            ("binary", "a QEMU that is installed on the host", "/usr/bin/qemu-system-x86_64"),
        ),
        ({"job": "a block job on vda"}, ("job", "no job", "a block job on vda")),
        ({"checkpoints": 2}, ("feature", "no checkpoints", "2")),
        (
            {"security_label": "libvirt-0384 (enforce)"},
            ("security-label", "a process without an enforced security label", "libvirt-0384 (enforce)"),
        ),
        (
            {"ram_files": ()},
            (
                "ram-file",
                "the RAM file /var/lib/libvirt/qemu/ram/libvirt/qemu/5-q35-rich/pc.ram",
                "no such file",
            ),
        ),
        (
            {"drift": (Difference("disk vda on /a, as it booted", "/b now"),)},
            ("changed-since-boot", "disk vda on /a, as it booted", "/b now"),
        ),
    ],
)
def test_what_stops_a_guest(changed: dict[str, Any], expected: tuple[str, str, str]) -> None:
    assert said(checks.guest_blockers(guest(**changed))) == [expected]


def test_a_deleted_binary_is_called_so() -> None:
    upgraded = guest(
        qemu=None,
        process=QemuProcess(100, 1, "/usr/bin/q", exe_deleted=True, argv=tuple(sampled.argv("q35-rich"))),
    )
    assert said(checks.guest_blockers(upgraded)) == [
        ("binary", "a QEMU that is installed on the host", "/usr/bin/q, deleted since"),
    ]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"ram": RamBacking.PRIVATE_FILE}, ("ram-not-shared", "RAM in a shared file", "private file RAM")),
        ({"ram": RamBacking.HUGE_PAGES}, ("ram-file", "RAM in a shared file", "huge pages RAM")),
        (
            {"ram_discard": True},
            ("ram-discard", "RAM that its QEMU keeps as it quits", "<discard/> in <memoryBacking>"),
        ),
        (
            {"on_reboot": "preserve"},
            ("setting-not-carried", "<on_reboot> restart or destroy", "preserve"),
        ),
        (
            {"features": frozenset({"numatune"})},
            ("feature", "only elements that are known to be carried", "<numatune>"),
        ),
    ],
)
def test_what_a_definition_stops(changed: dict[str, Any], expected: tuple[str, str, str]) -> None:
    assert said(checks.guest_blockers(defined(**changed))) == [expected]


def device(element: str, kind: str, alias: str, *marks: str) -> Device:
    return Device(element, kind, alias, marks=frozenset(marks))


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        (device("graphics", "spice", ""), ("spice", "no SPICE display", "graphics spice")),
        (device("channel", "spicevmc", "channel2"), ("spice", "no SPICE channel", "channel spicevmc channel2")),
        (device("graphics", "rdp", ""), ("graphics", "a VNC display or none", "graphics rdp")),
        (
            device("hostdev", "pci", "hostdev0"),
            ("passthrough", "no passed-through device", "hostdev pci hostdev0"),
        ),
        (
            device("interface", "hostdev", "hostdev1", "hostdev"),
            ("passthrough", "no passed-through device", "interface hostdev hostdev1"),
        ),
        (
            device("disk", "nvme", "virtio-disk5", "nvme"),
            ("passthrough", "no passed-through device", "disk nvme virtio-disk5"),
        ),
        (
            device("interface", "vhostuser", "net5", "vhost-user"),
            ("vhost-user", "no vhost-user device", "interface vhostuser net5"),
        ),
        (
            device("disk", "vhostuser", "virtio-disk5", "vhost-user"),
            ("vhost-user", "no vhost-user device", "disk vhostuser virtio-disk5"),
        ),
        (
            device("filesystem", "virtiofs", "fs0"),
            ("virtiofs", "no virtiofs folder", "filesystem virtiofs fs0"),
        ),
        (device("tpm", "emulator", "tpm0"), ("tpm", "no TPM", "tpm emulator tpm0")),
        (
            device("interface", "user", "net5", "user"),
            ("user-network", "a network interface with a tap", "interface user net5"),
        ),
        (
            device("interface", "direct", "net5"),
            ("option", "a bridge, network or ethernet interface", "interface direct net5"),
        ),
        (
            device("disk", "file", "virtio-disk5", "throttling"),
            ("setting-not-carried", "no throttle filters", "throttling on disk file virtio-disk5"),
        ),
        (
            device("disk", "file", "virtio-disk5", "shareable"),
            ("option", "a disk with a write lock", "shareable on disk file virtio-disk5"),
        ),
        (
            device("disk", "file", "virtio-disk5", "transient"),
            ("option", "a disk that keeps what is written", "transient on disk file virtio-disk5"),
        ),
        (
            device("disk", "block", "virtio-disk5", "reservations"),
            ("option", "a disk without reservations", "reservations on disk block virtio-disk5"),
        ),
        (
            device("disk", "file", "virtio-disk5", "encryption"),
            ("option", "a disk that QEMU does not decrypt", "encryption on disk file virtio-disk5"),
        ),
        (
            device("disk", "file", "virtio-disk5", "slices"),
            ("option", "a disk that is a whole image", "slices on disk file virtio-disk5"),
        ),
        (
            device("memballoon", "virtio", "balloon0", "free-page-reporting"),
            (
                "option",
                "a balloon without page reporting",
                "free-page-reporting on memballoon virtio balloon0",
            ),
        ),
    ],
)
def test_what_a_device_stops(added: Device, expected: tuple[str, str, str]) -> None:
    assert said(checks.guest_blockers(with_device(added))) == [expected]


def test_every_device_rule_and_mark_is_tried_here() -> None:
    tried = {(rule.reason, rule.expected) for rule in device_checks.DEVICE_RULES} | {
        (reason, expected) for reason, expected, _ in device_checks.MARKS.values()
    }
    table = next(
        mark.args[1]
        for mark in test_what_a_device_stops.pytestmark  # type: ignore[attr-defined]
        if mark.name == "parametrize"
    )
    shown = {(Reason(reason), expected) for _, (reason, expected, _) in table}
    assert tried == shown & tried


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "prealloc",
            [
                ("ram-discard", "RAM that its QEMU keeps as it quits", "<discard/> in <memoryBacking>"),
                (
                    "ram-file",
                    "RAM that is filled as the guest uses it",
                    "-object memory-backend-file (id pc.ram) prealloc=on",
                ),
            ],
        ),
        (
            "spice",
            [
                ("spice", "no SPICE channel", "channel spicevmc channel1"),
                ("spice", "no SPICE display", "graphics spice"),
                ("spice", "no SPICE sound", "-audiodev spice (id audio1)"),
                (
                    "spice",
                    "VGA, cirrus-vga or virtio-vga",
                    "-device qxl-vga (id video0)",
                ),
            ],
        ),
        ("user", [("user-network", "a network interface with a tap", "interface user net1")]),
    ],
)
def test_real_guests_are_refused_once_for_each_reason(name: str, expected: list[tuple[str, str, str]]) -> None:
    assert said(checks.guest_blockers(guest(name))) == expected


def test_all_reasons_are_given_not_the_first() -> None:
    found = checks.guest_blockers(guest("balloon", job="a job", checkpoints=1, state=GuestState.CRASHED))
    assert [blocker.reason for blocker in found] == [
        Reason.STATE,
        Reason.JOB,
        Reason.FEATURE,
        *[Reason.CHANGED_SINCE_BOOT] * 3,
    ]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"lock_manager": "lockd"}, ("lock-manager", "no lock manager", "lockd")),
        (
            {"reconnect_hook": True},
            ("host", "no hook that runs as libvirt reconnects", "a qemu hook in /etc/libvirt/hooks"),
        ),
        ({"machined": Version(255, 0)}, ("host", "systemd-machined before 255, or none", "255")),
        ({"machined": Version(257, 2)}, ("host", "systemd-machined before 255, or none", "257")),
        ({"libvirt_uri": "qemu:///session"}, ("host", "libvirt's qemu:///system", "qemu:///session")),
    ],
)
def test_what_stops_a_host(changed: dict[str, Any], expected: tuple[str, str, str]) -> None:
    seen = host(**changed)
    assert said(checks.host_blockers(seen) + checks.handover_blockers(seen)) == [expected]


def test_every_guest_refusal_says_what_to_do() -> None:
    for name in sampled.ALL:
        for blocker in checks.guest_blockers(guest(name)):
            assert blocker.hint, blocker


def test_a_guest_without_a_definition_is_not_an_error() -> None:
    nothing = Definition("", "", 0, 0, "", RamBacking.UNKNOWN, ram_discard=False, devices=(), features=frozenset())
    assert checks.guest_blockers(guest(definition=nothing)) == ()
