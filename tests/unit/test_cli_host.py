"""plan and update of what is swapped for the whole host: a component of the host's owner."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import sampled
from called import Caller, guest, shut_off, with_private_ram
from journals import NEW, OLD, Writer

from hostagent.cli.host_update import host_verdict
from hostagent.errors import Failed
from hostagent.facts import Component, Freshness, Host
from hostagent.hypervisor.fake_metadata import in_namespace
from hostagent.plan import HostPlan, Method, Technique
from hostagent.policy import Allowed, PolicyPart
from hostagent.policy_xml import written_policy
from hostagent.update.journal import Outcome
from hostagent.update.libvirtd_swap import LibvirtdComponent
from hostagent.update.report import GuestReport, report_of

COMPONENT = """
[[component]]
name = "firmware"
stage = ["{stage}"]
apply = ["{apply}"]
verify = ["{verify}"]
roll_back = ["{roll_back}"]
hold = {hold}
takes_seconds = 3
"""
SCRIPTS = {
    "stage": "echo staged >>{log}",
    "apply": "echo applied >>{log}; echo new >{state}",
    "verify": "grep -q new {state}",
    "roll_back": "echo rolled back >>{log}; echo old >{state}",
}


@dataclass
class Firmware:
    """What is updated, in a file."""

    folder: Path
    hostagent: Caller

    def __post_init__(self) -> None:
        self.state.write_text("old\n")
        for name, words in SCRIPTS.items():
            self.script(name, words)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def log(self) -> list[str]:
        path = self.folder / "log"
        return path.read_text().splitlines() if path.exists() else []

    def script(self, name: str, words: str) -> None:
        path = self.folder / name
        path.write_text("#!/bin/sh\n" + words.format(log=self.folder / "log", state=self.state) + "\n")
        path.chmod(0o755)

    def configure(self, *, hold: bool) -> None:
        paths = {name: str(self.folder / name) for name in SCRIPTS}
        text = self.hostagent.settings.read_text() + COMPONENT.format(**paths, hold=str(hold).lower())
        self.hostagent.settings.write_text(text)


@pytest.fixture
def firmware(hostagent: Caller, tmp_path: Path) -> Firmware:
    folder = tmp_path / "firmware"
    folder.mkdir()
    return Firmware(folder, hostagent)


# -- without guests being held ------------------------------------------------------------------------------------


def test_it_is_swapped_and_no_guest_is_touched(hostagent: Caller, firmware: Firmware) -> None:
    firmware.configure(hold=False)
    result = hostagent("update", "firmware", "--yes")
    assert result.exit_code == 0, result.output
    assert "firmware: swapped." in result.stdout
    assert firmware.log == ["staged", "applied"]
    assert hostagent.dismissed == ["dismissed"]
    assert hostagent("update", "firmware", "--yes").stdout == "Nothing to do: firmware is what is installed.\n"
    assert "firmware" in hostagent("history").stdout


def test_a_plan_touches_nothing(hostagent: Caller, firmware: Firmware) -> None:
    firmware.configure(hold=False)
    result = hostagent("plan", "firmware")
    assert (result.exit_code, firmware.log) == (0, [])
    assert "That takes about 3 s, with no guest paused." in result.stdout
    (document,) = hostagent.json("plan", "firmware")["plans"]
    assert (document["changes"][0]["name"], document["swap_seconds"], document["guests"]) == ("firmware", 3.0, [])


@pytest.mark.parametrize(
    ("script", "words", "log"),
    [
        ("apply", "echo applied >>{log}; exit 7", ["staged", "applied", "rolled back"]),
        ("apply", "echo applied >>{log}", ["staged", "applied", "rolled back"]),  # and what verifies says no
    ],
)
def test_what_does_not_work_is_rolled_back(
    hostagent: Caller, firmware: Firmware, script: str, words: str, log: list[str]
) -> None:
    firmware.configure(hold=False)
    firmware.script(script, words)
    result = hostagent("update", "firmware", "--yes")
    assert (result.exit_code, firmware.log) == (4, log)
    assert "firmware: not swapped, and as before:" in result.stdout


def test_what_cannot_be_staged_is_not_begun(hostagent: Caller, firmware: Firmware) -> None:
    firmware.configure(hold=False)
    firmware.script("stage", "echo out of everything >&2; exit 1")
    result = hostagent("update", "firmware", "--yes")
    assert (result.exit_code, firmware.log) == (4, [])
    assert "out of everything" in result.stderr
    assert "No update was made" in hostagent("status").stdout


def test_what_cannot_be_rolled_back_waits_for_a_person(hostagent: Caller, firmware: Firmware) -> None:
    firmware.configure(hold=False)
    firmware.script("apply", "exit 1")
    firmware.script("roll_back", "exit 1")
    assert hostagent("update", "firmware", "--yes").exit_code == 5
    assert hostagent("status").exit_code == 5
    firmware.script("roll_back", SCRIPTS["roll_back"])
    assert hostagent("recover").exit_code == 0
    assert hostagent("status").exit_code == 0
    assert firmware.state.read_text() == "old\n"


# -- with guests held ---------------------------------------------------------------------------------------------


def with_hook(*guests: Any) -> Host:
    return sampled.host(qemu=(OLD, NEW), guests=guests, hold_hook=True)


def test_a_plan_with_guests(hostagent: Caller, firmware: Firmware) -> None:
    firmware.configure(hold=True)
    hostagent.host = with_hook(guest("web1"), guest("db9"), shut_off("old"))
    result = hostagent("plan", "firmware")
    assert result.exit_code == 0
    assert "with every guest held" in result.stdout
    assert result.stdout.count("held with all others, RAM kept") == 2
    assert "about 7 s" in result.stdout  # two guests' saves and starts, and the swap
    (document,) = hostagent.json("plan", "firmware")["plans"]
    assert [one["technique"] for one in document["guests"]] == ["hold", "hold", None]


def test_the_most_important_go_on_first(hostagent: Caller, firmware: Firmware) -> None:
    firmware.configure(hold=True)
    wanted = "".join(f'[[policy.guest]]\nname = "{name}"\npriority = {n}\n' for name, n in (("router", 2), ("db*", 1)))
    hostagent.settings.write_text(hostagent.settings.read_text() + wanted)
    hostagent.host = with_hook(guest("app"), guest("db1"), guest("db2"), guest("router"))
    (plan,) = hostagent.json("plan", "firmware")["plans"]
    assert [one["name"] for one in plan["guests"]] == ["router", "db1", "db2", "app"]


def test_a_guest_that_cannot_be_held_stops_it(hostagent: Caller, firmware: Firmware) -> None:
    firmware.configure(hold=True)
    hostagent.host = with_hook(guest("web1"), guest("db9", persistent=False))
    result = hostagent("update", "firmware", "--yes")
    assert (result.exit_code, firmware.log) == (3, [])
    assert "expected every guest that runs to be held, found db9" in result.stdout
    assert "expected a persistent guest, for a hold, found a transient one" in result.stdout
    assert hostagent("plan", "firmware").exit_code == 3


def only_rebooted(name: str) -> Any:
    plain, own = guest(name), PolicyPart(allow=frozenset((Allowed.REBOOT,)), boot_tcp="10.0.0.5:22")
    return replace(plain, definition=replace(plain.definition, policy=in_namespace(written_policy(own))))


def test_a_plan_says_who_leaves_meanwhile_and_why(hostagent: Caller, firmware: Firmware) -> None:
    firmware.configure(hold=True)
    hostagent.host = with_hook(guest("web1"), only_rebooted("db9"))
    result = hostagent("plan", "firmware")
    assert result.exit_code == 0
    said = " ".join(result.stdout.split())
    assert "those that cannot be leave meanwhile" in said
    assert (
        "db9 cannot be held with the others, and leaves meanwhile by reboot: expected a policy that allows in-place,"
        " found one that allows reboot" in said
    )
    assert "web1 cannot be held" not in said


def left(method: Method, outcome: Outcome = Outcome.UPDATED, **more: Any) -> GuestReport:
    writer = Writer()
    writer.begin("u1", str(method), method=method)
    writer.measured("u1", str(method), **more)
    writer.end_guest("u1", str(method), outcome)
    return report_of(writer.records()[0]).guests[0]


def test_a_verdict_says_who_was_where() -> None:
    writer = Writer()
    writer.begin("u1", "web1")
    writer.end("u1", Outcome.UPDATED)
    plain = report_of(writer.records()[0])
    held = left(Method.IN_PLACE, pause_seconds=2.0)
    away = left(Method.LIVE_MIGRATE, pause_seconds=0.5, runs_on="")
    guests = (held, away, away, left(Method.REBOOT))
    assert host_verdict(replace(plain, guests=guests), ["firmware"]) == (
        "firmware: swapped, with 1 guest held (RAM kept), 2 guests on another host, 1 guest shut down meanwhile; "
        "the longest pause took 2 s."
    )
    stays = left(Method.LIVE_MIGRATE, runs_on="host-b")
    undone = replace(plain, outcome=Outcome.ROLLED_BACK, reason="no", guests=(held, stays))
    assert host_verdict(undone, ["firmware"]) == (
        "firmware: not swapped, and as before: no. live-migrate runs on host-b now."
    )


def test_it_is_refused_when_they_would_stand_still_for_too_long(hostagent: Caller, firmware: Firmware) -> None:
    firmware.configure(hold=True)
    hostagent.host = with_hook(guest("web1"), guest("db9"))
    result = hostagent("plan", "firmware", "--budget", "5s")
    assert result.exit_code == 3
    assert "a pause within the budget" in result.stdout


def test_the_update_is_given_what_was_planned(
    hostagent: Caller, firmware: Firmware, monkeypatch: pytest.MonkeyPatch
) -> None:
    firmware.configure(hold=True)
    hostagent.host = with_hook(guest("web1"))
    plans: list[HostPlan] = []

    def update(_ports: object, _host: Host, plan: HostPlan, **_: object) -> None:
        plans.append(plan)
        raise Failed("updating", found="enough")

    monkeypatch.setattr("hostagent.cli.host_update.update_host", update)
    assert hostagent("update", "firmware", "--yes").exit_code == 4
    (plan,) = plans
    assert (plan.swaps, plan.to, [one.technique for one in plan.to_update]) == (("firmware",), None, [Technique.HOLD])


# -- all of it ----------------------------------------------------------------------------------------------------


@pytest.fixture
def others_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has."""
    for component in (
        "update.libvirtd_swap.LibvirtdComponent",
        "components.kvm.KvmComponent",
        "components.kernel.KernelComponent",
    ):
        current = Component(component, "1", "1", Freshness.CURRENT)
        monkeypatch.setattr(f"hostagent.{component}.look", lambda _, current=current: current)


def test_everything_is_planned_with_one_hold(hostagent: Caller, firmware: Firmware, others_are_current: None) -> None:
    """QEMU comes along with guests that are held anyway."""
    firmware.configure(hold=True)
    hostagent.host = with_hook(guest("web1", qemu=NEW), guest("db9", qemu=NEW))
    (plan,) = hostagent.json("plan", "all")["plans"]
    assert (plan["component"], [change["name"] for change in plan["changes"]]) == ("all", ["firmware"])
    assert [one["qemu"] for one in plan["guests"]] == [{"before": "10.0.2", "after": "7.2.22"}] * 2


def test_what_pauses_nobody_comes_first(hostagent: Caller, firmware: Firmware, others_are_current: None) -> None:
    firmware.configure(hold=False)
    hostagent.host = with_hook(guest("web1", qemu=NEW))
    first, second = hostagent.json("plan", "all")["plans"]
    assert (first["component"], first["guests"]) == ("firmware", [])
    assert (second["component"], second["guests"][0]["technique"]) == ("qemu", "handover")


def test_all_of_it_is_done_up_to_what_fails(hostagent: Caller, firmware: Firmware, others_are_current: None) -> None:
    firmware.configure(hold=False)
    firmware.script("apply", "exit 1")
    hostagent.host = with_hook(guest("web1", qemu=NEW))
    result = hostagent("update", "all", "--yes")
    assert result.exit_code == 4
    assert "firmware: not swapped, and as before" in result.stdout
    assert "Not begun: qemu." in result.stdout


def test_nothing_of_it_is_to_be_done(hostagent: Caller, firmware: Firmware, others_are_current: None) -> None:
    firmware.configure(hold=False)
    firmware.state.write_text("new\n")
    hostagent.host = with_hook(guest("web1"))
    result = hostagent("update", "all", "--yes")
    assert (result.exit_code, result.stdout) == (0, "Nothing to do: everything is what is installed.\n")


def test_a_guest_that_cannot_be_brought_along_is_no_reason_to_say_that_all_is_well(
    hostagent: Caller, firmware: Firmware, others_are_current: None
) -> None:
    firmware.configure(hold=False)
    firmware.state.write_text("new\n")
    hostagent.host = with_hook(replace(with_private_ram("web1"), qemu=NEW))
    result = hostagent("update", "all", "--yes")
    assert result.exit_code == 0
    assert "web1 cannot be updated, and is left out:" in result.stdout
    assert result.stdout.endswith("Nothing to do. Cannot be updated: web1.\n")
    document = hostagent.json("update", "all", "--yes")
    assert (document["updates"], [guest["name"] for guest in document["skipped"]]) == ([], ["web1"])


def test_a_component_that_cannot_be_seen_is_left_out_and_named(
    hostagent: Caller, firmware: Firmware, others_are_current: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    firmware.configure(hold=False)
    unknown = Component("kvm", "", "", Freshness.UNKNOWN)
    monkeypatch.setattr("hostagent.components.kvm.KvmComponent.look", lambda _: unknown)
    left_out = hostagent.json("plan", "all")["left_out"]
    assert list(left_out) == ["kvm"]
    assert "that cannot be told" in left_out["kvm"]
    firmware.state.write_text("new\n")
    result = hostagent("update", "all", "--yes")
    assert result.stdout == "Nothing to do: everything else is what is installed.\n"
    assert f"kvm is left out: {left_out['kvm']}" in result.stderr


# -- another version of libvirt


@pytest.fixture
def libvirtd_goes_to_what_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(component: LibvirtdComponent) -> Component:
        fresh = Freshness.OUTDATED if component.wanted else Freshness.CURRENT
        return Component("libvirtd", "9.0.0", component.wanted or "9.0.0", fresh)

    monkeypatch.setattr(LibvirtdComponent, "look", look)


def test_the_version_that_is_wanted_is_planned(hostagent: Caller, libvirtd_goes_to_what_is_wanted: None) -> None:
    assert "Nothing to do" in hostagent("plan", "libvirtd").stdout
    result = hostagent("plan", "libvirtd", "--to", "11.3")
    assert (result.exit_code, "libvirtd: 9.0.0 runs, then 11.3\n" in result.stdout) == (0, True), result.output
    assert "That takes about 30 s, with no guest paused." in result.stdout
    (document,) = hostagent.json("plan", "libvirtd", "--to", "11.3")["plans"]
    assert document["changes"] == [{"name": "libvirtd", "running": "9.0.0", "installed": "11.3"}]


def test_the_settings_may_say_it(hostagent: Caller, libvirtd_goes_to_what_is_wanted: None) -> None:
    hostagent.settings.write_text(hostagent.settings.read_text() + '[libvirt]\nrelease = "11.3"\n')
    assert hostagent.json("plan", "libvirtd")["plans"][0]["changes"][0]["installed"] == "11.3"
    assert hostagent.json("plan", "libvirtd", "--to", "12")["plans"][0]["changes"][0]["installed"] == "12"


@pytest.mark.parametrize("version", ["-o", "", "11.3 12", "newest"])
def test_no_version_of_libvirt(hostagent: Caller, version: str) -> None:
    result = hostagent("update", "libvirtd", "--to", version, "--yes")
    assert (result.exit_code, "a version of libvirt like 11.3" in result.stderr) == (2, True), result.output


# -- what is asked wrongly ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("--to", "2"), ("--guest", "web1"), ("--technique", "hold")])
def test_options_that_only_qemu_has(hostagent: Caller, firmware: Firmware, words: tuple[str, ...]) -> None:
    firmware.configure(hold=False)
    result = hostagent("update", "firmware", "--yes", *words)
    assert (result.exit_code, firmware.log) == (2, [])
    assert words[0] in result.stderr


def test_a_component_that_cannot_be_seen_is_refused(hostagent: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    unseen = Component("kernel", "", "", Freshness.UNKNOWN)
    monkeypatch.setattr("hostagent.components.kernel.KernelComponent.look", lambda _: unseen)
    result = hostagent("plan", "kernel")
    assert result.exit_code == 3
    assert "looking at kernel" in result.stderr
    assert "hostagent inspect" in result.stderr


def test_a_component_that_nobody_knows(hostagent: Caller, firmware: Firmware) -> None:
    firmware.configure(hold=False)
    result = hostagent("plan", "firmwear")
    assert result.exit_code == 2
    assert "expected qemu or libvirtd or kvm or kernel or firmware or all, found 'firmwear'" in result.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "qemu"', 'other than qemu, libvirtd, kvm, kernel, all, found "qemu"'),
        ('name = "a b"', "a short name"),
        ('apply = ["true"]', "apply"),
        ('aply = ["/bin/true"]', "did you mean 'apply'?"),
    ],
)
def test_settings_that_are_wrong_are_named(hostagent: Caller, firmware: Firmware, text: str, said: str) -> None:
    before = hostagent.settings.read_text().count("\n")
    good = {"name": '"x"', "apply": '["/bin/true"]', "verify": '["/bin/true"]', "roll_back": '["/bin/true"]'}
    key = text.partition(" ")[0]
    lines = [f"{name} = {value}" for name, value in good.items() if name != key]
    hostagent.settings.write_text(hostagent.settings.read_text() + "\n".join(["[[component]]", *lines, text, ""]))
    result = hostagent("status")
    assert result.exit_code == 2
    assert said in result.stderr
    assert f"line {before + len(lines) + 2}" in result.stderr
