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
    no_agent: bool = False


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
        option("--no-agent", is_flag=True, help="Do it in this process, also when the agent runs."),
    ]


class Verb(click.Command):
    """A verb, with an example below its help; one that is an operation of the agent's too is asked of it if it runs."""

    def __init__(self, *args: Any, example: str = "", operation: str = "", **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.params.extend(_common_options())
        self.example = example
        self.operation = operation

    def invoke(self, ctx: click.Context) -> Any:
        if self.operation:
            from hostagent.cli.through_agent import done_by_agent  # noqa: PLC0415 - not needed for --help

            code = done_by_agent(ctx.ensure_object(Asked), self.operation, ctx.params)
            if code is not None:
                return code
        return super().invoke(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.example:
            with formatter.section("Example"):
                for line in self.example.splitlines():
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")  # to be pasted: never on two lines


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


def verb(name: str, *, example: str, operation: str = "") -> Callable[[Callable[..., Any]], Verb]:
    """Make a verb of a function that takes what was `Asked`, and returns an exit code.

    `operation`: the agent's that does the same.
    """

    def make(function: Callable[..., Any]) -> Verb:
        command = click.command(name, cls=Verb, example=example, operation=operation)(click.pass_obj(function))
        assert isinstance(command, Verb)  # noqa: S101 - made so
        return command

    return make
