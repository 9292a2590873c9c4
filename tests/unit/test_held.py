"""Guests that are held: what libvirt's hook is told of them, what it does with that, and their definition."""

from __future__ import annotations

import os
import stat
import subprocess
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import sampled
from hypothesis import given
from hypothesis import strategies as st

from hostagent.errors import Refused
from hostagent.hypervisor.domain_xml import live_differences
from hostagent.libvirt_files.held_definition import NAMESPACE, held_definition
from hostagent.libvirt_files.xml_spans import PlainXmlError
from hostagent.update.held import Held, HeldRam, entry, release, tell_hook

HOOK = Path(__file__).parents[2] / "dist" / "libvirt-hook-qemu"
TOKEN = "0123456789abcdef0123456789abcdef"
NAME = "my guest's & <odd> $name `x`"


class HeldHost:
    """A host with one held guest, as far as the hook sees it."""

    def __init__(self, root: Path) -> None:
        self.entries, self.folder, links = root / "held", root / "ram" / "libvirt" / "qemu", root / "ram" / "our links"
        for path in (self.folder, links):
            path.mkdir(parents=True)
        self.ram = tuple(HeldRam(file, str(links / f"a-{n}")) for n, file in enumerate(("ram-node0", "dimm0")))
        for ram in self.ram:
            Path(ram.link).write_text(ram.file)
        self.held = Held(NAME, "u1", TOKEN, str(self.folder), NAME[:20], os.getuid(), os.getgid(), self.ram)

    def hook(self, *words: str, xml: str = "") -> subprocess.CompletedProcess[str]:
        """As libvirt calls it."""
        environment = {"PATH": "/usr/bin:/bin", "HOSTAGENT_HELD": str(self.entries)}
        return subprocess.run(
            [str(HOOK), *words], input=xml, text=True, capture_output=True, env=environment, check=False
        )


@pytest.fixture
def host(tmp_path: Path) -> HeldHost:
    return HeldHost(tmp_path)


def definition(token: str, number: str = " id='7'") -> str:
    return held_definition(
        f"<domain type='kvm'{number}><name>n</name><devices><emulator>/old</emulator></devices></domain>",
        token=token,
        emulator="/new",
    )


BEGIN = (NAME, "prepare", "begin", "-")  # before libvirt does anything for it
START = (NAME, "start", "begin", "-")  # with everything ready for its QEMU


def test_our_own_restore_gets_its_ram(host: HeldHost) -> None:
    tell_hook(host.held, host.entries)
    done = host.hook(*BEGIN, xml=definition(TOKEN))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(host.folder.iterdir()) == []  # libvirt makes the folder itself, and AppArmor's rule for it
    done = host.hook(*START, xml=definition(TOKEN))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    folder = host.folder / f"7-{NAME[:20]}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for ram in host.ram:
        assert (folder / ram.file).samefile(ram.link)


def test_it_goes_into_the_folder_that_libvirt_has_made(host: HeldHost) -> None:
    tell_hook(host.held, host.entries)
    folder = host.folder / f"7-{NAME[:20]}"
    folder.mkdir(mode=0o700)
    assert host.hook(*START, xml=definition(TOKEN)).returncode == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(ram.file for ram in host.ram)


@pytest.mark.parametrize("xml", ["<domain id='7'/>", definition("f" * 32), ""])
@pytest.mark.parametrize("when", [BEGIN, START])
def test_another_start_of_it_is_refused_with_what_to_do(host: HeldHost, xml: str, when: tuple[str, ...]) -> None:
    tell_hook(host.held, host.entries)
    refused = host.hook(*when, xml=xml)
    assert refused.returncode == 1
    said = "it is held by hostagent (update u1), and its RAM with it: run hostagent recover"
    assert refused.stderr == f"{NAME}: {said}\n"
    assert list(host.folder.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [("other", "prepare", "begin", "-"), (NAME, "reconnect", "begin", "-"), (NAME, "started", "begin", "-"), ()],
)
def test_what_is_not_held_is_none_of_its_business(host: HeldHost, words: tuple[str, ...]) -> None:
    tell_hook(host.held, host.entries)
    assert host.hook(*words, xml="<domain id='7'/>").returncode == 0
    assert list(host.folder.iterdir()) == []


def test_one_that_is_released_starts_like_any_other(host: HeldHost) -> None:
    tell_hook(host.held, host.entries)
    release(NAME, host.entries)
    release(NAME, host.entries)
    assert host.hook(*BEGIN, xml="<domain id='7'/>").returncode == 0


@pytest.mark.parametrize("number", ["", " id='x'", " id='7;8'"])
def test_a_definition_without_libvirt_s_number(host: HeldHost, number: str) -> None:
    tell_hook(host.held, host.entries)
    refused = host.hook(*START, xml=definition(TOKEN, number))
    assert (refused.returncode, "number" in refused.stderr) == (1, True)


def test_a_folder_that_somebody_has_put_there_is_not_used(host: HeldHost, tmp_path: Path) -> None:
    tell_hook(host.held, host.entries)
    (host.folder / f"7-{NAME[:20]}").symlink_to(tmp_path)
    refused = host.hook(*START, xml=definition(TOKEN))
    assert (refused.returncode, "found a link" in refused.stderr) == (1, True)
    assert not (tmp_path / "dimm0").exists()


def test_ram_that_is_gone(host: HeldHost) -> None:
    tell_hook(host.held, host.entries)
    Path(host.ram[1].link).unlink()
    refused = host.hook(*START, xml=definition(TOKEN))
    assert (refused.returncode, "its RAM cannot be put at" in refused.stderr) == (1, True)


@pytest.mark.parametrize("word", ["update", "token", "folder", "name", "owner"])
def test_an_entry_that_is_not_whole_refuses_every_start(host: HeldHost, word: str) -> None:
    host.entries.mkdir(mode=0o700)
    lines = [line for line in host.held.written().splitlines(keepends=True) if not line.startswith(f"{word} ")]
    entry(NAME, host.entries).write_text("".join(lines))
    refused = host.hook(*BEGIN, xml=definition(TOKEN))
    assert (refused.returncode, "is not whole" in refused.stderr) == (1, True)


@pytest.mark.parametrize(
    "changed",
    [{"update": "a\nb"}, {"short_name": "ends "}, {"token": ""}, {"folder": "/a\0b"}, {"ram": (HeldRam("a b", "/c"),)}],
)
def test_what_the_hook_could_misread_is_refused(host: HeldHost, changed: dict[str, object]) -> None:
    with pytest.raises(Refused):
        replace(host.held, **changed).written()  # type: ignore[arg-type]


def test_entries_are_private(host: HeldHost) -> None:
    tell_hook(host.held, host.entries)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (host.entries, entry(NAME, host.entries))]
    assert modes == [0o700, 0o600]
    with pytest.raises(Refused):
        entry("../x", host.entries)


# -- the definition --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sampled.ALL)
def test_a_held_definition_says_the_same_but_for_mark_and_emulator(name: str) -> None:
    before = sampled.xml(name)
    after = held_definition(before, token=TOKEN, emulator="/opt/a&b/qemu")
    root = ElementTree.fromstring(after)
    (mark,) = root.iterfind(f"metadata/{{{NAMESPACE}}}held")
    assert mark.get("token") == TOKEN
    assert root.findtext("devices/emulator") == "/opt/a&b/qemu"
    metadata = root.find("metadata")
    assert metadata is not None
    metadata.remove(mark)
    if ElementTree.fromstring(before).find("metadata") is None:
        root.remove(metadata)
    assert live_differences(before, ElementTree.tostring(root, encoding="unicode")) == ()


@pytest.mark.parametrize(
    "metadata", ["<metadata/>", "<metadata></metadata>", "<metadata><a xmlns='urn:a'/></metadata>"]
)
def test_what_others_have_in_the_metadata_stays(metadata: str) -> None:
    xml = f"<domain>{metadata}<devices><emulator>/e</emulator></devices></domain>"
    root = ElementTree.fromstring(held_definition(xml, token=TOKEN, emulator="/f"))
    found = root.find("metadata")
    assert found is not None
    assert [child.tag for child in found][-1] == f"{{{NAMESPACE}}}held"
    assert len(found) == (2 if "urn:a" in metadata else 1)


@pytest.mark.parametrize("xml", ["<domain><devices/></domain>", "<other/>", "no XML"])
def test_what_is_no_definition(xml: str) -> None:
    with pytest.raises(PlainXmlError):
        held_definition(xml, token=TOKEN, emulator="/e")


@given(st.text(st.characters(exclude_characters="\n\0/", exclude_categories=("Cs",)), min_size=1, max_size=20))
def test_any_name_is_written_as_one_line_or_refused(name: str) -> None:
    held = Held(name, "u", TOKEN, "/f", name, 1, 2, ())
    try:
        text = held.written()
    except Refused:
        return
    assert text.split("\n")[3] == f"name {name}"
    assert len(text.split("\n")) == 6
