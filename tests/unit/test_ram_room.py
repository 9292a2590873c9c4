"""What room there is for RAM, read from the machine itself and from made-up cgroups."""

import os
from pathlib import Path

import pytest

from hostagent.hypervisor import ram_room as module
from hostagent.hypervisor import surroundings
from hostagent.hypervisor.ram_room import memory_room, ram_room


def test_a_tmpfs_is_known_and_every_file_counts_whole_and_once() -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or not os.access(shared, os.W_OK):
        pytest.skip("no tmpfs to write to")
    folder = shared / f"hostagent-room-{os.getpid()}"
    folder.mkdir()
    try:
        before = ram_room(folder)
        with (folder / "pc.ram").open("wb") as file:
            file.truncate(64 << 20)  # sparse: its guest has touched nothing yet
        os.link(folder / "pc.ram", folder / "pin")
        after = ram_room(folder)
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    assert before is not None
    assert after is not None
    assert before.filesystem == "tmpfs"
    assert before.unpromised - after.unpromised == 64 << 20
    assert after.available > 0


def test_no_folder_is_no_room(tmp_path: Path) -> None:
    assert ram_room(tmp_path / "none") is None


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two cgroups, one in the other, that the process is in."""
    inner = tmp_path / "machine.slice" / "guest.scope"
    inner.mkdir(parents=True)
    for folder in (inner, inner.parent):
        (folder / "cgroup.procs").touch()
    monkeypatch.setattr(surroundings, "cgroups", lambda _: frozenset({("", "/machine.slice/guest.scope")}))
    monkeypatch.setattr(surroundings, "cgroup_folder", lambda _, where: tmp_path / where.lstrip("/"))
    return inner


def limited(folder: Path, limit: str, used: int) -> None:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")


def test_the_nearest_limit_counts(groups: Path) -> None:
    limited(groups, "1000", 400)
    limited(groups.parent, "5000", 4900)
    assert memory_room(1) == 100
    limited(groups.parent, "max", 4900)
    assert memory_room(1) == 600


def test_no_limit_is_no_limit(groups: Path) -> None:
    assert memory_room(1) is None
    limited(groups, "max", 4)
    assert memory_room(1) is None


def test_version_1_says_no_limit_by_a_number(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        surroundings, "cgroups", lambda _: frozenset({("memory", "/machine.slice/guest.scope"), ("cpu", "/x")})
    )
    (groups / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (groups / "memory.usage_in_bytes").write_text("4096\n")
    assert memory_room(1) is None
    (groups / "memory.limit_in_bytes").write_text("8192\n")
    assert memory_room(1) == 4096


def test_a_process_that_is_gone_has_no_limit() -> None:
    assert module.memory_room(4194304) is None
