"""Where each guest of an update goes back to."""

from dataclasses import replace

import sampled
from called import guest, shut_off, with_private_ram
from journals import NEW, OLD

from hostagent.facts import QemuTree, Version
from hostagent.plan import Plan, Reason, Verdict
from hostagent.planning.way_back import plan_way_back

OLDER = QemuTree("7.0", Version(7, 0, 0), "1:7.0", "/var/lib/hostagent/qemu/7.0/usr/bin/qemu-system-x86_64")
KEPT = replace(OLD, name="7.2+dfsg-7+deb12u18", emulator="/var/lib/hostagent/qemu/7.2/usr/bin/qemu-system-x86_64")
ON_NEW = guest("web1", qemu=NEW)


def back(*guests: object, came_from: dict[str, QemuTree | None], qemu: tuple[QemuTree, ...] = (OLD, NEW)) -> list[Plan]:
    host = sampled.host(qemu=qemu, guests=guests)
    return list(plan_way_back(host, came_from, NEW, policies=sampled.within(10.0)))


def test_each_goes_back_to_where_it_came_from() -> None:
    guests = (ON_NEW, guest("db9", qemu=NEW), guest("cache", qemu=NEW))
    came_from = {"uuid of web1": OLD, "uuid of db9": OLDER, "uuid of cache": OLD}
    first, second = back(*guests, came_from=came_from, qemu=(OLD, OLDER, NEW))
    assert (first.to, [planned.name for planned in first.to_update]) == (OLD, ["web1", "cache"])
    assert (second.to, [planned.name for planned in second.to_update]) == (OLDER, ["db9"])
    assert first.to_update[0].budget_seconds == 10.0


def test_the_system_s_own_was_upgraded_and_its_build_is_kept_in_a_tree() -> None:
    upgraded = replace(OLD, version=Version(7, 2, 23), package="1:7.2+dfsg-7+deb12u19")
    (plan,) = back(ON_NEW, came_from={"uuid of web1": OLD}, qemu=(upgraded, KEPT, NEW))
    assert (plan.to, len(plan.to_update)) == (KEPT, 1)


def test_a_build_that_is_gone_is_named() -> None:
    upgraded = replace(OLD, version=Version(7, 2, 23), package="1:7.2+dfsg-7+deb12u19")
    (plan,) = back(ON_NEW, came_from={"uuid of web1": OLD}, qemu=(upgraded, NEW))
    (blocked,) = plan.blocked
    assert [blocker.reason for blocker in blocked.blockers] == [Reason.BINARY]
    assert OLD.package in blocked.blockers[0].expected


def test_who_is_not_touched() -> None:
    guests = (shut_off("old"), guest("home"), guest("away", qemu=OLDER), with_private_ram("cache"))
    names = ("old", "home", "away", "cache", "gone")
    came_from: dict[str, QemuTree | None] = {f"uuid of {name}": OLD for name in names}
    (plan,) = back(*(replace(g, qemu=NEW) if g.name == "cache" else g for g in guests), came_from=came_from)
    assert {planned.name: planned.verdict for planned in plan.guests} == {
        "old": Verdict.NOT_RUNNING,
        "home": Verdict.UP_TO_DATE,
        "away": Verdict.MOVED_ON,
        "cache": Verdict.BLOCKED,
    }
