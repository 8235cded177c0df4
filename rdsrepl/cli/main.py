"""Define the root command, and turn every error into a message and an exit code."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from itertools import pairwise
from typing import Any, Final

import typer

from rdsrepl import __version__
from rdsrepl.cli import completion, lazy_commands, standard_streams, usage_errors
from rdsrepl.cli.command_classes import CommandGroup
from rdsrepl.cli.context import GlobalOptions, LogFormat, add_global_options, global_options, keep_words
from rdsrepl.cli.hints import hint_of
from rdsrepl.cli.options import root_options
from rdsrepl.errors import Error, ExitCode, Interrupted, OutputClosed, SinkFailed
from rdsrepl.render import Format, log, write_object, write_traceback
from rdsrepl.text.escapes import shown
from rdsrepl.text.masking import mask

_NAGIOS_UNKNOWN = 3
# The function and the class of each command of the root, and the module of each noun, in the order of the help.
_COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "apply": ("apply_plan:apply_plan", "command_classes:ApplyCommand"),
    "iam-policy": ("iam_policy:iam_policy", "command_classes:ServerReadCommand"),
    "psql": ("psql:psql", "psql:PsqlCommand"),
    "verify": ("verify:verify", "command_classes:WriteCommand"),
    "doctor": ("doctor:doctor", "command_classes:ReadCommand"),
    "demo": ("demo:demo", "command_classes:LocalCommand"),
    "completion": ("completion_script:completion", "command_classes:LocalCommand"),
    "help": ("help:help_", "command_classes:LocalCommand"),
}
_NOUNS: Final = {
    "param-group": "param_group",
    "cluster": "cluster",
    "instance": "instance",
    "slot": "slot.commands",
    "snapshot": "snapshot.commands",
    "failover": "failover.commands",
    "publication": "publication",
    "role": "role",
    "stream": "stream",
    "runbook": "runbook",
    "config": "config",
    "sandbox": "sandbox",
}


def _noun(name: str) -> Any:
    return lazy_commands.noun(name, f"rdsrepl.cli.{_NOUNS[name]}", CommandGroup)


def _command(name: str) -> Any:
    function, cls = _COMMANDS[name]
    return lazy_commands.command(name, _imported(function), _imported(cls))


def _imported(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(f"rdsrepl.cli.{module}"), name)


class Root(CommandGroup):
    """The root command: takes the global options, and reports every error."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params = [*self.params, *root_options()]
        self.commands: Any = lazy_commands.Commands(
            {name: partial(_command, name) for name in _COMMANDS} | {name: partial(_noun, name) for name in _NOUNS}
        )
        self._is_plugin = False

    def get_params(self, ctx: Any) -> list[Any]:
        """Return all parameters; those of Typer for completion work as before, but ``completion`` is the way."""
        parameters = super().get_params(ctx)
        for parameter in parameters:
            if parameter.name in ("install_completion", "show_completion"):
                parameter.hidden = True
        return parameters

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remove the global options from what the root's function receives, and keep them in the context."""
        keep_words(ctx, args)
        rest = super().parse_args(ctx, args)
        add_global_options(ctx, {str(option.name): ctx.params.pop(option.name, None) for option in root_options()})
        return rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; report an error on stderr and exit with its code."""
        if not gc.isenabled():
            gc.freeze()
            gc.enable()
        try:
            return super().invoke(ctx)
        except (Error, KeyboardInterrupt) as exc:
            error = exc if isinstance(exc, Error) else Interrupted("interrupted")
            error.hint = hint_of(ctx, error)
            options = global_options(ctx)
            if options.verbose >= 2:
                write_traceback(exc)
            show_error(error, options)
            if self._is_plugin:
                raise _Unknown(error.message) from exc
            raise typer.Exit(error.exit_code) from exc

    def main(self, args: Any = None, *rest: Any, **extra: Any) -> Any:
        """Run the program; with ``-o json``, report a usage error as an object on stderr as well."""
        words = sys.argv[1:] if args is None else list(args)
        try:
            try:
                return self._main(words, *rest, **extra)
            finally:
                sys.stdout.flush()
        except Error as exc:  # of the command line, of the help, and of what was still in the buffer
            show_error(exc, GlobalOptions(output=Format.json if _wants_json(words) else Format.table))
            sys.exit(exc.exit_code)
        except Exception as exc:
            if extra.get("standalone_mode") is False:
                raise
            # A defect in rdsrepl. Python's own traceback would show the secrets in messages.
            write_traceback(exc)
            if _wants_json(words):
                message = f"{type(exc).__name__}: {exc}"
                write_object(
                    {"error": "internal_error", "message": message, "hint": None, "exit_code": ExitCode.FAILED}
                )
            sys.exit(ExitCode.FAILED)

    def _main(self, words: list[str], *rest: Any, **extra: Any) -> Any:
        if os.environ.get(completion.VARIABLE, "").startswith("complete_"):
            completion.run(lambda: super(Root, self).main(words, *rest, **extra))
        if "--no-color" in words:
            # Typer prints help and usage errors before it parses this option.
            os.environ["NO_COLOR"] = "1"
        self._is_plugin = "--nagios" in words and extra.get("standalone_mode") is not False
        if self._is_plugin:
            sys.exit(_plugin(lambda: super(Root, self).main(words, *rest, **{**extra, "standalone_mode": False})))
        if extra.get("standalone_mode") is False:
            return super().main(words, *rest, **extra)
        try:
            code = super().main(words, *rest, **{**extra, "standalone_mode": False})
        except typer.TyperException as exc:
            if usage_errors.show_help(exc):
                sys.exit(exc.exit_code)
            raise usage_errors.refused(exc) from None
        except typer.Abort:
            sys.exit(ExitCode.FAILED)
        sys.exit(code if isinstance(code, int) else 0)


class _Unknown(Exception):
    """A monitoring plugin could not determine the state."""


def _plugin(run: Callable[[], Any]) -> int:
    """Run a command as a monitoring plugin: every failure is UNKNOWN, one line on stdout and exit code 3.

    Nagios takes 1 and 2 for WARNING and CRITICAL: a wrong option or a traceback must not exit with these.
    """
    try:
        code = run()
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except typer.TyperException as exc:  # a usage error
        reason = exc.format_message() or "missing command"
    except typer.Abort:
        reason = "interrupted"
    except (OutputClosed, SinkFailed) as exc:
        show_error(exc, GlobalOptions())
        return _NAGIOS_UNKNOWN
    except (Error, _Unknown) as exc:  # an Error: in the options in front of the noun
        reason = str(exc)
    except Exception as exc:  # noqa: BLE001 - a defect in rdsrepl is not a finding about the slots
        write_traceback(exc)
        reason = f"{type(exc).__name__}: {exc}"
    try:
        sys.stdout.write(f"SLOTS UNKNOWN - {shown(' '.join(mask(reason).replace('|', '/').split()))}\n")
        sys.stdout.flush()
    except (OutputClosed, SinkFailed) as exc:
        show_error(exc, GlobalOptions())
    return _NAGIOS_UNKNOWN


def show_error(exc: Error, options: GlobalOptions) -> None:
    """Print an error and its remedy to stderr; with ``-o json``, one JSON object.

    A reader that closed standard output, as ``head`` does, is no error for a person.
    """
    if isinstance(exc, (OutputClosed, SinkFailed)):
        standard_streams.discard()
    if isinstance(exc, OutputClosed):
        return
    if isinstance(exc, Interrupted) and sys.stderr.isatty():
        from rdsrepl.cli.progress import updates_in_place

        # The terminal has written ^C. An object for a program stands on a line of its own.
        is_text = options.log_format is LogFormat.text and options.output is not Format.json
        sys.stderr.write("\r\x1b[K" if is_text and updates_in_place() else "\n")
    if options.log_format is LogFormat.json:
        log("error", exc.message, event="error", **{k: v for k, v in exc.document().items() if k != "message"})
        return
    if options.output is Format.json:
        write_object(exc.document())
        return
    from rdsrepl.render import console, print_message

    out = console(sys.stderr)
    request = f", request {exc.request_id}" if exc.request_id else ""
    code = f" [{exc.aws_code or exc.sqlstate}{request}]" if exc.aws_code or exc.sqlstate else ""
    out.print(f"error: {exc.message}{code}", style=None if options.no_color else "bold red")
    for name in ("done", "not_done", "differs"):
        for item in getattr(exc, name, ()):
            out.print(f"  {name.replace('_', ' ')}: {item}")
    if exc.hint:
        print_message(f"hint: {exc.hint}")


def _wants_json(words: list[str]) -> bool:
    """Say whether a command line that could not be parsed asks for JSON; the last ``--output`` counts."""
    output = os.environ.get("RDSREPL_OUTPUT")
    for word, following in pairwise([*words, ""]):
        if match := re.fullmatch(r"(?:--output=?|-[vq]*o)(.*)", word):
            output = match[1] or following
    return output is not None and output.lower() == "json"


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"rdsrepl {__version__}\n")
        raise typer.Exit


app = typer.Typer(
    cls=Root,
    name="rdsrepl",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version.", show_default=False
    ),
) -> None:
    """Operate PostgreSQL logical replication on Amazon RDS, Aurora, and any PostgreSQL 13 or later.

    Every change is shown as a plan first: --dry-run shows the plan only, --yes applies it without asking.
    """
