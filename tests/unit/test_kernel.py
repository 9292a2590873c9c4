"""The host's kernel as a component: what is checked before it is started, and what is known once it runs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from hostagent.components.kernel import WORD, KernelComponent, command_line
from hostagent.components.kernel_images import Build
from hostagent.errors import Failed, NeedsOperator, Refused
from hostagent.facts import Freshness

OLD = Build("6.1.0-56-cloud-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-01)")
NEW = Build("6.12.95+deb12-cloud-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.12.95-1~bpo12+1 (2026-11-01)")
PROGRAM = """#!/bin/sh
echo "{name} $*" >>{root}/log
{body}
"""


class Played:
    """A host with two kernels, and the programs that start one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs = OLD
        for folder in ("boot", "info", "bin"):
            (root / folder).mkdir()
        for build in (OLD, NEW):
            self.install(build)
        self.cmdline("BOOT_IMAGE=/boot/vmlinuz root=/dev/vda1 quiet")
        self.program("kexec")
        self.program("lsinitramfs", "echo init; echo usr")
        self.component = KernelComponent(
            root / "kept", boot=root / "boot", cmdline=root / "cmdline", packages=root / "info", running=self.running
        )

    def running(self) -> Build:
        return self.runs

    def install(self, build: Build) -> None:
        text = f"{build.release} (debian) {build.build}"
        head = bytearray(0x4000)
        head[0x202:0x206] = b"HdrS"
        head[0x20E:0x210] = (0x3000 - 0x200).to_bytes(2, "little")
        head[0x3000 : 0x3000 + len(text) + 1] = text.encode() + b"\0"
        image = self.root / "boot" / f"vmlinuz-{build.release}"
        image.write_bytes(head)
        digest = hashlib.md5(image.read_bytes(), usedforsecurity=False).hexdigest()
        sums = self.root / "info" / f"linux-image-{build.release}.md5sums"
        sums.write_text(f"0000  lib/x\n{digest}  {str(image).lstrip('/')}\n")

    def program(self, name: str, body: str = "") -> None:
        path = self.root / "bin" / name
        path.write_text(PROGRAM.format(name=name, root=self.root, body=body))
        path.chmod(0o755)

    def cmdline(self, words: str) -> None:
        (self.root / "cmdline").write_text(f"{words}\n")

    @property
    def log(self) -> list[str]:
        return (self.root / "log").read_text().splitlines()

    @property
    def secret(self) -> str:
        secret = json.loads((self.root / "kept" / "leap.json").read_text())["secret"]
        assert isinstance(secret, str)
        return secret

    def land(self, build: Build = NEW) -> None:
        """The new kernel runs, as kexec would have started it."""
        self.cmdline(command_line("root=/dev/vda1 quiet", self.secret))
        self.runs = build


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Played:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr("hostagent.components.kernel.MODULES", tmp_path / "modules")
    for build in (OLD, NEW):
        (tmp_path / "modules" / build.release).mkdir(parents=True)
    return Played(tmp_path)


def test_the_newest_takes_over(played: Played) -> None:
    assert played.component.look().freshness is Freshness.OUTDATED
    played.component.stage()
    image = f"{played.root}/boot/vmlinuz-{NEW.release}"
    words = f"root=/dev/vda1 quiet panic=10 {WORD}={played.secret}"
    loaded = f"kexec --kexec-file-syscall --load {image} --initrd={played.root}/boot/initrd.img-{NEW.release}"
    assert played.log[-1] == f"{loaded} --command-line={words}"
    assert not played.component.is_applied()
    assert not played.component.is_for_good()
    played.land()
    assert played.component.is_applied()
    assert played.component.is_for_good()
    assert played.component.was_leapt_to()
    played.component.forget()
    assert not (played.root / "kept" / "leap.json").exists()


def test_another_one_that_is_wanted(played: Played, tmp_path: Path) -> None:
    played.runs = NEW
    component = KernelComponent(
        tmp_path / "kept", OLD.release, tmp_path / "boot", tmp_path / "cmdline", tmp_path / "info", played.running
    )
    assert (component.look().installed, component.look().freshness) == (str(OLD), Freshness.OUTDATED)
    with pytest.raises(Refused, match="not older than the one that runs"):
        component.stage()


def test_a_leap_that_comes_back_has_failed(played: Played) -> None:
    played.component.stage()
    with pytest.raises(Failed, match="not to come back"):
        played.component.apply()
    assert played.log[-1] == "kexec --exec --no-ifdown"
    played.component.roll_back()
    assert played.log[-1] == "kexec --kexec-file-syscall --unload"


def test_a_kernel_that_runs_is_not_started_again(played: Played) -> None:
    played.component.stage()
    played.land()
    with pytest.raises(Failed, match="runs already"):
        played.component.apply()
    played.component.roll_back()
    assert not any("unload" in line or "exec " in line for line in played.log[1:] if "--load" not in line)


def test_firmware_started_it(played: Played) -> None:
    """The host was reset, or the new kernel did not come up: nothing of the RAM is left."""
    played.component.stage()
    played.runs = NEW
    assert not played.component.is_for_good()
    assert not played.component.is_applied()
    assert not played.component.was_leapt_to()


def test_another_leap_s_word_is_none_of_ours(played: Played) -> None:
    played.component.stage()
    played.cmdline(f"root=/dev/vda1 {WORD}={'0' * 32}")
    played.runs = NEW
    assert not played.component.is_for_good()
    assert played.component.was_leapt_to()


def test_a_damaged_image_is_refused(played: Played) -> None:
    image = played.root / "boot" / f"vmlinuz-{NEW.release}"
    image.write_bytes(image.read_bytes()[:-1] + b"x")
    with pytest.raises(Refused, match="as its package has it"):
        played.component.stage()


def test_an_image_of_no_package_is_refused(played: Played) -> None:
    (played.root / "info" / f"linux-image-{NEW.release}.md5sums").unlink()
    with pytest.raises(Refused, match="an image of an installed package"):
        played.component.stage()


@pytest.mark.parametrize("body", ["exit 1", "echo usr"])
def test_an_initial_ram_disk_that_cannot_start_is_refused(played: Played, body: str) -> None:
    played.program("lsinitramfs", body)
    with pytest.raises(Refused):
        played.component.stage()


def test_a_kernel_without_modules_is_refused(played: Played) -> None:
    (played.root / "modules" / NEW.release).rmdir()
    with pytest.raises(Refused, match="modules"):
        played.component.stage()


def test_a_kernel_that_is_not_taken(played: Played) -> None:
    played.program("kexec", "echo 'kexec_file_load failed: Exec format error' >&2; exit 255")
    with pytest.raises(Failed, match="Exec format error"):
        played.component.stage()


def test_no_kernel_is_installed(played: Played) -> None:
    for image in (played.root / "boot").iterdir():
        image.unlink()
    assert played.component.look().freshness is Freshness.UNKNOWN
    with pytest.raises(Refused, match="found none"):
        played.component.stage()


def test_what_was_written_is_damaged(played: Played) -> None:
    """Under the new kernel a person is asked; under the old one it is of no use, and keeps no guest held."""
    played.component.stage()
    secret = played.secret
    (played.root / "kept" / "leap.json").write_text("{}")
    assert not played.component.is_for_good()
    assert not played.component.is_applied()
    played.component.roll_back()
    assert played.log[-1] == "kexec --kexec-file-syscall --unload"
    played.cmdline(command_line("root=/dev/vda1 quiet", secret))
    with pytest.raises(NeedsOperator, match=r"leap\.json"):
        played.component.is_for_good()
    played.component.forget()
    assert not (played.root / "kept" / "leap.json").exists()


@pytest.mark.parametrize(
    ("running", "then"),
    [
        ("BOOT_IMAGE=/vmlinuz root=a quiet", f"root=a quiet panic=10 {WORD}=s"),
        ("root=a panic=0 memmap=2G!4G", f"root=a panic=0 memmap=2G!4G {WORD}=s"),
        (f"initrd=/i root=a {WORD}=old", f"root=a panic=10 {WORD}=s"),
    ],
)
def test_its_command_line(running: str, then: str) -> None:
    assert command_line(running, "s") == then
