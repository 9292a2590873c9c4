"""What libvirt's qemu.conf says."""

from pathlib import Path

import pytest

from hostagent.hypervisor import qemu_conf


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("#dynamic_ownership = 0\n", True),
        ("dynamic_ownership = 1\n", True),
        ("dynamic_ownership = 0\n", False),
        ('user = "root"\n\tdynamic_ownership=0 # ours\n', False),
    ],
)
def test_whether_libvirt_changes_the_owners_of_files(tmp_path: Path, text: str, expected: bool) -> None:
    (tmp_path / "qemu.conf").write_text(text)
    assert qemu_conf.read(tmp_path / "qemu.conf").changes_owners is expected


def test_without_the_file_it_does(tmp_path: Path) -> None:
    assert qemu_conf.read(tmp_path / "none").changes_owners
