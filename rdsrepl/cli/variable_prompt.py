"""Ask on the terminal for the variables of a runbook that the command line does not set."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import typer

from rdsrepl.cli import completion
from rdsrepl.cli.console import note, warn
from rdsrepl.errors import BadValue, Interrupted
from rdsrepl.render import line_for_person

if TYPE_CHECKING:
    from rdsrepl.runbooks.model import Runbook
    from rdsrepl.runbooks.variables import Variable

_Completer = Callable[[Any], list[str]]
# What Tab completes, by the name of a variable and else by its type.
_BY_NAME: Final[Mapping[str, _Completer]] = {
    "publication": completion.complete_publication,
    "role": completion.complete_role,
    "group": completion.complete_param_group,
}
_BY_TYPE: Final[Mapping[str, _Completer]] = {
    "slot": completion.complete_slot,
    "stream": completion.complete_stream,
    "target": lambda _: completion.complete_target(),
}


def ask_missing(ctx: typer.Context, runbook: Runbook, given: Mapping[str, str]) -> dict[str, str]:
    """Return the given values and those that the user types for the required variables; a wrong value is asked again.

    At the end of the input, the remaining variables stay missing.

    Raises:
        Interrupted: Ctrl-C; nothing was changed.
    """
    from rdsrepl.runbooks.variables import check_value

    values = dict(given)
    missing = [variable for variable in runbook.variables if variable.required and variable.name not in values]
    if missing:
        note(ctx, f"runbook {runbook.name} needs {', '.join(variable.name for variable in missing)}; Ctrl-C stops")
    for variable in missing:
        while variable.name not in values:
            try:
                values[variable.name] = check_value(variable, _answer(ctx, variable).strip())
            except BadValue as exc:
                warn(ctx, f"{exc.message}; {exc.hint}")
            except EOFError:
                sys.stderr.write("\n")
                return values
            except KeyboardInterrupt:
                sys.stderr.write("\n")  # the terminal shows ^C after the question
                raise Interrupted(f"interrupted; runbook {runbook.name} did not start, nothing was changed") from None
    return values


def _answer(ctx: typer.Context, variable: Variable) -> str:
    prompt = line_for_person(f"{variable.name} ({variable.help}): ")
    with _completion(ctx, variable) as has_readline:
        if has_readline:
            return input(prompt)
    sys.stderr.write(prompt)
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


@contextmanager
def _completion(ctx: typer.Context, variable: Variable) -> Iterator[bool]:
    """Have Tab complete the names that the variable can have; yield whether readline can be used."""
    try:
        import readline
    except ImportError:
        yield False
        return
    if not sys.stdout.isatty():  # readline writes the question to stdout
        yield False
        return
    complete = _BY_NAME.get(variable.name) or _BY_TYPE.get(variable.type)
    names: list[str] | None = None

    def candidate(text: str, state: int) -> str | None:
        nonlocal names
        if names is None:
            names = _names(ctx, complete) if complete is not None else []
        found = [name for name in names if name.startswith(text)]
        return found[state] if state < len(found) else None

    readline.set_auto_history(False)
    readline.set_completer_delims("\n")
    readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")
    readline.set_completer(candidate)
    try:
        yield True
    finally:
        readline.set_completer(None)


def _names(ctx: typer.Context, complete: _Completer) -> list[str]:
    """Return the names from the server; empty when it does not answer."""
    # Completion expands variables in the options of the context, for the rest of the process.
    root = ctx.find_root()
    kept = root.obj, ctx.obj
    try:
        return complete(ctx)
    except Exception:  # noqa: BLE001 - completion prints no errors
        return []
    finally:
        root.obj, ctx.obj = kept
