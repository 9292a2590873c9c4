"""The command line through a real agent, with a real guest: the same is said as without it, and users count."""

from __future__ import annotations

import http.client  # noqa: F401 - whoever becomes somebody else in a fork cannot load it any more
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

import pytest

from hostagent import operations, remote  # noqa: F401 - as above
from hostagent.cli import (  # noqa: F401 - as above
    carry,
    main,
    output,
    status,
    through_agent,
    update,
)
from tests.agent.agent_process import AgentProcess
from tests.bench.guest_spec import GuestSpec
from tests.bench.lab import CONFIG
from tests.crash.real_world import World, world

pytestmark = pytest.mark.skipif("HOSTAGENT_BENCH" not in os.environ, reason="runs inside the bench")

HOSTAGENT = Path(sys.executable).with_name("hostagent")
AGENT = '\n[agent]\nlog_format = "json"\nlook_seconds = 60\n'
GROUP, NOBODY = "hostagent", 65534


@pytest.fixture(scope="module")
def there() -> Iterator[World]:
    with world(GuestSpec(fill_mib=64)) as made:
        CONFIG.write_text(CONFIG.read_text() + AGENT)
        yield made


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return [*self.out.splitlines(), "", *self.err.splitlines()]


def call(*words: str) -> Said:
    """hostagent, in a process of its own; what differs each time is left out."""
    environment = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run([HOSTAGENT, *words], env=environment, capture_output=True, text=True, check=False)
    return Said(done.returncode, masked(done.stdout), masked(done.stderr))


def masked(text: str) -> str:
    """Without ids, times and the widths that go with them."""
    text = re.sub(r"(?m)^ *\S+: its clock was left as it is .*\n\n?", "", text)  # when it is ahead, which is chance
    text = re.sub(r"\d{8}-\d{6}-[0-9a-f]{8}|\d{4}-\d\d-\d\d[T ][\d:.]+( UTC|Z)?", "*", text)
    text = re.sub(r"[+-]?\d+(\.\d+)?( ±[\d.]+)? (ms|s)\b", "*", text)
    text = re.sub(r'(_seconds|"[a-z]+"|moved_bytes|pid)(": | x )[-\d.e]+', r"\1\2*", text)
    return re.sub(r" +|─+", " ", text)


def test_an_update_says_the_same_through_it(there: World, tmp_path: Path) -> None:
    here, other = there.guest.tree(), there.other_tree
    words = ("update", "qemu", "--to", other.name, "--yes")
    back = ("update", "qemu", "--to", here.name, "--yes", "--no-agent")
    call("inspect", "--no-agent")  # which keeps the QEMU that it sees, and says so, once
    alone = call(*words, "--no-agent")
    assert call(*back).code == 0
    plan = call("plan", "qemu", "--to", other.name, "--no-agent")
    with AgentProcess(tmp_path) as agent:
        assert call("plan", "qemu", "--to", other.name) == plan
        through = call(*words)
        agent.wait_line("update ended")
        assert call("status") == call("status", "--no-agent")
    assert (alone.code, "1 guest updated" in alone.out) == (0, True)
    assert (through.code, through.out) == (alone.code, alone.out), "\n".join(unified_diff(alone.lines, through.lines))
    assert set(through.lines) == set(alone.lines), "\n".join(unified_diff(alone.lines, through.lines))
    there.check()


def as_user(groups: Sequence[int], words: Sequence[str]) -> Said:
    """The same by somebody who is not root."""
    reads = [os.pipe() for _ in range(2)]
    child = os.fork()
    if child == 0:
        code = 70
        try:
            for number, (_, writing) in enumerate(reads, 1):
                os.dup2(writing, number)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            os.setgroups(list(groups))
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            main(list(words))
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    said = []
    for reading, writing in reads:
        os.close(writing)
        with os.fdopen(reading) as file:
            said.append(file.read())
    _, ended = os.waitpid(child, 0)
    return Said(os.waitstatus_to_exitcode(ended), *said)


def test_a_member_of_its_group_updates_and_nobody_else_gets_anything(there: World, tmp_path: Path) -> None:
    subprocess.run(["groupadd", "--force", "--system", GROUP], check=True)
    group = int(
        subprocess.run(["getent", "group", GROUP], check=True, capture_output=True, text=True).stdout.split(":")[2]
    )
    plan = tmp_path / "plan"
    call("plan", "qemu", "--to", there.other_tree.name, "--save", str(plan))
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    os.chown(plan, NOBODY, NOBODY)
    with AgentProcess(tmp_path):
        refused = as_user([], ["status"])
        assert (refused.code, refused.out) == (2, "")
        assert "expected root, or a member of its group, found user 65534" in refused.err
        assert as_user([group], ["status"]).code == 0
        done = as_user([group], ["update", "--plan", str(plan), "--yes"])
    assert (done.code, "1 guest updated" in done.out) == (0, True), done
    there.check()
