"""Running other programs: exit status, deadline, bounds, background children."""

import os
import signal
import time
from pathlib import Path

import pytest

from hostagent import processes
from hostagent.errors import Failed


def shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def test_says_what_the_program_said() -> None:
    done = processes.run(shell("echo out; echo err >&2"), within_seconds=10)
    assert (done.stdout, done.stderr, done.exit_status) == ("out\n", "err\n", 0)


def test_a_wrong_exit_is_told_with_the_last_line_of_stderr() -> None:
    with pytest.raises(Failed) as caught:
        processes.run(shell("echo first >&2; echo 'disk full' >&2; exit 1"), within_seconds=10)
    assert (caught.value.expected, caught.value.found) == ("exit 0", "1: disk full")


def test_an_exit_by_signal_is_named() -> None:
    with pytest.raises(Failed, match="found SIGTERM"):
        processes.run(shell("kill -TERM $$"), within_seconds=10)


def test_other_exits_can_be_accepted() -> None:
    assert processes.run(shell("exit 3"), within_seconds=10, accept=(0, 3)).exit_status == 3


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(Failed, match="running /nonexistent/x: No such file"):
        processes.run(["/nonexistent/x"], within_seconds=10)


def test_a_nul_byte_is_ours_too() -> None:
    with pytest.raises(Failed, match="null byte"):
        processes.run(["/bin/echo", "a\0b"], within_seconds=10)


def test_a_late_program_is_killed_with_its_children(tmp_path: Path) -> None:
    child = tmp_path / "child"
    with pytest.raises(Failed, match=r"an exit within 0\.2 s"):
        processes.run(shell(f"sleep 60 & echo $! >{child}; wait"), within_seconds=0.2)
    assert _gone(int(child.read_text()))


def test_a_background_child_that_keeps_the_output_is_not_waited_for(tmp_path: Path) -> None:
    child = tmp_path / "child"
    begin = time.monotonic()
    done = processes.run(shell(f"sleep 60 & echo $! >{child}; echo ready"), within_seconds=30)
    assert done.stdout == "ready\n"
    assert time.monotonic() - begin < 20
    os.kill(int(child.read_text()), signal.SIGKILL)


def test_endless_output_is_cut_off() -> None:
    with pytest.raises(Failed, match="at most 4194304 bytes"):
        processes.run(["/usr/bin/yes"], within_seconds=30)


def test_much_stderr_keeps_its_end() -> None:
    done = processes.run(shell("yes | head -c 1000000 >&2; echo end >&2"), within_seconds=30)
    assert len(done.stderr) <= processes.STDERR_LIMIT
    assert done.stderr.endswith("y\nend\n")


def test_large_output_arrives_whole() -> None:
    assert len(processes.run(shell("yes | head -c 3000000"), within_seconds=30).stdout) == 3_000_000


def test_input_larger_than_a_pipe() -> None:
    data = b"x" * 1_000_000
    assert processes.run(["/bin/cat"], within_seconds=30, input=data).stdout.encode() == data


def test_no_input_is_an_end_of_file() -> None:
    assert processes.run(["/bin/cat"], within_seconds=10).stdout == ""


def test_the_locale_is_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    monkeypatch.setenv("LC_MESSAGES", "de_DE.UTF-8")
    env = processes.run(["/usr/bin/env"], within_seconds=10).stdout.splitlines()
    assert "LC_ALL=C" in env
    assert not [line for line in env if line.startswith(("LANG", "LC_MESSAGES"))]


def test_an_environment_given_is_the_whole_one() -> None:
    assert processes.run(["/usr/bin/env"], within_seconds=10, env={"A": "b"}).stdout == "A=b\n"


def test_no_shell_reads_the_arguments() -> None:
    assert processes.run(["/bin/echo", "$HOME; `id`"], within_seconds=10).stdout == "$HOME; `id`\n"


def test_started_programs_keep_the_descriptors_given() -> None:
    reader, writer = os.pipe()
    process = processes.start(shell(f"echo hello >/proc/self/fd/{writer}"), pass_fds=[writer])
    os.close(writer)
    assert os.read(reader, 100) == b"hello\n"
    assert process.wait(10) == 0
    os.close(reader)


def test_started_programs_have_a_session_of_their_own() -> None:
    process = processes.start(["/bin/sleep", "60"])
    assert os.getsid(process.pid) == process.pid
    process.kill()
    process.wait(10)


def test_starting_what_is_not_there() -> None:
    with pytest.raises(Failed, match="starting /nonexistent/x"):
        processes.start(["/nonexistent/x"])


def _gone(pid: int) -> bool:
    """Whether the process is dead (a zombie counts: it is init's to reap)."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state in "ZX":
            return True
        time.sleep(0.02)
    return False
