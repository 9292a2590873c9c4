"""The Debian package on a real host: installed, upgraded while guests are held, taken away. `make lab-package`.

In this order: each test finds the host and its guests as the one before left them.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.guest_spec import GUEST_FILES
from tests.bench.paths import BUILD
from tests.bench.peer import Peer
from tests.bench.proof import ProofReport
from tests.lab.machine import Machine
from tests.lab.nested import NestedHost
from tests.lab.trip import GUESTS as ALL_GUESTS
from tests.lab.trip import prove

GUESTS = ALL_GUESTS[:2]
DEBS = "/root/debs"
VERSIONS = "/usr/lib/hostagent/versions"
EXPOSURE_LIMIT = 35  # 3.5; docs/installing.md says it
APT = "DEBIAN_FRONTEND=noninteractive apt-get -q -y"
NO_GUARD = ("2", "4")
"""Versions that lack what a guard needs: an updater that looked into them as they are installed would have none."""
BEGUN, GO, DONE = "/run/slow-has-begun", "/run/slow-goes-on", "/run/slow-is-done"
HELD_BY = f"""\
[policy]
budget_seconds = 3600
[[component]]
name = "slow"
apply = ["/bin/sh", "-c", "touch {BEGUN}; until [ -e {GO} ]; do sleep 0.2; done; touch {DONE}"]
verify = ["/usr/bin/test", "-e", "{DONE}"]
roll_back = ["/usr/bin/rm", "-f", "{DONE}"]
command_seconds = 600
takes_seconds = 1
"""


def newer(deb: Path, version: str, folder: Path) -> Path:
    """The package once more, in another version."""
    tree = folder / version
    subprocess.run(["dpkg-deb", "-R", str(deb), str(tree)], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace("\nVersion: ", f"\nVersion: {version}+"))
    name = tree / "usr/lib/hostagent/version"
    old, new = name.read_text().strip(), f"{version}-lab"
    name.write_text(f"{new}\n")
    installed = (tree / "usr/lib/hostagent/installed" / old).rename(tree / "usr/lib/hostagent/installed" / new)
    program = installed / "bin/hostagent"
    program.write_text(program.read_text().replace(f"versions/{old}/", f"versions/{new}/"))
    if version in NO_GUARD:
        for path in installed.glob("lib/python3.11/site-packages/hostagent/**/takeover.*"):
            path.unlink()
    made = folder / f"hostagent_{version}.deb"
    subprocess.run(["dpkg-deb", "-Znone", "--root-owner-group", "-b", str(tree), str(made)], check=True)
    return made


class PackageHost(NestedHost):
    """A host on which hostagent is a package."""

    def versions(self) -> set[str]:
        """The trees that are there, by their names."""
        return set(self.machine.shell(f"ls {VERSIONS}").out.split())

    def install(self, name: str) -> str:
        """What is said as a package is installed, or upgraded to."""
        return self.machine.shell(f"{APT} install {DEBS}/{name}").out

    def agent_runs(self) -> str:
        """The tree that the agent runs from, once it says that it is ready."""
        self.machine.shell("timeout 120 sh -c 'until systemctl is-active -q hostagent; do sleep 0.5; done'")
        pid = self.machine.shell("systemctl show -P MainPID hostagent").out.strip()
        return self.tree_of(pid)

    def tree_of(self, pid: str) -> str:
        """The version of a process."""
        first = self.machine.shell(f"tr '\\0' '\\n' < /proc/{pid}/cmdline").out.splitlines()[0]
        assert first.startswith(f"{VERSIONS}/"), first
        return first.removeprefix(f"{VERSIONS}/").split("/")[0]

    def hold(self, *, through_agent: bool = False) -> str:
        """Begin an update that goes no further while all guests are held; the pid of what was started for it."""
        machine = self.machine
        machine.shell(f"rm -f {GO} {BEGUN} {DONE}")
        self.disconnect()
        words = "update slow --yes" if through_agent else "update slow --yes --no-agent"
        pid = machine.shell(f"nohup hostagent {words} > /tmp/said 2>&1 < /dev/null & echo $!").out.strip()
        waits = f"until [ -e {BEGUN} ]; do kill -0 {pid}; sleep 0.2; done"
        said = machine.shell(waits, within_seconds=300, check=False)
        assert said.status == 0, machine.shell("cat /tmp/said").out
        assert len(machine.shell("ls /run/hostagent/held/*.held").out.split()) == len(GUESTS)
        return pid


@pytest.fixture(scope="module")
def debs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as 1.deb, and newer ones."""
    folder = tmp_path_factory.mktemp("debs")
    found = sorted((BUILD / "deb").glob("hostagent_*.deb"))
    if len(found) != 1:
        pytest.fail(f"expected one package in {BUILD / 'deb'}, found {len(found)} (hint: make deb)")
    (folder / "1.deb").write_bytes(found[0].read_bytes())
    for version in ("2", "3", "4"):
        newer(found[0], version, folder).rename(folder / f"{version}.deb")
    return folder


@pytest.fixture(scope="module")
def host(peer: Peer, debs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PackageHost]:
    """Without the hostagent that its image has, whose settings are a drop-in now; the packages are on it."""
    with Machine("a", 1, Path(tmp_path_factory.mktemp("lab"))) as machine:
        host = PackageHost(machine)
        machine.shell(
            "rm -rf /usr/local/bin/hostagent /opt/hostagent; mkdir /etc/hostagent/hostagent.toml.d;"
            "mv /etc/hostagent/hostagent.toml /etc/hostagent/hostagent.toml.d/50-lab.toml;"
            f"mountpoint -q /media || mount /media; cp /media/vmlinuz /media/initramfs {GUEST_FILES}"
        )
        machine.send(debs, *(f"{number}.deb" for number in range(1, 5)), to=DEBS)
        yield host
        host.disconnect()


@pytest.fixture
def before(host: PackageHost) -> dict[str, ProofReport]:
    return {spec.name: host.proof(spec).report() for spec in GUESTS}


def all_are_whole(host: PackageHost, before: dict[str, ProofReport]) -> None:
    for spec in GUESTS:
        prove(spec.name, before[spec.name], host.proof(spec).check())


def test_it_is_installed_and_its_agent_runs(host: PackageHost) -> None:
    host.install("1.deb")
    (tree,) = host.versions()
    assert host.agent_runs() == tree
    shell = host.machine.shell
    assert shell("command -v hostagent; hostagent --version").out.split()[0] == "/usr/bin/hostagent"
    assert shell("systemctl is-enabled hostagent; systemctl is-enabled hostagent-boot || true").out.split() == [
        "enabled",
        "disabled",
    ]
    assert shell("stat -c '%a %U %G %n' /run/hostagent /var/lib/hostagent").out.splitlines() == [
        "750 root hostagent /run/hostagent",
        "711 root root /var/lib/hostagent",
    ]
    # The image has no manuals.
    assert shell("dpkg --audit; dpkg --verify hostagent | grep -v ' /usr/share/' || true").out == ""
    shell(f"systemd-analyze security --no-pager --threshold={EXPOSURE_LIMIT} hostagent.service")
    said = shell(
        "systemd-analyze verify --man=no hostagent.service hostagent-boot.service 2>&1 | grep hostagent || true"
    )
    assert said.out == ""
    completion = "COMP_WORDS='hostagent upd' COMP_CWORD=1 _HOSTAGENT_COMPLETE=bash_complete hostagent"
    assert shell(completion).out.split() == ["plain,update"]


def test_it_prepares_the_host_and_guests_run(host: PackageHost) -> None:
    host.hostagent("setup", "--yes")
    host.machine.run("systemctl", "restart", "libvirtd")
    host.machine.shell(f"cat > /etc/hostagent/hostagent.toml.d/slow.toml <<'END'\n{HELD_BY}END")
    for spec in GUESTS:
        host.boot(spec)
    for spec in GUESTS:
        host.proof(spec).wait_booted(300.0)


def test_an_upgrade_while_guests_are_held(host: PackageHost, before: dict[str, ProofReport]) -> None:
    """The agent is the new one at once; the updater and its guard go on in their own files, to the end."""
    (old,) = host.versions()
    host.machine.run("systemctl", "enable", "hostagent-boot.service")  # as setup does it for swaps of the kernel
    updater = host.hold()
    host.install("2.deb")
    assert host.agent_runs() == "2-lab"
    assert host.machine.run("systemctl", "is-enabled", "hostagent-boot.service").out.strip() == "enabled"
    assert host.versions() == {old, "2-lab"}
    guard = host.machine.shell("pgrep -f '[h]ostagent.guard'").out.strip()
    assert [host.tree_of(pid) for pid in (updater, guard)] == [old, old]
    assert len(host.machine.shell("ls /run/hostagent/held/*.held").out.split()) == len(GUESTS)
    host.machine.shell(f"touch {GO}; timeout 300 tail --pid={updater} -f /dev/null")
    closed = host.last_closed()
    assert {guest["outcome"] for guest in closed["guests"]} == {"updated"}, closed
    all_are_whole(host, before)


def test_the_agent_is_killed_in_the_middle_of_an_update_that_it_runs(
    host: PackageHost, before: dict[str, ProofReport]
) -> None:
    """systemd starts it anew; the update goes on in a unit of its own, and the new agent says what became of it."""
    shell = host.machine.shell
    host.install("3.deb")
    assert host.versions() == {"3-lab"}  # nothing runs from the others any more
    host.hold(through_agent=True)
    units = "systemctl list-units --plain --no-legend 'hostagent-update-*.service'"
    (unit,) = (line.split()[0] for line in shell(units).out.splitlines())
    agent = shell("systemctl show -P MainPID hostagent").out.strip()
    shell(f"kill -{signal.SIGKILL} {agent}")
    shell(f"timeout 60 sh -c 'while [ $(systemctl show -P MainPID hostagent) = {agent} ]; do sleep 0.2; done'")
    host.agent_runs()
    assert shell(f"systemctl is-active {unit}").out.strip() == "active"
    assert len(shell("ls /run/hostagent/held/*.held").out.split()) == len(GUESTS)
    shell(f"touch {GO}; timeout 300 sh -c 'while systemctl is-active -q {unit}; do sleep 0.5; done'")
    closed = host.last_closed()
    assert {guest["outcome"] for guest in closed["guests"]} == {"updated"}, closed
    log = shell("sleep 3; journalctl -u hostagent -o cat").out  # it reads the journal every second
    assert any('event="update ended"' in line and f"update={closed['id']} " in line for line in log.splitlines())
    all_are_whole(host, before)


def test_it_is_not_removed_while_guests_are_held(host: PackageHost, before: dict[str, ProofReport]) -> None:
    """And an updater that dies after an upgrade has its guard, though the installed version has none at all."""
    updater = host.hold()
    said = host.machine.shell(f"{APT} purge hostagent", check=False)
    assert said.status != 0
    assert "hostagent is not removed: a guest is held, with its memory" in said.out
    assert host.agent_runs() == "3-lab"
    host.install("4.deb")
    assert host.agent_runs() == "4-lab"
    host.machine.shell(f"kill -{signal.SIGKILL} {updater}")
    closed = host.last_closed()
    assert {guest["outcome"] for guest in closed["guests"]} == {"rolled-back"}, closed
    assert host.machine.shell("ls /run/hostagent/held").out == ""
    all_are_whole(host, before)


def test_it_is_removed_and_guests_run_on(host: PackageHost, before: dict[str, ProofReport]) -> None:
    """What it has written stays; installed again it finds it."""
    said = host.machine.shell(f"{APT} remove hostagent").out
    assert "what 'hostagent setup' has put on this host stays there" in " ".join(said.split())
    shell = host.machine.shell
    assert shell("command -v hostagent || true; ls -d /usr/lib/hostagent 2>/dev/null || true").out == ""
    assert shell("test -e /var/lib/hostagent/journal.sqlite && ls /etc/libvirt/hooks/qemu.d").out.split() == [
        "hostagent"
    ]
    assert shell("systemctl is-active hostagent || true").out.strip() == "inactive"
    host.install("1.deb")
    assert len(json.loads(host.hostagent("history", "--json").out)["updates"]) > 0
    all_are_whole(host, before)


def test_purged_it_leaves_nothing_but_what_guests_need(host: PackageHost, before: dict[str, ProofReport]) -> None:
    """A QEMU that a guest is defined to run on, here, and what the guests' RAM is in."""
    definition, kept = "/etc/libvirt/qemu/another.xml", "/var/lib/hostagent/qemu/10/qemu"
    host.machine.shell(f"mkdir -p $(dirname {kept}); touch {kept}; echo '<emulator>{kept}</emulator>' > {definition}")
    said = host.machine.shell(f"{APT} purge hostagent").out
    assert "kept, as guests run or are defined to run on it: /var/lib/hostagent/qemu" in " ".join(said.split())
    elsewhere = "-not -path '/var/lib/dpkg/*' -not -path '/var/lib/hostagent/qemu/*'"
    left = host.machine.shell(f"find /etc /usr /var/lib /run -xdev -iname '*hostagent*' {elsewhere}")
    assert left.out.split() == ["/var/lib/hostagent"], left.out
    assert host.machine.shell(f"ls /var/lib/hostagent; ls {kept}").out.split() == ["qemu", kept]
    assert host.machine.shell("systemctl list-units --all --no-legend 'hostagent*'").out.strip() == ""
    all_are_whole(host, before)
