"""What all verbs share on the command line. Light: `hostagent --help` loads this and click alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import click


@dataclass
class Asked:
    """What can be asked of every verb, before or after its name."""

    config: Path | None = None
    connect: str | None = None
    as_json: bool = False
    debug: bool = False


def _remember(context: click.Context, option: click.Parameter, value: object) -> None:
    if value not in (None, False):
        setattr(context.ensure_object(Asked), str(option.name), value)


def _common_options() -> list[click.Parameter]:
    def option(*words: str, **settings: Any) -> click.Option:
        return click.Option(words, expose_value=False, callback=_remember, **settings)

    return [
        option(
            "--config",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Read settings from this TOML file and FILE.d/*.toml.",
        ),
        option("--connect", metavar="URI", help="Connect to this libvirt."),
        option("--json", "as_json", is_flag=True, help="Print one JSON document."),
        option("--debug", is_flag=True, help="Show where an error comes from."),
    ]


class Verb(click.Command):
    """A verb, with an example below its help."""

    def __init__(self, *args: Any, example: str = "", **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.params.extend(_common_options())
        self.example = example

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.example:
            with formatter.section("Example"):
                for line in self.example.splitlines():
                    formatter.write_text(line)


class Verbs(click.Group):
    """Verbs below a name, each loaded when it is needed: `places` is name -> (module:command, help)."""

    command_class = Verb

    def __init__(self, *args: Any, places: Mapping[str, tuple[str, str]], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.params.extend(_common_options())
        self.places = places

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.places:
            return None
        module, _, name = self.places[cmd_name][0].partition(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)  # noqa: S101 - the table is ours
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, words) for name, (_, words) in self.places.items()])


def verb(name: str, *, example: str) -> Callable[[Callable[..., Any]], Verb]:
    """Make a verb of a function that takes what was `Asked`, and returns an exit code."""

    def make(function: Callable[..., Any]) -> Verb:
        command = click.command(name, cls=Verb, example=example)(click.pass_obj(function))
        assert isinstance(command, Verb)  # noqa: S101 - made so
        return command

    return make
