"""First process of the bench: builds its root file system, goes there, becomes tini.

Run by launch.py in fresh namespaces, and by two_hosts.py in further ones for a second host in the same bench. The
project and the Python it runs on are at the same paths as outside, read-only but for build/; everything else is an
overlay that ends with the bench.
"""

import argparse
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.bench import cgroups
from tests.bench.paths import BENCH, BUILD, PROJECT, ROOTFS
from tests.bench.syscalls import Mount, bind, mount, pivot_root

HOSTNAME = "hostagent-bench"
DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "net/tun", "vhost-net")
LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}
TTY_GROUP = 5


def make_root(rootfs: Path, keep: Path | None) -> Path:
    """The overlay; its upper layer is on a tmpfs unless it is to be kept."""
    mount("none", Path("/"), flags=Mount.REC | Mount.PRIVATE)
    base = BENCH / "root"
    mount("tmpfs", base, "tmpfs", options="mode=755")
    layers = keep or base
    upper, work, root = layers / "upper", layers / "work", base / "merged"
    for folder in (upper, work, root):
        folder.mkdir(parents=True, exist_ok=True)
    mount("overlay", root, "overlay", options=f"lowerdir={rootfs},upperdir={upper},workdir={work}")
    return root


def bring_in(root: Path) -> None:
    """The project, and the Python behind its virtual environment, at the paths that they have outside."""
    for source, flags in ((PROJECT, Mount.RDONLY), (BUILD, Mount(0)), (Path(sys.base_prefix), Mount.RDONLY)):
        if source == Path("/usr"):
            continue
        target = root / source.relative_to("/")
        target.mkdir(parents=True, exist_ok=True)
        bind(source, target, flags)


def share(root: Path, folders: Sequence[Path]) -> None:
    """Folders of the bench that a second host in it has as well, under the same names."""
    for folder in folders:
        target = root / folder.relative_to("/")
        target.mkdir(parents=True, exist_ok=True)
        bind(folder, target)


def make_devices(root: Path, *, kvm: bool) -> None:
    dev = root / "dev"
    mount("tmpfs", dev, "tmpfs", Mount.NOSUID, "mode=755")
    for name in (*DEVICES, "kvm") if kvm else DEVICES:
        outside = Path("/dev") / name
        if outside.exists():
            (dev / name).parent.mkdir(exist_ok=True)
            os.mknod(dev / name, stat.S_IFCHR | 0o666, outside.stat().st_rdev)
            (dev / name).chmod(0o666)
    for name, target in LINKS.items():
        (dev / name).symlink_to(target)
    for name, kind, options in (
        ("pts", "devpts", f"newinstance,ptmxmode=0666,mode=620,gid={TTY_GROUP}"),
        ("shm", "tmpfs", "mode=1777"),
        ("mqueue", "mqueue", ""),
    ):
        (dev / name).mkdir()
        mount(kind, dev / name, kind, options=options)


def mount_kernel(root: Path) -> None:
    """File systems that the kernel fills, and those that are empty at every start."""
    mount("proc", root / "proc", "proc", Mount.NOSUID | Mount.NODEV | Mount.NOEXEC)
    mount("sysfs", root / "sys", "sysfs", Mount.NOSUID | Mount.NODEV | Mount.NOEXEC)
    for name, mode in (("run", "755"), ("tmp", "1777")):
        mount("tmpfs", root / name, "tmpfs", Mount.NOSUID | Mount.NODEV, f"mode={mode}")
    (root / "run/lock").mkdir(mode=0o1777)


def mount_cgroups(root: Path) -> None:
    """Every hierarchy as this namespace sees it: our own group is its root."""
    top = root / "sys/fs/cgroup"
    found = cgroups.hierarchies()
    if all(not hierarchy.controllers for hierarchy in found):
        mount("cgroup2", top, "cgroup2")
        # v2 gives controllers only to the children of a group that has no process of its own.
        (top / cgroups.INIT).mkdir()
        (top / cgroups.INIT / "cgroup.procs").write_text("0")
        return
    mount("tmpfs", top, "tmpfs", options="mode=755")
    for hierarchy in found:
        name = hierarchy.controllers.removeprefix("name=") or "unified"
        (top / name).mkdir()
        if hierarchy.controllers:
            mount("cgroup", top / name, "cgroup", options=hierarchy.controllers)
        else:
            mount("cgroup2", top / name, "cgroup2")


def environment(libvirt: str, daemon: str) -> dict[str, str]:
    """What the caller has, without what points at the machine outside."""
    outside = ("TMPDIR", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    kept = {name: value for name, value in os.environ.items() if name not in outside}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "LIBVIRT_DEFAULT_URI": "qemu:///system",
        "PYTHONPYCACHEPREFIX": str(BENCH / "pycache"),
        "PYTEST_ADDOPTS": f"{kept.get('PYTEST_ADDOPTS', '')} -o cache_dir={BUILD / 'pytest-cache'}",
        "HOSTAGENT_BENCH": "1",
        "HOSTAGENT_BENCH_LIBVIRT": libvirt,
        "HOSTAGENT_BENCH_DAEMON": daemon,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.inside")
    parser.add_argument("--keep", default="")
    parser.add_argument("--kvm", type=int, default=0)
    parser.add_argument("--libvirt", required=True)
    parser.add_argument("--daemon", required=True)
    parser.add_argument("--hostname", default=HOSTNAME)
    parser.add_argument("--share", type=Path, action="append", default=[])
    parser.add_argument("command", nargs="+")
    asked = parser.parse_args()

    root = make_root(ROOTFS[asked.libvirt], Path(asked.keep) if asked.keep else None)
    mount_kernel(root)
    make_devices(root, kvm=bool(asked.kvm))
    mount_cgroups(root)
    bring_in(root)
    share(root, asked.share)
    pivot_root(root)
    socket.sethostname(asked.hostname)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.chdir(PROJECT)
    os.execve("/usr/bin/tini", ["tini", "-s", "--", *asked.command], environment(asked.libvirt, asked.daemon))


if __name__ == "__main__":
    main()
