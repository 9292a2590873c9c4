"""Fetches QEMU's own reader of saved states, scripts/analyze-migration.py, out of Debian's source of QEMU 10.0."""

import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from tests.bench.debian import Tree
from tests.bench.paths import ANALYZER, BENCH

# With apt's state of its own: what the machine's apt knows stays as it is, and need not know any source.
FETCH = r"""
mkdir -p "$1/lists/partial" "$1/cache/archives/partial"
cd "$1"
echo 'deb-src http://deb.debian.org/debian bookworm-backports main' > sources.list
ours() {
    apt-get -qq -o Dir::Etc::SourceList="$PWD/sources.list" -o Dir::Etc::SourceParts=- -o APT::Sandbox::User=root \
        -o Dir::State::Lists="$PWD/lists" -o Dir::Cache="$PWD/cache" "$@"
}
ours update
ours --tar-only source qemu/bookworm-backports
"""
MEMBER = "scripts/analyze-migration.py"


@dataclass(frozen=True)
class Analyzer(Tree):
    """A folder with that one file; what it is packed in (40 MB) goes."""

    folder: Path = BENCH / "analyzer"
    packages: tuple[str, ...] = ()

    def command(self) -> list[str]:
        return ["sh", "-ec", FETCH, "sh", str(self.unfinished)]

    def is_made(self) -> bool:
        return super().is_made() and ANALYZER.is_file()

    def take(self) -> None:
        """Some ten seconds of decompression: it is near the end."""
        (archive,) = self.unfinished.glob("qemu_*.orig.tar.xz")
        self.folder.mkdir()
        with tarfile.open(archive, "r|xz") as packed:
            for member in packed:
                if member.name.partition("/")[2] == MEMBER:
                    source = packed.extractfile(member)
                    assert source is not None
                    ANALYZER.write_bytes(source.read())
                    break
            else:
                raise FileNotFoundError(f"expected {MEMBER} in {archive.name}")
        shutil.rmtree(self.unfinished)
