"""Prints the man page, from what every verb's --help says: python -m dist.tools.man_page

In the words of man(7), which groff, mandoc and man all know.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import click

from hostagent import __version__
from hostagent.cli import main
from hostagent.cli.verbs import Verb, Verbs

FILES = (
    ("/etc/hostagent/hostagent.toml", "Settings; every one stands there with its default."),
    ("/etc/hostagent/hostagent.toml.d/*.toml", "Laid over them in the order of their names, key by key."),
    ("/var/lib/hostagent", "The journal, other QEMU versions, and the state of guests that are held."),
    ("/run/hostagent", "The agent's socket, and what libvirt's hook is told of guests that are held."),
)
SEE_ALSO = "virsh(1), libvirtd(8), systemctl(1)"


@dataclass(frozen=True)
class Section:
    """A verb, or a verb of a verb."""

    path: str  # "hostagent guest show"
    command: click.Command

    @property
    def context(self) -> click.Context:
        return click.Context(self.command, info_name=self.path)


def escaped(text: str) -> str:
    """Text that stands for itself in roff, also at the beginning of a line, and whose hyphens are ASCII's."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    text = text.replace("^", "\\(ha").replace("~", "\\(ti")
    return "\\&" + text if text.startswith(".") else text


def sections(path: str, command: click.Command) -> Iterator[Section]:
    """A command and all below it; only verbs, which do something."""
    if not isinstance(command, click.Group):
        yield Section(path, command)
        return
    context = click.Context(command, info_name=path)
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        if below is not None and not below.hidden:
            yield from sections(f"{path} {name}", below)


def paragraphs(text: str) -> Iterator[str]:
    """Of a docstring, each on one line."""
    for part in inspect.cleandoc(text).split("\n\n"):
        yield " ".join(part.split())


def _section(one: Section) -> Iterator[str]:
    context, command = one.context, one.command
    words = [word for word in command.collect_usage_pieces(context) if word != "[OPTIONS]"]
    yield f".SS {escaped(' '.join([one.path.removeprefix('hostagent '), *words]))}"
    for number, text in enumerate(paragraphs(command.help or "")):
        yield from ([".PP"] if number else [])
        yield escaped(text)
    common = {parameter.name for parameter in main.params}
    yield from _options(context, [one for one in command.params if one.name not in common])
    if isinstance(command, Verb) and command.example:
        yield from (".PP", "Example:", ".PP", ".nf", ".RS")
        yield from (escaped(line) for line in command.example.splitlines())
        yield from (".RE", ".fi")


def _options(context: click.Context, parameters: list[click.Parameter]) -> Iterator[str]:
    for parameter in parameters:
        told = parameter.get_help_record(context)
        if told is not None and told[1]:  # an argument is in the usage already
            yield from (".TP", f"\\fB{escaped(told[0])}\\fR", escaped(told[1]))


def page() -> str:
    """The whole of it."""
    context = click.Context(main, info_name="hostagent")
    intro = list(paragraphs(main.help or ""))
    about, codes = intro[0], next(one for one in intro if one.startswith("Exit codes: "))
    lines = [
        f'.TH HOSTAGENT 8 "" "hostagent {__version__}"',
        ".SH NAME",
        f"hostagent \\- {escaped(about.rstrip('.')[0].lower() + about.rstrip('.')[1:])}",
        ".SH SYNOPSIS",
        ".B hostagent",
        "[\\fIoptions\\fR] \\fIverb\\fR [\\fIarguments\\fR]",
        ".SH DESCRIPTION",
        escaped(about),
        *(line for one in intro[1:] if one != codes for line in (".PP", escaped(one))),
        ".SH OPTIONS",
        "Before or after the verb:",
        *_options(context, list(main.params)),
        ".SH VERBS",
    ]
    for one in sections("hostagent", main):
        lines += _section(one)
    lines.append(".SH EXIT STATUS")
    for code in codes.removeprefix("Exit codes: ").rstrip(".").split(";"):
        number, _, words = code.strip().partition(" ")
        lines += [".TP", f"\\fB{escaped(number)}\\fR", escaped(words)]
    lines.append(".SH FILES")
    for path, words in FILES:
        lines += [".TP", f"\\fI{escaped(path)}\\fR", escaped(words)]
    lines += [".SH SEE ALSO", escaped(SEE_ALSO)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    assert isinstance(main, Verbs)  # noqa: S101 - it is
    print(page(), end="")
