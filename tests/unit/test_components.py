"""What runs of each component of the host, and what is installed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import sampled
from called import KEPT, Caller, guest, shut_off
from journals import NEW, OLD

from hostagent.components import kernel, kvm, libvirtd, qemu
from hostagent.components.kernel import Build
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
    assert kernel.look(tmp_path, RUNNING) == Component("kernel", "6.1.0-49-amd64 (6.1.170-1)", installed, freshness)


# -- KVM

MODINFO = """#!/bin/sh
[ "$1 $2" = "-F srcversion" ] || exit 2
case $3 in kvm) echo AAAA ;; kvm_amd) echo {amd} ;; *) exit 1 ;; esac
"""


def load(folder: Path, **modules: str | None) -> Path:
    for name, version in modules.items():
        (folder / name).mkdir(parents=True)
        if version is not None:
            (folder / name / "srcversion").write_text(f"{version}\n")
    return folder


@pytest.fixture
def modinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "modinfo"
    program.write_text(MODINFO.format(amd="BBBB"))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return program


def test_modules_that_are_loaded_as_they_are_installed(tmp_path: Path, modinfo: Path) -> None:
    loaded = load(tmp_path / "module", kvm="AAAA", kvm_amd="BBBB", other="CCCC")
    shown = "kvm AAAA, kvm_amd BBBB"
    assert kvm.look(loaded) == Component("kvm", shown, shown, Freshness.CURRENT)


def test_a_module_that_was_replaced(tmp_path: Path, modinfo: Path) -> None:
    modinfo.write_text(MODINFO.format(amd="DDDD"))
    found = kvm.look(load(tmp_path / "module", kvm="AAAA", kvm_amd="BBBB"))
    assert (found.installed, found.freshness) == ("kvm AAAA, kvm_amd DDDD", Freshness.OUTDATED)


@pytest.mark.parametrize(
    ("modules", "running", "freshness"),
    [
        ({}, "", Freshness.NOT_THERE),
        ({"kvm": None}, "built into the kernel", Freshness.UNKNOWN),
        ({"kvm": "AAAA", "kvm_intel": "EEEE"}, "kvm AAAA, kvm_intel EEEE", Freshness.UNKNOWN),
    ],
)
def test_modules_of_which_nothing_is_known(
    tmp_path: Path, modinfo: Path, modules: dict[str, str | None], running: str, freshness: Freshness
) -> None:
    found = kvm.look(load(tmp_path / "module", **modules))
    assert (found.running, found.freshness) == (running, freshness)


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
