"""The KVM modules: looked at, kept, swapped and brought back, with modprobe and the kernel played by a script."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from hostagent.components import kvm
from hostagent.components.kvm import KvmComponent
from hostagent.errors import Failed, NeedsOperator, Refused
from hostagent.facts import Component, Freshness

# A module's file holds its name and what modinfo says of it; loading one makes its folder below "module".
PROGRAM = """#!{python} -I
import json, shutil, sys
from pathlib import Path
root = Path({root!r})
words = sys.argv[1:]
with (root / "log").open("a") as log:
    print(Path(sys.argv[0]).name, *words, file=log)
world = json.loads((root / "world.json").read_text())

def load(path, given):
    module = json.loads(Path(path).read_text())
    if module.get("broken"):
        sys.exit("Invalid module format")
    folder = root / "module" / module["name"]
    (folder / "parameters").mkdir(parents=True)
    (folder / "srcversion").write_text(module["srcversion"] + "\\n")
    for name, default in module["parameters"].items():
        (folder / "parameters" / name).write_text(given.get(name, default))
    for name in given:
        if name in module.get("refuses", ()):
            shutil.rmtree(folder)
            sys.exit("Invalid parameters")

def installed(name):
    return [str(root / "lib" / (one + ".ko")) for one in (["kvm"] if name == "kvm" else ["kvm", name])]

match Path(sys.argv[0]).name, words:
    case "modinfo", ["-F", field, path]:
        print(json.loads(Path(path).read_text())[field])
    case "modprobe", ["--show-depends", name]:
        print("insmod /lib/irqbypass.ko")
        for path in installed(name):
            print("insmod", path, world["options"].get(Path(path).stem, ""))
    case "modprobe", ["--remove", name]:
        if name in world["busy"]:
            sys.exit("Module is in use.")
        shutil.rmtree(root / "module" / name)
    case "modprobe", [name]:
        for path in installed(name) if name.startswith("kvm") else []:
            options = world["options"].get(Path(path).stem, "")
            load(path, dict(word.split("=") for word in options.split()))
    case "rmmod", [name]:
        shutil.rmtree(root / "module" / name)
    case "insmod", [path, *given]:
        load(path, dict(word.split("=") for word in given))
    case "udevadm", ["settle", "--timeout=5"]:
        pass
    case other:
        sys.exit(f"not played: {{other}}")
"""


class Played:
    """Modules loaded and installed, and the programs that change them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "lib").mkdir()
        (root / "bin").mkdir()
        (root / "device").write_text("")
        self.world()
        for name in ("modinfo", "modprobe", "insmod", "rmmod", "udevadm"):
            program = root / "bin" / name
            program.write_text(PROGRAM.format(root=str(root), python=sys.executable))
            program.chmod(0o755)
        self.component = KvmComponent(root / "kept", root / "module", root / "device")

    def world(self, *, busy: tuple[str, ...] = (), **options: str) -> None:
        """What is configured; and which modules somebody uses."""
        (self.root / "world.json").write_text(json.dumps({"options": options, "busy": busy}))

    def install(self, name: str, srcversion: str, **more: object) -> None:
        module: dict[str, object] = {"name": name, "srcversion": srcversion, "vermagic": f"{os.uname().release} SMP"}
        module |= {"parameters": {"nested": "1", "npt": "Y"} if name == "kvm_amd" else {"halt_poll_ns": "200000"}}
        (self.root / "lib" / f"{name}.ko").write_text(json.dumps(module | more))

    def load(self, name: str, **parameters: str) -> None:
        module = json.loads((self.root / "lib" / f"{name}.ko").read_text())
        folder = self.root / "module" / name
        (folder / "parameters").mkdir(parents=True)
        (folder / "srcversion").write_text(f"{module['srcversion']}\n")
        for parameter, value in (module["parameters"] | parameters).items():
            (folder / "parameters" / parameter).write_text(f"{value}\n")

    def runs(self, name: str) -> str:
        return (self.root / "module" / name / "srcversion").read_text().strip()

    def parameter(self, name: str, parameter: str) -> str:
        return (self.root / "module" / name / "parameters" / parameter).read_text().strip()


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Played:
    """kvm and kvm_amd run as they are installed."""
    world = Played(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(kvm.fcntl, "ioctl", lambda *_: 12)
    for name, version in (("kvm", "AAAA"), ("kvm_amd", "BBBB")):
        world.install(name, version)
        world.load(name)
    return world


def test_modules_that_are_loaded_as_they_are_installed(played: Played) -> None:
    (played.root / "module" / "other").mkdir()
    shown = "kvm AAAA, kvm_amd BBBB"
    assert played.component.look() == Component("kvm", shown, shown, Freshness.CURRENT)


def test_a_module_that_was_replaced(played: Played) -> None:
    played.install("kvm_amd", "DDDD")
    found = played.component.look()
    assert (found.installed, found.freshness) == ("kvm AAAA, kvm_amd DDDD", Freshness.OUTDATED)


@pytest.mark.parametrize(
    ("options", "freshness"),
    [("nested=0", Freshness.OUTDATED), ("nested=1", Freshness.CURRENT), ("npt=1", Freshness.CURRENT)],
)
def test_parameters_that_are_set(played: Played, options: str, freshness: Freshness) -> None:
    played.world(kvm_amd=options)
    found = played.component.look()
    assert found.freshness is freshness
    assert found.installed == f"kvm AAAA, kvm_amd BBBB {options}"


def test_nothing_is_loaded(tmp_path: Path) -> None:
    assert KvmComponent(tmp_path, tmp_path).look() == Component("kvm", "", "", Freshness.NOT_THERE)


def test_what_is_built_into_the_kernel_is_the_kernels(tmp_path: Path) -> None:
    (tmp_path / "kvm").mkdir()
    found = KvmComponent(tmp_path, tmp_path).look()
    assert (found.running, found.freshness) == ("built into the kernel", Freshness.NOT_THERE)


def test_modules_whose_files_are_gone(played: Played) -> None:
    (played.root / "lib" / "kvm_amd.ko").unlink()
    found = played.component.look()
    assert (found.running, found.freshness) == ("kvm AAAA, kvm_amd BBBB", Freshness.UNKNOWN)


def test_another_build_takes_over(played: Played) -> None:
    played.component.keep()
    played.install("kvm_amd", "DDDD")
    played.component.stage()
    assert not played.component.is_applied()
    played.component.apply()
    assert played.component.is_applied()
    assert (played.runs("kvm"), played.runs("kvm_amd")) == ("AAAA", "DDDD")
    played.component.forget()
    kept = sorted(path.name.split(".", 3)[-1] for path in (played.root / "kept").iterdir())
    assert all("BBBB" not in name for name in kept)


def test_a_module_that_does_not_load_gives_way_to_the_old_one(played: Played) -> None:
    played.component.keep()
    played.install("kvm_amd", "DDDD", broken=True)
    played.component.stage()
    with pytest.raises(Failed, match="Invalid module format"):
        played.component.apply()
    played.component.roll_back()
    assert (played.runs("kvm"), played.runs("kvm_amd")) == ("AAAA", "BBBB")
    played.component.roll_back()  # any number of times


def test_other_parameters_are_taken_back_too(played: Played) -> None:
    played.world(kvm_amd="nested=0")
    played.component.stage()
    played.component.apply()
    assert played.component.is_applied()
    assert played.parameter("kvm_amd", "nested") == "0"
    played.component.roll_back()
    assert played.parameter("kvm_amd", "nested") == "1"


def test_parameters_that_a_module_only_shows_do_not_keep_it_away(played: Played) -> None:
    played.install("kvm_amd", "BBBB", refuses=["npt"])
    played.component.keep()
    played.install("kvm_amd", "DDDD", broken=True)
    played.component.stage()
    with pytest.raises(Failed):
        played.component.apply()
    played.component.roll_back()
    assert played.runs("kvm_amd") == "BBBB"


def test_a_parameter_that_is_only_shown_does_not_cost_the_others(played: Played) -> None:
    """kvm_intel shows "not required" for vmentry_l1d_flush where the processor is not concerned, and refuses it."""
    played.install("kvm_amd", "BBBB", refuses=["npt"])
    (played.root / "module" / "kvm_amd" / "parameters" / "nested").write_text("0\n")
    played.component.keep()
    played.install("kvm_amd", "DDDD", broken=True)
    played.component.stage()
    with pytest.raises(Failed):
        played.component.apply()
    played.component.roll_back()
    assert (played.runs("kvm_amd"), played.parameter("kvm_amd", "nested")) == ("BBBB", "0")


def test_a_module_that_somebody_else_uses_does_not_keep_the_other_one_away(played: Played) -> None:
    """Half of it was unloaded: what could not be is as it was."""
    played.component.keep()
    played.install("kvm_amd", "DDDD")
    played.component.stage()
    played.world(busy=("kvm",))
    with pytest.raises(Failed, match="in use"):
        played.component.apply()
    played.component.roll_back()
    assert (played.runs("kvm"), played.runs("kvm_amd")) == ("AAAA", "BBBB")


def test_modules_that_are_as_they_were_and_do_not_answer_are_loaded_anew(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    played.component.stage()
    answers = iter([0, 12])
    monkeypatch.setattr(kvm.fcntl, "ioctl", lambda *_: next(answers))
    played.component.roll_back()
    log = (played.root / "log").read_text()
    assert "modprobe --remove kvm_amd\nmodprobe --remove kvm\n" in log
    assert (played.runs("kvm"), played.runs("kvm_amd")) == ("AAAA", "BBBB")


def test_what_loads_modules_ends_with_the_updater(played: Played) -> None:
    """The guard kills an updater that lets guests stand still for too long, and takes back what it had begun."""
    played.component.stage()
    os.mkfifo(played.root / "fifo")
    (played.root / "bin" / "modprobe").write_text(f'#!/bin/sh\nexec 3>"{played.root}/fifo"\necho >&3\nexec sleep 60\n')
    updater = os.fork()
    if updater == 0:
        with suppress(BaseException):
            played.component.apply()
        os._exit(0)
    with (played.root / "fifo").open("rb", buffering=0) as fifo:
        assert fifo.read(1) == b"\n"  # it is at work
        os.kill(updater, signal.SIGKILL)
        os.waitpid(updater, 0)
        ended, _, _ = select.select([fifo], [], [], 10.0)
        assert ended, "it goes on"
        assert fifo.read(1) == b""


def test_modules_in_use_stay(played: Played) -> None:
    played.component.keep()
    played.install("kvm_amd", "DDDD")
    played.component.stage()
    played.world(busy=("kvm", "kvm_amd"))
    with pytest.raises(Failed, match="in use"):
        played.component.apply()
    played.component.roll_back()
    assert played.runs("kvm_amd") == "BBBB"


def test_without_a_way_back_nothing_begins(played: Played) -> None:
    played.install("kvm_amd", "DDDD")
    with pytest.raises(Refused, match="the file of the kvm_amd that is loaded"):
        played.component.stage()


def test_modules_of_another_kernel_are_refused(played: Played) -> None:
    played.component.keep()
    played.install("kvm_amd", "DDDD", vermagic="9.9.9 SMP")
    with pytest.raises(Refused, match=r"of 9\.9\.9"):
        played.component.stage()


def test_old_modules_that_do_not_come_back_need_a_person(played: Played) -> None:
    played.component.keep()
    played.install("kvm_amd", "DDDD", broken=True)
    played.component.stage()
    with pytest.raises(Failed):
        played.component.apply()
    for path in (played.root / "kept").glob("*kvm_amd*.ko"):
        path.write_text(json.dumps({"broken": True}))
    with pytest.raises(NeedsOperator, match="insmod") as caught:
        played.component.roll_back()
    assert "the guests are held" in caught.value.hint


def test_a_kvm_that_does_not_answer_is_not_applied(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    played.component.keep()
    played.install("kvm_amd", "DDDD")
    played.component.stage()
    played.component.apply()
    monkeypatch.setattr(kvm.fcntl, "ioctl", lambda *_: 0)
    assert not played.component.is_applied()


def test_what_staging_wrote_is_damaged(played: Played) -> None:
    played.component.stage()
    (played.root / "kept" / "way-back.json").write_text("{")
    with pytest.raises(NeedsOperator, match="way back"):
        played.component.roll_back()


def test_modules_without_srcversions_are_told_apart_by_their_build_ids(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Debian's are: the kernel shows the note as it stands in the file."""
    head = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0"
    for name, number in (("kvm", 1), ("kvm_amd", 2)):
        (played.root / "module" / name / "srcversion").unlink()
        notes = played.root / "module" / name / "notes"
        notes.mkdir()
        (notes / ".note.gnu.build-id").write_bytes(head + bytes([number]) * 20)
        (played.root / "lib" / f"{name}.ko").write_bytes(b"ELF ... " + head + bytes([number]) * 20 + b" ...")
    monkeypatch.setattr(kvm, "_modinfo", lambda field, path: "")
    assert played.component.look().running == "kvm 01010101, kvm_amd 02020202"
    assert played.component.look().freshness is Freshness.CURRENT
    (played.root / "lib" / "kvm_amd.ko").write_bytes(b"ELF ... " + head + bytes([3]) * 20)
    assert played.component.look().installed == "kvm 01010101, kvm_amd 03030303"
    assert played.component.look().freshness is Freshness.OUTDATED
