"""For each alert: what the metrics say, when one looks, and whom it tells of."""

from __future__ import annotations

from dataclasses import dataclass

HOST = {"job": "hosts", "instance": "host1"}
DAY = 24 * 60  # minutes
EPOCH = "1970-01-01 "


@dataclass(frozen=True)
class Case:
    """Series as promtool's unit tests write them, one sample a minute; who: the labels that tell alerts apart."""

    alert: str
    what: str
    series: dict[str, str]
    minute: int
    who: tuple[dict[str, str], ...] = ()  # none: it does not fire
    says: tuple[str, str] | None = None  # summary and description, in one case of each alert


def of(name: str, **labels: str) -> str:
    """A series of one host."""
    pairs = ", ".join(f'{label}="{value}"' for label, value in (HOST | labels).items())
    return f"hostagent_{name}{{{pairs}}}"


BUILD = of("build_info", version="0.1.0")
PAUSED = of("guest_paused_since_timestamp_seconds", guest="web1")
EXCEEDED = of("budget_exceeded_total", method="in-place")
NO_AGENT = of("guest_clock_uncorrected", guest="web1", reason="no-agent")
UPDATED = of("last_update_timestamp_seconds", outcome="updated")
ROLLED_BACK = of("last_update_timestamp_seconds", outcome="rolled-back")
LOST = of("last_update_timestamp_seconds", outcome="lost")
WAITS = of("update_state", state="needs-operator")
OUTDATED = of("component_outdated", component="qemu")
IN_PLACE = of("guest_blockers", guest="web1", method="in-place", reason="tpm")
BY_COPY = of("guest_blockers", guest="db9", method="in-place-copy", reason="ram-room")
OPEN = of("journal_open_updates")

CASES = (
    # promtool's clock begins at 0, so that a time in a series is the second that it stands for.
    Case(
        "GuestLeftPaused",
        "a guest has stood still for more than two minutes",
        {PAUSED: "60x5"},
        4,
        ({"guest": "web1"},),
        (
            "web1 on host1 has stood still for 3m 0s",
            "An update has paused it, and nothing resumes it. Do not destroy it: hostagent recover has it go on.",
        ),
    ),
    Case("GuestLeftPaused", "for less", {PAUSED: "60x5"}, 2),
    Case("GuestLeftPaused", "it goes on", {PAUSED: "60x1 stale"}, 5),
    Case(
        "PauseOverBudget",
        "one more",
        {EXCEEDED: "3x9 4x50"},
        30,
        ({"method": "in-place"},),
        (
            "A guest on host1 stood still for longer than its budget",
            "1 within an hour, by in-place. They run again.",
        ),
    ),
    Case("PauseOverBudget", "none lately", {EXCEEDED: "3x9 4x150"}, 150),
    Case("PauseOverBudget", "the agent began anew, and counts what the journal has", {EXCEEDED: "4x9 _x5 4x50"}, 30),
    Case(
        "ClockUncorrected",
        "a guest without an agent",
        {NO_AGENT: "1x60", UPDATED: "60x60"},
        10,
        ({"guest": "web1", "reason": "no-agent"},),
        (
            "The clock of web1 on host1 may be behind since its update",
            "Its clock stood still with it, and could not be set right (no-agent).",
        ),
    ),
    Case("ClockUncorrected", "a day ago", {NO_AGENT: f"1x{2 * DAY}", UPDATED: f"60x{2 * DAY}"}, DAY + 20),
    Case(
        "ClockUncorrected",
        "its policy wants no other",
        {of("guest_clock_uncorrected", guest="web1", reason="policy"): "1x60", UPDATED: "60x60"},
        10,
    ),
    Case(
        "ClockUncorrected",
        "another host was updated lately",
        {
            NO_AGENT: f"1x{2 * DAY}",
            UPDATED: f"60x{2 * DAY}",
            UPDATED.replace("host1", "host2"): f"{DAY * 60}x{2 * DAY}",
        },
        DAY + 20,
    ),
    Case(
        "UpdateFailed",
        "the last one was rolled back",
        {UPDATED: "60x60", ROLLED_BACK: "120x60"},
        10,
        ({"outcome": "rolled-back"},),
        (
            "The last update on host1 ended as rolled-back",
            f"It ended at {EPOCH}00:02:00 +0000 UTC. rolled-back: guests run as before; lost: a guest's RAM is gone.",
        ),
    ),
    Case("UpdateFailed", "the first one lost a guest", {LOST: "120x60"}, 10, ({"outcome": "lost"},)),
    Case("UpdateFailed", "one has gone well since", {UPDATED: "180x60", ROLLED_BACK: "120x60"}, 10),
    Case(
        "UpdateFailed",
        "on each host by itself",
        {UPDATED.replace("host1", "host2"): "180x60", ROLLED_BACK: "120x60"},
        10,
        ({"outcome": "rolled-back"},),
    ),
    Case(
        "NeedsOperator",
        "one does",
        {WAITS: "0 1x9"},
        2,
        ({"state": "needs-operator"},),
        (
            "An update on host1 needs a person",
            "It can go neither on nor back by itself. hostagent status says what is in the way, and what to do.",
        ),
    ),
    Case("NeedsOperator", "none does", {WAITS: "0x9", of("update_state", state="updating"): "1x9"}, 2),
    Case(
        "HostOutdated",
        "for more than three days",
        {OUTDATED: f"1x{4 * DAY}"},
        3 * DAY + 20,
        ({"component": "qemu"},),
        (
            "qemu on host1 is outdated",
            "Something of it has run for three days that is not what is installed.",
        ),
    ),
    Case("HostOutdated", "since yesterday", {OUTDATED: f"0x{2 * DAY} 1x{2 * DAY}"}, 3 * DAY + 20),
    Case("HostOutdated", "not at all", {OUTDATED: f"0x{4 * DAY}"}, 3 * DAY + 20),
    Case(
        "GuestCannotBeUpdatedInPlace",
        "its RAM cannot be copied",
        {BY_COPY: "2x90"},
        80,
        ({"guest": "db9"},),
        (
            "db9 on host1 cannot be updated in place",
            "Reasons against that: 2. The next update would have to migrate it, reboot it, or leave it out.",
        ),
    ),
    Case(
        "GuestCannotBeUpdatedInPlace",
        "nor can another's be kept",
        {IN_PLACE: "1x90", BY_COPY: "2x90"},
        80,
        ({"guest": "db9"}, {"guest": "web1"}),
    ),
    Case("GuestCannotBeUpdatedInPlace", "since a moment ago", {IN_PLACE: "1x90"}, 30),
    Case(
        "GuestCannotBeUpdatedInPlace",
        "only by other methods",
        {of("guest_blockers", guest="web1", method="reboot", reason="policy"): "1x90"},
        80,
    ),
    Case(
        "AgentAbsent",
        "it was there",
        {BUILD: "1x30"},
        60,
        ({},),
        (
            "Nothing is heard of hostagent on host1",
            "Prometheus does not reach it. Guests are not paused by that; but one that is would not be seen.",
        ),
    ),
    Case(
        "AgentAbsent", "another version of it came", {BUILD: "1x30", of("build_info", version="0.2.0"): "_x31 1x60"}, 60
    ),
    Case("AgentAbsent", "it is started anew", {BUILD: "1x30 _x3 1x60"}, 36),
    Case(
        "AgentAbsent",
        "the host is gone for good, another is there",
        {BUILD: "1x30", BUILD.replace("host1", "host2"): f"1x{2 * DAY}"},
        DAY + 40,
    ),
    Case("AgentAbsent", "nobody was ever there", {"up": "1x60"}, 30, ({"job": "", "instance": ""},)),
    Case(
        "JournalOpenTooLong",
        "for more than an hour",
        {OPEN: "0 1x90"},
        80,
        ({},),
        (
            "An update on host1 has been open for over an hour",
            "It goes on very slowly, or it waits for hostagent recover.",
        ),
    ),
    Case("JournalOpenTooLong", "one after the other", {OPEN: "0 1x40 0 1x40"}, 80),
)
