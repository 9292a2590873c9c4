"""Prints what a shell needs to complete hostagent's words: python -m dist.tools.completion bash|zsh|fish

click's own scripts: at each Tab they ask `hostagent` itself, which knows its verbs and their options.
"""

import sys

from click.shell_completion import get_completion_class

from hostagent.cli import main

SHELLS = ("bash", "zsh", "fish")


def script(shell: str) -> str:
    """What that shell reads; ValueError when click does not know it."""
    made = get_completion_class(shell)
    if made is None:
        raise ValueError(f"expected one of {', '.join(SHELLS)}, found {shell!r}")
    completion = made(main, {}, "hostagent", "_HOSTAGENT_COMPLETE")
    return completion.source_template % completion.source_vars()  # source() would first ask this machine's bash


if __name__ == "__main__":
    print(script(sys.argv[1]))
