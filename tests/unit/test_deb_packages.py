"""Which Debian packages make a QEMU together."""

from pathlib import Path

import pytest

from hostagent.errors import Refused
from hostagent.trees.deb_packages import Package, check, parse

NEW = "1:10.0.2+ds-2+deb13u1~bpo12+1"


def package(name: str, version: str = NEW, source: str = "qemu", needs: tuple[str, ...] = ()) -> Package:
    return Package(Path(f"{name}.deb"), name, version, source, version, needs)


EMULATOR = package("qemu-system-x86", needs=("qemu-system-common", "qemu-system-data"))
COMMON, DATA = package("qemu-system-common"), package("qemu-system-data")
SEABIOS = package("seabios", "1.16.3-2~bpo12+1", "seabios")


def test_fields_as_dpkg_prints_them() -> None:
    said = (
        f"Package: qemu-system-x86\nVersion: {NEW}\nSource: qemu\n"
        "Depends: libaio1 (>= 0.3.93), qemu-system-common (= 1), qemu-system-data (>> 1~), ipxe-qemu\n"
    )
    assert parse(Path("x.deb"), said) == Package(
        Path("x.deb"), "qemu-system-x86", NEW, "qemu", NEW, ("qemu-system-common", "qemu-system-data")
    )


def test_a_source_with_its_own_version_and_one_without_a_name() -> None:
    assert parse(Path("x"), "Package: a\nVersion: 2+b1\nSource: qemu (2)\n").source_version == "2"
    assert parse(Path("x"), "Package: seabios\nVersion: 1\n").source == "seabios"


def test_siblings_of_one_version_and_firmware_go_together() -> None:
    check("adding", [SEABIOS, DATA, EMULATOR, COMMON])


@pytest.mark.parametrize(
    ("packages", "expected", "found"),
    [
        ([COMMON, DATA], "the package qemu-system-x86 among them", "qemu-system-common, qemu-system-data"),
        ([EMULATOR, DATA], "the packages qemu-system-x86 depends on", "no qemu-system-common"),
        (
            [EMULATOR, COMMON, package("qemu-system-data", "1:7.2+dfsg-7")],
            f"one version, {NEW}",
            "qemu-system-data 1:7.2+dfsg-7",
        ),
        (
            [EMULATOR, COMMON, DATA, package("bash", "5", "bash")],
            "packages of the source qemu, or firmware",
            "bash of bash",
        ),
        ([EMULATOR, COMMON, DATA, DATA], "each package once", "qemu-system-data twice"),
    ],
)
def test_what_makes_no_qemu_is_refused_in_words(packages: list[Package], expected: str, found: str) -> None:
    with pytest.raises(Refused) as caught:
        check("adding", packages)
    assert (caught.value.expected, caught.value.found) == (expected, found)


def test_what_is_missing_comes_with_the_command_that_gets_it() -> None:
    with pytest.raises(Refused, match=r"apt-get download qemu-system-common=1:10\.0\.2"):
        check("adding", [EMULATOR, DATA])
