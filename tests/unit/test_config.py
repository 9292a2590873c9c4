"""Settings: defaults, what is accepted, drop-ins, and errors that name file, line and what is allowed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hostagent import config
from hostagent.config import Config, DaemonControl, parse_duration
from hostagent.errors import UsageError
from hostagent.peer_settings import Transport
from hostagent.plan import ClockPolicy
from hostagent.policy import Allowed, Layer, PolicyPart


def load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "hostagent.toml"
    path.write_text(text)
    return Config.load(path)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text)
    return str(caught.value).replace(str(tmp_path), "")


def test_defaults() -> None:
    settings = Config()
    assert settings.libvirt.uri == "qemu:///system"
    assert settings.libvirt.daemon.start == ("/usr/sbin/libvirtd", "--daemon")
    assert settings.paths.state == Path("/var/lib/hostagent")
    assert settings.update.start_seconds == 30.0
    assert settings.policy.layers() == (Layer("[policy]", PolicyPart()),)


def test_without_the_default_file_there_are_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "none.toml")
    assert Config.load() == Config()


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a configuration file, found no such file"):
        Config.load(tmp_path / "none.toml")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Is a directory"):
        Config.load(tmp_path)


def test_everything_can_be_set(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        """
        [libvirt]
        uri = "qemu+unix:///system?socket=/x"
        call_seconds = 3
        daemon = { control = "command", start = ["/opt/libvirtd", "-d"], ready_seconds = 5.5 }
        [paths]
        state = "/srv/hostagent"
        [setup]
        memory_backing_dir = "/mnt/ram"
        ram_size = "64G"
        [update]
        start_seconds = 1
        rehearse = false
        [clock]
        require_synchronised_host = false
        samples = 12
        """,
    )
    assert settings.libvirt.call_seconds == 3.0
    assert settings.libvirt.daemon.control is DaemonControl.COMMAND
    assert not settings.libvirt.daemon.by_systemd
    assert settings.libvirt.daemon.start == ("/opt/libvirtd", "-d")
    assert settings.paths.state == Path("/srv/hostagent")
    assert settings.setup.ram_size == "64G"
    assert settings.update.rehearse is False
    assert settings.clock.samples == 12


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Config().update.start_seconds = 5  # type: ignore[misc]


def test_an_unknown_key_names_line_and_the_keys_there_are(tmp_path: Path) -> None:
    assert refusal(tmp_path, "# a\n\n[update]\nrehearse = true\nstart_second = 3\n") == (
        "reading /hostagent.toml, line 5: "
        "expected one of start_seconds, copy_seconds, converge_seconds, adopt_definition, "
        "side_by_side, rehearse, apparmor in [update], "
        "found unknown key 'start_second' (hint: did you mean 'start_seconds'?)"
    )


def test_an_unknown_table(tmp_path: Path) -> None:
    assert refusal(tmp_path, "[update]\n[quux]\nx = 1\n") == (
        "reading /hostagent.toml, line 2: expected one of libvirt, paths, setup, update, clock, kernel, reboot, "
        "policy, migrate, peer, component, roll, agent, health, metrics in the file's top level, "
        "found unknown key 'quux'"
    )


def test_peers(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        """
        [migrate]
        uri = "qemu+tls://host1/system"
        return = false
        [[peer]]
        name = "host2"
        uri = "qemu+tls://host2/system"
        migrate_uri = "tcp://10.0.0.2"
        shared = ["/srv/images"]
        [[peer]]
        name = "host3"
        uri = "qemu+ssh://root@host3/system?keyfile=/root/key"
        transport = "ssh"
        max_guests = 4
        """,
    )
    assert (settings.migrate.uri, settings.migrate.comes_back) == ("qemu+tls://host1/system", False)
    two, three = settings.peer
    assert (two.transport, two.shared, two.migrate_uri) == (Transport.TLS, (Path("/srv/images"),), "tcp://10.0.0.2")
    assert (three.transport, three.max_guests, three.coherent) == (Transport.SSH, 4, False)
    assert Config().migrate.comes_back
    assert not Config().peer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('name = "a"', "line 1: expected peer.uri = a URI like 'qemu+tls://host2/system', found nothing"),
        ('name = "a b"\nuri = "qemu+tls://a/system"', "line 2: expected peer.name = a short name"),
        ('name = "a"\nuri = "qemu+tls://a/system;id"', "line 3: expected peer.uri = a URI"),
        ('name = "a"\nuri = "qemu+tls://a/system"\ntransport = "none"', "line 4: expected peer.transport = tls, ssh"),
        ('name = "a"\nuri = "qemu+tcp://a/system"', "or another transport, found qemu+tcp://a/system"),
        ('name = "a"\nuri = "qemu+tls://a/system"\ntransport = "ssh"', "expected a uri of qemu+ssh or"),
        (
            'name = "a"\nuri = "qemu+tls://a/system"\nshared = ["x"]',
            "expected peer.shared = a list of absolute",
        ),
    ],
)
def test_a_peer_that_is_none(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refusal(tmp_path, f"[[peer]]\n{text}\n")


@pytest.mark.parametrize(
    ("transport", "uri", "found"),
    [
        ("ssh", "qemu+ssh://a/system?no_verify=1", "without no_verify for transport 'ssh'"),
        ("ssh", "qemu+ssh://a/system?keyfile=/k&No_Verify=1", "without No_Verify"),
        ("ssh", "qemu+libssh://a/system?known_hosts_verify=ignore", "without known_hosts_verify"),
        ("ssh", "qemu+libssh://a/system?known_hosts_verify=auto", "without known_hosts_verify"),
        ("tls", "qemu+tls://a/system?no_verify=1", "without no_verify for transport 'tls', or another transport"),
        ("ssh", "qemu+ssh://a/system?no_verify=0&no_tty=1", ""),
        ("ssh", "qemu+libssh2://a/system?known_hosts_verify=normal", ""),
        ("plain", "qemu+ssh://a/system?no_verify=1", ""),
    ],
)
def test_a_peer_has_to_prove_who_it_is(tmp_path: Path, transport: str, uri: str, found: str) -> None:
    text = f'[[peer]]\nname = "a"\nuri = "{uri}"\ntransport = "{transport}"\n'
    if found:
        assert found in refusal(tmp_path, text)
    else:
        assert load(tmp_path, text).peer[0].uri == uri


@pytest.mark.parametrize(
    ("more", "uri", "found"),
    [
        ("", "qemu+tcp://a/system", "for the way back, [migrate], from b, found qemu+tcp://a/system"),
        ("", "qemu+tls://a/system?no_verify=1", "a uri without no_verify for the way back"),
        ("", "qemu+ssh://a/system", ""),
        ("return = false\n", "qemu+tcp://a/system", ""),
    ],
)
def test_nobody_comes_back_over_less_than_he_went_by(tmp_path: Path, more: str, uri: str, found: str) -> None:
    peer = '[[peer]]\nname = "b"\nuri = "qemu+ssh://b/system"\ntransport = "ssh"\n'
    text = f'[migrate]\nuri = "{uri}"\n{more}{peer}'
    if found:
        assert found in refusal(tmp_path, text)
    else:
        assert load(tmp_path, text).migrate.uri == uri
    plain = text.replace('transport = "ssh"', 'transport = "plain"')
    assert load(tmp_path, plain).peer[0].transport is Transport.PLAIN


def test_two_peers_of_one_name(tmp_path: Path) -> None:
    one = '[[peer]]\nname = "a"\nuri = "qemu+tls://a/system"\n'
    assert "expected peer = tables with different names" in refusal(tmp_path, one + one)


def test_the_way_back_is_named_as_people_write_it(tmp_path: Path) -> None:
    assert "expected migrate.return = true or false" in refusal(tmp_path, "[migrate]\nreturn = 1\n")
    assert "did you mean 'return'?" in refusal(tmp_path, "[migrate]\nretrun = true\n")
    assert "unknown key 'comes_back'" in refusal(tmp_path, "[migrate]\ncomes_back = true\n")


def test_what_is_said_of_guests(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        """
        [policy]
        allow = []
        budget_seconds = 5
        [[policy.guest]]
        name = "db*"
        allow = ["in-place", "reboot"]
        clock = "report"
        priority = -3
        availability_set = "db"
        update_domain = ""
        never_together = ["web & more"]
        boot_tcp = "10.0.0.5:22"
        """,
    )
    assert settings.policy.layers() == (
        Layer("[policy]", PolicyPart(allow=frozenset(), budget_seconds=5.0)),
        Layer(
            "[[policy.guest]] db*",
            PolicyPart(
                allow=frozenset((Allowed.IN_PLACE, Allowed.REBOOT)),
                clock=ClockPolicy.REPORT,
                priority=-3,
                availability_set="db",
                update_domain="",
                never_together=frozenset(("web & more",)),
                boot_tcp="10.0.0.5:22",
            ),
            "db*",
        ),
    )


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        ("[update]\nbudget_seconds = 1\n", "it is budget_seconds below [policy] now"),
        ('[update]\npriority = ["a"]\n', "it is priority in a [[policy.guest]] now"),
        ('[clock]\npolicy = "off"\n', "it is clock below [policy] now"),
    ],
)
def test_what_was_elsewhere_before_says_where_it_is(tmp_path: Path, text: str, moved: str) -> None:
    assert refusal(tmp_path, text).endswith(f"(hint: {moved})")


def test_a_key_that_a_table_must_have(tmp_path: Path) -> None:
    assert refusal(tmp_path, '[clock]\n[[component]]\nname = "x"\napply = ["/x"]\nverify = ["/x"]\n') == (
        "reading /hostagent.toml, line 2: expected component.roll_back = a list of texts: an absolute path and its "
        "arguments, found nothing"
    )


def test_an_unknown_key_in_a_nested_table(tmp_path: Path) -> None:
    line = refusal(tmp_path, '[libvirt]\nuri = "x"\n\n[libvirt.daemon]\ncontrol = "auto"\nstat = ["/x"]\n')
    assert "line 6: expected one of control, start, ready_seconds in [libvirt.daemon], found unknown key" in line


@pytest.mark.parametrize(
    ("text", "line", "expected", "found"),
    [
        (
            "[update]\nstart_seconds = 0\n",
            2,
            "update.start_seconds = a number of seconds above 0, at most 3600",
            "0",
        ),
        ("[update]\nstart_seconds = nan\n", 2, "update.start_seconds = a number of seconds", "NaN"),
        ("[update]\nstart_seconds = true\n", 2, "update.start_seconds = a number of seconds", "true"),
        ("[update]\nrehearse = 1\n", 2, "update.rehearse = true or false", "1"),
        ('[update]\nstart_seconds = "10"\n', 2, "update.start_seconds = a number of seconds", '"10"'),
        ('[policy]\nclock = "slew"\n', 2, "policy.clock = step, report or off", '"slew"'),
        ('[policy]\nallow = ["in place"]\n', 2, "policy.allow = a list, empty or with some of in-place", '"in place"'),
        ('[policy]\nallow = "in-place"\n', 2, "policy.allow = a list", '"in-place"'),
        ("[policy]\nbudget_seconds = 3601\n", 2, "policy.budget_seconds = a number of seconds above 0", "3601"),
        ("[policy]\npriority = 1001\n", 2, "policy.priority = a whole number from -1000 to 1000", "1001"),
        ("[policy]\npriority = true\n", 2, "policy.priority = a whole number", "true"),
        ('[policy]\nupdate_domain = "a b"\n', 2, "policy.update_domain = a name of at most 64 letters", '"a b"'),
        ('[policy]\nboot_tcp = "web1"\n', 2, "policy.boot_tcp = a host and a TCP port, like 10.0.0.5:22", '"web1"'),
        ("[reboot]\nshutdown_seconds = 0\n", 2, "reboot.shutdown_seconds = a number of seconds above 0", "0"),
        ('[policy]\nnever_together = ["a/b"]\n', 2, "policy.never_together = at most 64 names of guests", '"a/b"'),
        ("[policy]\n[[policy.guest]]\nbudget_seconds = 1\n", 2, "policy.guest.name = a guest's name", "nothing"),
        (
            '[[policy.guest]]\nname = "a"\n[[policy.guest]]\nname = "b"\nclock = 1\n',
            5,
            "policy.guest.clock = step, report or off",
            "1",
        ),
        ("[clock]\nsamples = 1.5\n", 2, "clock.samples = a whole number from 1 to 64", "1.5"),
        ("[clock]\nsamples = 65\n", 2, "clock.samples = a whole number from 1 to 64", "65"),
        ('[paths]\n\nstate = "relative"\n', 3, "paths.state = an absolute path", '"relative"'),
        ('[paths]\nstate = "/a/../b"\n', 2, "paths.state = an absolute path", '"/a/../b"'),
        ("[paths]\nstate = '/a\"b'\n", 2, "paths.state = an absolute path", '"/a\\"b"'),
        ("[paths]\nstate = 7\n", 2, "paths.state = an absolute path", "7"),
        ('[setup]\nram_size = "half"\n', 2, "setup.ram_size = a tmpfs size", '"half"'),
        ('[setup]\nram_size = "5,mode=777"\n', 2, "setup.ram_size = a tmpfs size", '"5,mode=777"'),
        ('[libvirt]\nuri = ""\n', 2, "libvirt.uri = a text that is not empty", '""'),
        ('libvirt = "x"\n', 1, "libvirt = a table", '"x"'),
        ("[libvirt]\ndaemon = 2001-01-01\n", 2, "libvirt.daemon = a table", '"2001-01-01"'),
        (
            'libvirt.daemon.control = "init"\n',
            1,
            "libvirt.daemon.control = auto, systemd or command",
            '"init"',
        ),
        ("[libvirt.daemon]\nstart = []\n", 2, "libvirt.daemon.start = a list of texts", "[]"),
        (
            '[libvirt.daemon]\nstart = ["libvirtd"]\n',
            2,
            "libvirt.daemon.start = a list of texts",
            '["libvirtd"]',
        ),
        ('[libvirt.daemon]\nstart = [\n  "/x",\n  3,\n]\n', 2, "libvirt.daemon.start = a list of texts", "3"),
        ('[libvirt]\ndaemon = { control = "x" }\n', 2, "libvirt.daemon.control = auto, systemd", '"x"'),
    ],
)
def test_a_wrong_value_names_line_and_what_is_allowed(
    tmp_path: Path, text: str, line: int, expected: str, found: str
) -> None:
    said = refusal(tmp_path, text)
    assert said.startswith(f"reading /hostagent.toml, line {line}: expected {expected}")
    assert said.endswith(f"found {found}")


def test_the_first_of_several_errors_is_told(tmp_path: Path) -> None:
    assert "line 2:" in refusal(tmp_path, "[clock]\nsamples = 0\nx = 1\n[update]\ny = 1\n")


def test_lookalikes_in_values_and_comments_do_not_mislead(tmp_path: Path) -> None:
    text = (
        "# start_seconds = 0\n[update] # [clock]\n"
        '[libvirt]\nuri = """\nstart_seconds = 0\n[update]\nsamples = 1\n"""\n'
        "# samples\n\n[clock]\n'samples' = 0\n"
    )
    assert "line 12:" in refusal(tmp_path, text)


def test_broken_toml_says_where(tmp_path: Path) -> None:
    assert "expected TOML in UTF-8, found" in refusal(tmp_path, "[update\n")
    assert "line 2" in refusal(tmp_path, "[update]\nx = = 1\n")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"[clock]\n# \xc3\xa4\n# \xe4\n")
    with pytest.raises(UsageError, match=r"x\.toml, line 3: expected TOML in UTF-8"):
        Config.load(path)


def test_what_tomllib_trips_over(tmp_path: Path) -> None:
    assert "nested too deeply" in refusal(tmp_path, "x = " + "[" * 30_000)
    assert "expected TOML" in refusal(tmp_path, "x = " + "1" * 5000)


def test_only_newlines_end_lines(tmp_path: Path) -> None:
    assert "line 3:" in refusal(tmp_path, '# a\u2028b\n[clock]\nsamples = "\u2028"\n')


def test_tables_that_nest_deeper_than_can_be_shown(tmp_path: Path) -> None:
    said = refusal(tmp_path, f"clock.samples{'.a' * 2_000} = 1\n")
    assert said.endswith("line 1: expected clock.samples = a whole number from 1 to 64, found values nested too deeply")


def test_lines_may_end_as_on_windows(tmp_path: Path) -> None:
    text = '[libvirt]\nuri = """\na"""\n\n[clock]\nsamples = 0\n'
    assert "line 6:" in refusal(tmp_path, text)
    (tmp_path / "hostagent.toml").write_bytes(text.replace("\n", "\r\n").encode())
    with pytest.raises(UsageError, match="line 6: expected clock"):
        Config.load(tmp_path / "hostagent.toml")


def test_a_long_file_is_searched_once(tmp_path: Path) -> None:
    assert "line 60002: expected clock.samples" in refusal(tmp_path, f"[clock]\n{chr(10) * 60_000}samples = 0\n")


def test_a_huge_file_is_not_parsed(tmp_path: Path) -> None:
    assert "at most 65536 bytes" in refusal(tmp_path, "#" * 70_000)


# -- drop-ins


def load_all(tmp_path: Path, texts: dict[str, str]) -> Config:
    """What the files say together; "" is the main one, the others are in its folder."""
    main = tmp_path / "hostagent.toml"
    folder = tmp_path / "hostagent.toml.d"
    folder.mkdir()
    for name, text in texts.items():
        (folder / name if name else main).write_text(text)
    return Config.load(main)


def refusal_of_all(tmp_path: Path, texts: dict[str, str]) -> str:
    with pytest.raises(UsageError) as caught:
        load_all(tmp_path, texts)
    return str(caught.value).replace(str(tmp_path), "")


def test_a_drop_in_overrides_single_keys(tmp_path: Path) -> None:
    settings = load_all(
        tmp_path,
        {
            "": '[update]\nstart_seconds = 1\nrehearse = false\n[libvirt]\ndaemon = { control = "command" }\n',
            "10-site.toml": 'libvirt.daemon.start = ["/opt/libvirtd", "-d", "-v"]\nupdate.start_seconds = 2\n',
            "20-host.toml": '[libvirt.daemon]\nstart = ["/opt/libvirtd"]\n[clock]\nsamples = 3\n',
        },
    )
    assert (settings.update.start_seconds, settings.update.rehearse) == (2.0, False)
    assert settings.libvirt.daemon.control is DaemonControl.COMMAND
    assert settings.libvirt.daemon.start == ("/opt/libvirtd",)  # lists replace
    assert settings.clock.samples == 3
    assert settings.paths == Config().paths


@pytest.mark.parametrize("names", [["a.toml", "b.toml"], ["10.toml", "9.toml"], ["Z.toml", "a.toml"]], ids=" ".join)
def test_the_last_name_counts_whichever_file_is_newer(tmp_path: Path, names: list[str]) -> None:
    for sub, written in (("forth", names), ("back", names[::-1])):
        (tmp_path / sub).mkdir()
        texts = {name: f"clock.samples = {names.index(name) + 1}\n" for name in written}
        assert load_all(tmp_path / sub, texts).clock.samples == 2


@pytest.mark.parametrize("name", [".toml", ".10.toml", "10.toml~", "10.toml.dpkg-old", "#10.toml#", "10.conf", "toml"])
def test_what_editors_leave_behind_is_no_drop_in(tmp_path: Path, name: str) -> None:
    assert load_all(tmp_path, {"": "", name: "= broken"}) == Config()


def test_drop_ins_count_without_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_all(tmp_path, {"a.toml": "clock.samples = 3\n"}).clock.samples == 3
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "hostagent.toml")
    assert Config.load().clock.samples == 3


def test_an_empty_folder_is_not_the_file_that_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal_of_all(tmp_path, {}) == (
        "reading /hostagent.toml: expected a configuration file, found no such file"
    )
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "hostagent.toml")
    assert Config.load() == Config()


GOOD, UNKNOWN, ZERO = "[clock]\nsamples = 1\n", "[clock]\n\nsample = 1\n", "[clock]\nsamples = 0\n"


@pytest.mark.parametrize(
    ("texts", "blamed"),
    [
        ({"": GOOD, "a.toml": UNKNOWN, "b.toml": GOOD}, "hostagent.toml.d/a.toml, line 3"),
        ({"": UNKNOWN, "a.toml": GOOD}, "hostagent.toml, line 3"),
        ({"": UNKNOWN, "a.toml": UNKNOWN}, "hostagent.toml.d/a.toml, line 3"),
        ({"": GOOD, "a.toml": "[quux]\n"}, "hostagent.toml.d/a.toml, line 1"),
        ({"": GOOD, "a.toml": "\n" + ZERO}, "hostagent.toml.d/a.toml, line 3"),
        ({"": "#\n" + ZERO, "a.toml": "update.rehearse = true\n"}, "hostagent.toml, line 3"),
        ({"a.toml": ZERO, "b.toml": "\n" + ZERO, "c.toml": "[clock]\n"}, "hostagent.toml.d/b.toml, line 3"),
        ({"": "#\n#\n" + ZERO, "a.toml": "update = 1"}, "hostagent.toml, line 4"),  # the first file, then the line
        ({"": "[clock]\n", "a.toml": "\nclock = 1"}, "hostagent.toml.d/a.toml, line 2"),
        ({"a.toml": "libvirt.daemon.start = ['/x']", "b.toml": "libvirt.daemon.start = [\n3]"}, "d/b.toml, line 1"),
    ],
)
def test_the_last_file_that_sets_a_key_is_blamed_for_it(tmp_path: Path, texts: dict[str, str], blamed: str) -> None:
    said = refusal_of_all(tmp_path, texts)
    assert said.startswith("reading /hostagent.toml")
    assert f"{blamed}: expected " in said


@pytest.mark.parametrize("wrong", [ZERO, "clock = 1\n"])
def test_a_wrong_value_that_is_overridden_is_not_wrong(tmp_path: Path, wrong: str) -> None:
    assert load_all(tmp_path, {"": wrong, "a.toml": GOOD}).clock.samples == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[clock]\nsamples = = 1\n", "expected TOML in UTF-8, found Invalid value (at line 2, column 11)"),
        ("x = " + "[" * 30_000, "expected TOML in UTF-8, found values nested too deeply"),
        ("#" * 70_000, "expected at most 65536 bytes, found 70000"),
    ],
    ids=["broken", "deep", "huge"],
)
def test_a_broken_drop_in_is_named(tmp_path: Path, text: str, said: str) -> None:
    texts = {"": GOOD, "a.toml": GOOD, "b.toml": text, "c.toml": GOOD}
    assert refusal_of_all(tmp_path, texts) == f"reading /hostagent.toml.d/b.toml: {said}"


def test_tables_may_nest_deeply_in_several_files(tmp_path: Path) -> None:
    deep = f"clock{'.a' * 2_000} = 1\n"
    assert "a.toml, line 1: expected one of require" in refusal_of_all(tmp_path, {"": deep, "a.toml": deep})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Path.mkdir, "expected a regular file, found something else"),
        (os.mkfifo, "expected a regular file, found something else"),
        (lambda path: path.symlink_to("/dev/null"), "expected a regular file, found something else"),
        (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
        (lambda path: path.symlink_to("/proc/self/mem"), "Input/output error"),  # a file that cannot be read
    ],
    ids=["folder", "pipe", "device", "dangling", "loop", "unreadable"],
)
def test_what_is_no_readable_file_is_an_error(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    load_all(tmp_path, {"": GOOD, "a.toml": GOOD})
    make(tmp_path / "hostagent.toml.d" / "b.toml")
    with pytest.raises(UsageError) as caught:
        Config.load(tmp_path / "hostagent.toml")
    assert str(caught.value) == f"reading {tmp_path}/hostagent.toml.d/b.toml: {said}"


def test_a_link_to_a_file_is_a_drop_in(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("clock.samples = 2\n")
    load_all(tmp_path, {"": GOOD})
    (tmp_path / "hostagent.toml.d" / "a.toml").symlink_to(tmp_path / "elsewhere")
    assert Config.load(tmp_path / "hostagent.toml").clock.samples == 2


def test_a_folder_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "hostagent.toml.d").write_text(GOOD)
    assert refusal(tmp_path, GOOD) == "reading /hostagent.toml.d: Not a directory"


# -- durations


@pytest.mark.parametrize(
    ("text", "seconds"), [("10s", 10), ("500ms", 0.5), ("1m", 60), ("1.5s", 1.5), ("2h", 7200), (" 3s ", 3)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "s", "-1s", "0s", "1e3s", "1 s", "1d", "infs", "nan", "1s1s", "١s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="like 10s"):
        parse_duration(text)


@given(st.text(max_size=200))
def test_any_text_is_settings_or_a_usage_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(text, encoding="utf-8", errors="replace")
    try:
        Config.load(path)
    except UsageError as error:
        assert "any.toml" in str(error)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('listen = "0.0.0.0:9177"', "an address of this host alone like '127.0.0.1:9177', or tls_cert and tls_key"),
        ('listen = "[::]:9177"', "found '[::]:9177'"),
        ('listen = "localhost:9177"', "like '127.0.0.1:9177'"),
        ('listen = "9177"', "like '127.0.0.1:9177'"),
        ('tls_cert = "/a.pem"', "tls_cert and tls_key, both or neither, found one of them"),
        ('tls_client_ca = "/a.pem"', "tls_cert and tls_key beside tls_client_ca"),
        ('group = "a b"', "a group's name"),
        ('log_format = "xml"', "logfmt or json"),
        ("look_seconds = 0", "a number of seconds above 0"),
    ],
)
def test_the_agent_serves_nobody_by_accident(tmp_path: Path, text: str, words: str) -> None:
    told = refusal(tmp_path, f"[agent]\n{text}\n")
    assert words in told
    assert told.startswith("reading /hostagent.toml, line ")


def test_the_agent_serves_others_by_tls(tmp_path: Path) -> None:
    tls = 'tls_cert = "/a.pem"\ntls_key = "/b.pem"'
    assert load(tmp_path, f'[agent]\nlisten = "[::]:9177"\n{tls}\n').agent.address == ("::", 9177)
    assert load(tmp_path, '[agent]\nlisten = "127.0.0.1:9177"\n').agent.address == ("127.0.0.1", 9177)
    assert Config().agent.address is None
