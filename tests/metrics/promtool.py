"""Debian's own Prometheus and promtool, unpacked below build/ and not installed: python -m tests.metrics.promtool"""

import shutil
import subprocess
import sys

from tests.bench.paths import BUILD

FOLDER = BUILD / "prometheus"
PROMETHEUS = FOLDER / "usr/bin/prometheus"
PROMTOOL = FOLDER / "usr/bin/promtool"


def fetch() -> None:
    """From the machine's own archive of packages, once. Package lists may be absent, or too old to download from."""
    if PROMTOOL.exists():
        return
    unfinished = FOLDER.with_name(f"{FOLDER.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    download = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", "prometheus"]
    if subprocess.run(download, cwd=unfinished, check=False, stderr=subprocess.DEVNULL).returncode:
        subprocess.run(["apt-get", "-qq", "update"], check=True)
        subprocess.run(download, cwd=unfinished, check=True)
    (deb,) = unfinished.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", str(deb), str(unfinished)], check=True)
    deb.unlink()
    shutil.rmtree(FOLDER, ignore_errors=True)
    unfinished.rename(FOLDER)


if __name__ == "__main__":
    sys.exit(fetch())
