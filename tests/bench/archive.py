"""An archive of Debian packages in a folder, as apt takes one, and packages made over."""

import hashlib
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path


def make_archive(folder: Path, debs: Iterable[Path]) -> str:
    """Put copies of these into it; the line of a sources list that names it."""
    folder.mkdir(exist_ok=True)
    for deb in debs:
        shutil.copy(deb, folder)
    entries = []
    for deb in sorted(folder.glob("*.deb")):
        said = subprocess.run(["dpkg-deb", "-f", str(deb)], check=True, capture_output=True, text=True).stdout
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        entries.append(f"{said.strip()}\nFilename: ./{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n")
    (folder / "Packages").write_text("\n".join(entries))
    return f"deb [trusted=yes] file:{folder} ./\n"


def make_over(deb: Path, into: Path, version: tuple[str, str], programs: Mapping[str, str]) -> None:
    """The same package in another version, with its siblings in that too, and other programs at these paths.

    What was there is beside it, as PATH.real.
    """
    tree = into / "tree"
    subprocess.run(["dpkg-deb", "-R", str(deb), str(tree)], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace(*version))
    for path, text in programs.items():
        program = tree / path.lstrip("/")
        if program.exists():
            program.rename(program.with_name(f"{program.name}.real"))
            program.write_text(text)
            program.chmod(0o755)
    argv = ["dpkg-deb", "--root-owner-group", "-Znone", "-b", str(tree), str(into)]
    subprocess.run(argv, check=True, capture_output=True)
    shutil.rmtree(tree)
