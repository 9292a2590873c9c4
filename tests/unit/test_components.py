"""What runs of each component of the host, and what is installed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import sampled
from called import KEPT, Caller, guest, shut_off
from journals import NEW, OLD

from hostagent.components import libvirtd, qemu
from hostagent.components.kernel import KernelComponent
from hostagent.components.kernel_images import Build
from hostagent.facts import Component, Freshness, Version

# -- the kernel

RUNNING = Build("6.1.0-49-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.170-1 (2026-05-08)")


def image(folder: Path, release: str, package: str) -> None:
    """The beginning of a bzImage."""
    text = f"{release} (debian-kernel@lists.debian.org) #1 SMP PREEMPT_DYNAMIC Debian {package}"
    head = bytearray(0x4000)
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = (0x3000 - 0x200).to_bytes(2, "little")
    head[0x3000 : 0x3000 + len(text) + 1] = text.encode() + b"\0"
    (folder / f"vmlinuz-{release}").write_bytes(head)


SAME = ("6.1.0-49-amd64", "6.1.170-1 (2026-05-08)")


@pytest.mark.parametrize(
    ("images", "installed", "freshness"),
    [
        ([SAME], "6.1.0-49-amd64 (6.1.170-1)", Freshness.CURRENT),
        ([SAME, ("6.1.0-9-amd64", "6.1.27-1 (2023-05-08)")], "6.1.0-49-amd64 (6.1.170-1)", Freshness.CURRENT),
        ([SAME, ("6.1.0-100-amd64", "6.1.192-2 (2026-11-16)")], "6.1.0-100-amd64 (6.1.192-2)", Freshness.OUTDATED),
        ([("6.1.0-49-amd64", "6.1.171-1 (2026-06-01)")], "6.1.0-49-amd64 (6.1.171-1)", Freshness.OUTDATED),
        ([], "", Freshness.UNKNOWN),
    ],
)
def test_the_kernel(tmp_path: Path, images: list[tuple[str, str]], installed: str, freshness: Freshness) -> None:
    for release, package in images:
        image(tmp_path, release, package)
    (tmp_path / "vmlinuz-none").write_text("no image")
    (tmp_path / "vmlinuz-gone").symlink_to("nowhere")
    found = KernelComponent(tmp_path, boot=tmp_path, running=lambda: RUNNING).look()
    assert found == Component("kernel", "6.1.0-49-amd64 (6.1.170-1)", installed, freshness)


# -- libvirt's daemon


@pytest.fixture
def daemon(tmp_path: Path) -> Path:
    """Its program; in a made-up /proc pid 7 runs it."""
    program = tmp_path / "libvirtd"
    program.write_text("#!/bin/sh\necho 'libvirtd (libvirt) 9.0.0'\n")
    program.chmod(0o755)
    (tmp_path / "proc" / "7").mkdir(parents=True)
    (tmp_path / "proc" / "7" / "exe").symlink_to(program)
    return program


@pytest.mark.parametrize(
    ("running", "installed", "freshness"),
    [
        (Version(9, 0), "9.0.0", Freshness.CURRENT),
        (Version(8, 9), "9.0.0", Freshness.OUTDATED),
    ],
)
def test_the_daemon(daemon: Path, running: Version, installed: str, freshness: Freshness) -> None:
    found = libvirtd.look(running, 7, daemon.parent / "proc")
    assert found == Component("libvirtd", str(running), installed, freshness)


def test_a_daemon_whose_program_was_replaced(daemon: Path) -> None:
    exe = daemon.parent / "proc" / "7" / "exe"
    exe.unlink()
    exe.symlink_to(f"{daemon} (deleted)")
    found = libvirtd.look(Version(9, 0), 7, daemon.parent / "proc")
    assert (found.installed, found.freshness) == ("9.0.0, another build", Freshness.OUTDATED)


@pytest.mark.parametrize("pid", [None, 8])
def test_a_daemon_that_nobody_knows(daemon: Path, pid: int | None) -> None:
    assert libvirtd.look(Version(9, 0), pid, daemon.parent / "proc").freshness is Freshness.UNKNOWN


def test_a_program_that_others_could_write_is_not_run(daemon: Path) -> None:
    daemon.chmod(0o777)
    assert libvirtd.look(Version(9, 0), 7, daemon.parent / "proc").freshness is Freshness.UNKNOWN


# -- QEMU


def test_the_builds_that_guests_run_on() -> None:
    def seen(*guests: object) -> Component:
        return qemu.look(sampled.host(qemu=(OLD, NEW, KEPT), guests=guests))

    old, new = OLD.package, NEW.package
    assert seen(guest("a"), guest("b", qemu=KEPT), shut_off("c")) == Component(
        "qemu", f"{old} x 2", old, Freshness.CURRENT
    )
    assert seen(guest("a"), guest("b", qemu=NEW)) == Component(
        "qemu", f"1:{new[2:]} x 1, {old} x 1", old, Freshness.OUTDATED
    )
    assert seen(guest("a", qemu=None)).freshness is Freshness.UNKNOWN
    assert seen(shut_off("c")) == Component("qemu", "", old, Freshness.NOT_THERE)
    nothing = replace(sampled.host(), qemu=(), guests=(guest("a"),))
    assert qemu.look(nothing).freshness is Freshness.UNKNOWN


# -- shown


def test_inspect_shows_them(hostagent: Caller) -> None:
    document = hostagent.json("inspect")
    assert [component["name"] for component in document["components"]] == ["qemu", "libvirtd", "kvm", "kernel"]
    assert document["components"][0]["freshness"] == "current"
    rows = {line.split()[0]: line for line in hostagent("inspect").stdout.splitlines() if line}
    assert rows["qemu"].rstrip().endswith("current")
    assert "kernel" in rows
