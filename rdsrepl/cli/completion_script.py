"""``rdsrepl completion``: print the script that a shell needs to complete commands and names."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from rdsrepl.cli.completion import VARIABLE
from rdsrepl.cli.context import global_options
from rdsrepl.render import emit

# zsh calls the file of an fpath directory for the first completion; it also reads the text with `source`.
_ZSH_FIRST_CALL = 'if [ "$funcstack[1]" = "_rdsrepl" ]; then\n  _rdsrepl_completion "$@"\nfi\n'


class Shell(StrEnum):
    """The shells with a completion script."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def completion(
    ctx: typer.Context,
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="The shell: bash, zsh or fish.")],
) -> None:
    """Print the completion script of a shell.

    bash: add to ~/.bashrc: source <(rdsrepl completion bash)

    zsh: add to ~/.zshrc, after compinit: source <(rdsrepl completion zsh)

    fish: rdsrepl completion fish > ~/.config/fish/completions/rdsrepl.fish

    Example: rdsrepl completion bash
    """
    output = global_options(ctx).output
    if not output.is_table:
        emit({"shell": shell, "script": script(shell)}, output, lambda: "")
        return
    sys.stdout.write(script(shell))


def script(shell: Shell) -> str:
    """Return the script of a shell; it asks the program for completions."""
    import typer.completion

    text: str = typer.completion.get_completion_script(  # type: ignore[attr-defined]
        prog_name="rdsrepl", complete_var=VARIABLE, shell=shell.value
    )
    return text.strip() + "\n" + (_ZSH_FIRST_CALL if shell is Shell.zsh else "")
