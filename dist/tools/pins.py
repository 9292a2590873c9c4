"""Says what a package of hostagent is built with, each with its hash: python -m dist.tools.pins > dist/requirements.txt

The newest that pyproject.toml allows: wheels for Debian 12's Python 3.11, and the source of libvirt-python, which is
compiled against Debian's libvirt. Whatever is downloaded later and differs by a byte is not taken.
"""

import hashlib
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from pip._vendor.packaging.utils import parse_sdist_filename, parse_wheel_filename

PROJECT = Path(__file__).parents[2]
COMPILED = "libvirt-python"
PLATFORM = (
    *("--implementation", "cp", "--python-version", "3.11"),
    *("--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_28_x86_64", "--only-binary", ":all:"),
)


def wanted() -> list[str]:
    """What hostagent depends on."""
    found: list[str] = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    return found


def download(words: Sequence[str], into: Path) -> None:
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "-d", str(into), *words], check=True)


def pins(folder: Path) -> Iterator[str]:
    """A line of a requirements file for each file that pip downloaded."""
    for path in folder.iterdir():
        parse = parse_wheel_filename if path.suffix == ".whl" else parse_sdist_filename
        name, version = parse(path.name)[:2]
        yield f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        mine = [one for one in wanted() if one.startswith(COMPILED)]
        download([*PLATFORM, *(one for one in wanted() if one not in mine)], Path(folder))
        download(["--no-deps", "--no-binary", COMPILED, *mine], Path(folder))
        print("# By python -m dist.tools.pins, for Debian 12's Python 3.11 on amd64.")
        print(*sorted(pins(Path(folder))), sep="\n")


if __name__ == "__main__":
    main()
