"""What all verbs share: help, options, errors and exit codes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from called import Caller
from click.testing import CliRunner

from hostagent import __version__
from hostagent.cli import main
from hostagent.cli.common import Call
from hostagent.cli.output import Output, plain
from hostagent.cli.signals import Signals, Stopped
from hostagent.errors import Failed, HostagentError, NeedsOperator, OutcomeUnknown, Refused, UsageError
from hostagent.printable import one_line, printable

VERBS = (
    *(["inspect"], ["qemu", "add"], ["qemu", "list"], ["plan"], ["update"]),
    *(["cancel"], ["status"], ["recover"], ["metrics"], ["setup"]),
)


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_every_verb_has_help_with_an_example_that_calls_it(words: list[str]) -> None:
    result = CliRunner().invoke(main, [*words, "--help"])
    assert result.exit_code == 0
    _, _, example = result.stdout.partition("Example:")
    assert f"hostagent {' '.join(words)}" in example
    assert all(option in result.stdout for option in ("--json", "--config FILE", "--connect URI", "--debug"))


def test_help_names_every_verb_and_loads_nothing_heavy() -> None:
    script = (
        "import sys\nfrom hostagent.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('rich', 'pydantic', 'libvirt', 'prometheus_client') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(f"  {words[0]} " in done.stdout for words in VERBS)


def test_version() -> None:
    assert CliRunner().invoke(main, ["--version"]).stdout == f"hostagent, version {__version__}\n"


@pytest.mark.parametrize("words", [[], ["qemu"]])
def test_nothing_asked_is_help(words: list[str]) -> None:
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, "Verbs:" in result.stdout) == (0, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["frobnicate"], "No such command"),
        (["status", "--frobnicate"], "No such option"),
        (["plan", "--to", "10.0"], "Missing argument 'COMPONENT'"),
        (["plan", "colonel"], "expected qemu or libvirtd or kvm or kernel or all, found 'colonel'"),
        (["setup", "--check", "--undo"], "both --check and --undo"),
        (["setup", "--kernel-swaps", "--undo"], "both --kernel-swaps and --undo"),
        (["setup", "--reserve", "1G"], "expected --kernel-swaps with --reserve"),
        (["setup", "--kernel-swaps", "--reserve", "lots"], "a size like 512M, 64G or 2T"),
        (["--config", "/nonexistent", "status"], "no such file"),
        (["--connect", "nonsense", "status"], "expected a libvirt URI"),
        (["plan", "qemu", "--to", "1", "--budget", "soon"], "reading --budget"),
        (["plan", "qemu", "--to", "1", "--budget", "2h"], "at most 1h"),
        (["plan", "qemu", "--to", "1", "--save", "/tmp"], "expected the name of a file, found a folder"),
    ],
)
def test_wrong_words_are_one_line_and_exit_code_2(hostagent: Caller, words: list[str], said: str) -> None:
    result = hostagent(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("hostagent: ")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr
    error = hostagent.json(*words, code=2)["error"]
    assert (error["kind"], set(error)) == ("usage", {"kind", "doing", "expected", "found", "hint"})


def test_options_are_taken_before_the_verb_and_after_it(hostagent: Caller) -> None:
    for words in (("--json", "status"), ("status", "--json"), ("--json", "status", "--json")):
        assert hostagent(*words).stdout.startswith("{")
    assert hostagent("status", "--config", "/nonexistent").exit_code == 2  # the later one counts


def test_a_drop_in_beside_the_file_that_was_named_counts(hostagent: Caller) -> None:
    folder = Path(f"{hostagent.settings}.d")
    folder.mkdir()
    assert hostagent("status").exit_code == 0
    (folder / "50-typo.toml").write_text("[policy]\nbudget = 2\n")
    result = hostagent("status")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(
        f"hostagent: reading {folder}/50-typo.toml, line 2: expected one of allow, budget_seconds"
    )


def test_connect_overrides_the_settings(hostagent: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def host(call: Call) -> object:
        seen.append(call.config.libvirt.uri)
        return hostagent.host

    monkeypatch.setattr(Call, "host", host)
    assert hostagent("inspect").exit_code == hostagent("inspect", "--connect", "test:///default").exit_code == 0
    assert seen == ["qemu:///system", "test:///default"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("a"), 2),
        (Refused("a"), 3),
        (Failed("a"), 4),
        (OutcomeUnknown("a"), 4),
        (NeedsOperator("a", expected="b", found="c\n\x1b[2J", hint="d"), 5),
        (KeyError("x\ny"), 70),
        (RecursionError(), 70),
        (KeyboardInterrupt(), 130),
        (Stopped(15), 143),
    ],
)
def test_every_error_becomes_a_line_and_an_exit_code(
    hostagent: Caller, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def host(_: Call) -> None:
        raise error

    monkeypatch.setattr(Call, "host", host)
    result = hostagent("inspect")
    assert (result.exit_code, result.stdout) == (code, "")
    assert "Traceback" not in result.stderr
    assert result.stderr.replace("\n", "").isprintable()
    if code < 128:
        assert result.stderr.count("\n") == 1
        assert "Traceback" in hostagent("inspect", "--debug").stderr
        assert set(hostagent.json("inspect", code=code)["error"]) == {"kind", "doing", "expected", "found", "hint"}
    if code == 70:
        assert result.stderr.startswith(f"hostagent: a fault of hostagent itself: {type(error).__name__}")
    if isinstance(error, NeedsOperator):
        assert result.stderr == "hostagent: a: expected b, found c \\x1b[2J (hint: d)\n"


@pytest.mark.parametrize("words", [*VERBS, ["inspect", "--json"]], ids=" ".join)
def test_who_is_not_root_is_told(hostagent: Caller, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    more = {"plan": ["qemu", "--to", "1"], "update": ["qemu", "--to", "1"], "qemu": ["/"] if "add" in words else []}
    result = hostagent(*words, *more.get(words[0], []))
    if words == ["qemu", "list"]:
        assert result.exit_code == 0
        return
    assert result.exit_code == 2
    assert "expected to be run by root, found user 1000" in result.output.replace("\n", " ") or "--json" in words


def test_a_reader_that_leaves_is_no_error(hostagent: Caller) -> None:
    hostagent.write(lambda writer: writer.updated("u1", "web1"))
    program = "from hostagent.cli import main; main()"
    call = f"'{sys.executable}' -c '{program}' --config {hostagent.settings} status --all"
    command = f"{call} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout == "0\n"


# -- hostile text


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("db9", "db9"),
        ("Größe ‹9› 東", "Größe ‹9› 東"),
        ("a\x1b[31m\x07", "a\\x1b[31m\\x07"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\u202egnp.exe\u2066\u200b", "\\u202egnp.exe\\u2066\\u200b"),
        ("half \udc80", "half \\udc80"),
        ("\x9b2J\x85", "\\x9b2J\\x85"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_hostile_text_becomes_visible(hostile: str, shown: str) -> None:
    assert printable(hostile) == shown
    assert printable(hostile).isprintable()


def test_one_line_is_one_line() -> None:
    assert one_line(" a\n b\u2028c\x1b") == "a b c\\x1b"


def test_json_stays_valid_whatever_is_in_it() -> None:
    assert plain({"a\udc80": ["b\udc80", float("nan"), (1, None)]}) == {"a?": ["b?", None, [1, None]]}


def test_markup_is_not_read(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(as_json=False)
    out.error(HostagentError("[bold]x[/bold] :smile: [link=http://x]y"))
    assert capsys.readouterr().err == "hostagent: [bold]x[/bold] :smile: [link=http://x]y\n"


# -- signals


def test_held_signals_are_remembered_and_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    signals = Signals()
    with signals.held():
        assert not signals.cancelled()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.first == signal.SIGTERM
        with pytest.raises(Stopped), signals.ordinary():
            pytest.fail("asked although somebody wants to stop")
    assert signal.getsignal(signal.SIGTERM) == before


def test_while_a_person_is_asked_signals_end_it() -> None:
    signals = Signals()
    with signals.held(), pytest.raises(KeyboardInterrupt), signals.ordinary():
        os.kill(os.getpid(), signal.SIGINT)
    assert not signals.cancelled()


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signals = Signals()
        with signals.held():
            os.kill(os.getpid(), signal.SIGHUP)
        assert not signals.cancelled()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_example_can_be_pasted(hostagent: Caller) -> None:
    """It is on one line, however long that is."""
    shown = hostagent("metrics", "--help").stdout
    assert "  hostagent metrics --textfile /var/lib/prometheus/node-exporter/hostagent.prom\n" in shown
