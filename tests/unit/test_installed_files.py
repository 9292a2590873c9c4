"""What an installation puts on a host, as far as it can be read without one: settings, man page, completions, pins."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pip._vendor.packaging.requirements import Requirement
from pydantic import BaseModel

from dist.tools import completion, man_page, pins
from hostagent import __version__
from hostagent.cli import main
from hostagent.config import Config
from hostagent.policy import BUILT_IN, Setting
from hostagent.policy_settings import PolicyTable

DIST = Path(__file__).parents[2] / "dist"
SETTINGS = DIST / "hostagent.toml"
EXPOSURE_LIMIT = 35  # 3.5; docs/installing.md says it


def with_all_settings() -> str:
    """The file with no setting commented out."""
    return re.sub(r"^#(?=\[\[|[a-z_]+ = )", "", SETTINGS.read_text(), flags=re.MULTILINE)


def tables(model: type[BaseModel], where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], type[BaseModel]]]:
    """Every table that the settings may have, with its place; for lists of tables that of each in the list."""
    yield where, model
    for name, field in model.model_fields.items():
        for one in (field.annotation, *get_args(field.annotation)):
            if isinstance(one, type) and issubclass(one, BaseModel):
                yield from tables(one, (*where, field.alias or name))


def said(document: Any, where: tuple[str, ...]) -> dict[str, Any]:
    """What a document has there; of several tables in a list, what they have together."""
    for word in where:
        document = document[word]
    return (
        {key: value for table in document for key, value in table.items()} if isinstance(document, list) else document
    )


def settings_of(model: type[BaseModel]) -> dict[str, Any]:
    """Its keys but for tables, and their defaults."""
    return {
        field.alias or name: field.get_default()
        for name, field in model.model_fields.items()
        if not any(
            isinstance(one, type) and issubclass(one, BaseModel)
            for one in (field.annotation, *get_args(field.annotation))
        )
    }


TABLES = [(where, model) for where, model in tables(Config) if where]
IN_LISTS = {("policy", "guest"), ("peer",), ("component",), ("health",)}
EXAMPLES = {"agent": dict.fromkeys(("tls_cert", "tls_key", "tls_client_ca"))}  # that have no default


def test_the_settings_change_nothing_as_they_are_installed(tmp_path: Path) -> None:
    shutil.copy(SETTINGS, tmp_path)
    assert Config.load(tmp_path / SETTINGS.name) == Config()


@pytest.mark.parametrize(
    ("where", "model"), TABLES, ids=lambda value: ".".join(value) if isinstance(value, tuple) else ""
)
def test_every_setting_is_in_them(where: tuple[str, ...], model: type[BaseModel]) -> None:
    assert set(settings_of(model)) <= set(said(tomllib.loads(with_all_settings()), where))


def test_they_are_right_with_nothing_commented_out(tmp_path: Path) -> None:
    (tmp_path / "all.toml").write_text(with_all_settings())
    Config.load(tmp_path / "all.toml")


def test_what_is_commented_out_is_what_holds(tmp_path: Path) -> None:
    """But for lists of tables, of which there are none unless somebody writes one."""
    (tmp_path / "all.toml").write_text(with_all_settings())
    found = Config.load(tmp_path / "all.toml").model_copy(update={"peer": (), "component": (), "health": ()})
    part = found.policy.part()
    assert {setting: part.says(setting) for setting in Setting} == {
        setting: BUILT_IN.part.says(setting) for setting in Setting
    }
    without = {name: getattr(found, name).model_copy(update=values) for name, values in EXAMPLES.items()}
    assert found.model_copy(update={**without, "policy": PolicyTable()}) == Config()


def test_lists_of_tables_are_known() -> None:
    """A new one is to be an example in the file, and not taken for what holds."""
    document = tomllib.loads(with_all_settings())
    assert {where for where, _ in TABLES if _is_list(document, where)} == IN_LISTS


def _is_list(document: Any, where: tuple[str, ...]) -> bool:
    for word in where:
        document = document.get(word, {})
    return isinstance(document, list)


def test_the_man_page_has_every_verb_and_option() -> None:
    page = man_page.page()
    for one in man_page.sections("hostagent", main):
        heading = f".SS {man_page.escaped(one.path.removeprefix('hostagent '))}"
        assert any(line.startswith(heading) for line in page.splitlines()), one.path
        for parameter in one.command.params:
            for option in (word for word in parameter.opts if word.startswith("--")):
                assert man_page.escaped(option) in page, f"{one.path} {option}"
    assert __version__ in page


def test_the_man_page_is_good_roff(tmp_path: Path) -> None:
    if shutil.which("groff") is None:
        pytest.skip("no groff here; the Debian package's build looks, too")
    (tmp_path / "page").write_text(man_page.page())
    words = ["groff", "-man", "-Tutf8", "-ww", "-Kutf8", "-z", str(tmp_path / "page")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (".so /etc/passwd", "\\&.so /etc/passwd"),
        ("'br", "\\(aqbr"),
        ("a\\fB", "a\\efB"),
        ("--json", "\\-\\-json"),
    ],
)
def test_what_verbs_say_is_no_roff(text: str, expected: str) -> None:
    assert man_page.escaped(text) == expected


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_a_shell_can_read_its_completion(shell: str) -> None:
    script = completion.script(shell)
    assert "_HOSTAGENT_COMPLETE" in script
    if shutil.which(shell) is not None:
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_what_the_package_is_built_with_is_all_that_hostagent_needs() -> None:
    """After a change there: python -m dist.tools.pins > dist/requirements.txt."""
    lines = [line.split() for line in (DIST / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = dict(line[0].split("==") for line in lines)
    for wanted in map(Requirement, pins.wanted()):
        name = wanted.name.replace(".", "-")
        assert name in pinned, name
        assert wanted.specifier.contains(pinned[name]), wanted
    assert all(len(line) == 2 and line[1].startswith("--hash=sha256:") for line in lines)


def test_the_packages_version_is_hostagents() -> None:
    assert (DIST / "debian/changelog").read_text().startswith(f"hostagent ({__version__}) ")


def test_the_service_can_do_little_by_itself() -> None:
    """What `systemd-analyze security` makes of it, in tenths; the same is asked on a host of the lab."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    words = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_LIMIT}"]
    done = subprocess.run([*words, str(DIST / "hostagent.service")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
