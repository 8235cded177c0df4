"""The options and arguments of the parser: faster than Typer's, with errors that quote the value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperArgument, TyperOption

from rdsrepl.cli.option_values import UNKNOWN, converted
from rdsrepl.render import line_for_person


class _Option(TyperOption):
    """An option whose errors quote the value."""

    def process_value(self, ctx: Any, value: Any) -> Any:
        """Convert the value, unless the shell completes the line."""
        return _process(self, ctx, value, super().process_value)

    def get_missing_message(self, ctx: Any) -> str:  # noqa: ARG002 - the signature is that of Typer
        """Return what could be given, in one line."""
        return _choices(self)


class _Argument(TyperArgument):
    """An argument whose errors quote the value."""

    def process_value(self, ctx: Any, value: Any) -> Any:
        """Convert the value, unless the shell completes the line."""
        return _process(self, ctx, value, super().process_value)

    def get_missing_message(self, ctx: Any) -> str:  # noqa: ARG002 - the signature is that of Typer
        """Return what could be given, in one line."""
        return _choices(self)

    def display_type_rich(self, ctx: Any) -> str | None:
        """Return the choices for the help page; the name of a Python type, such as ``list[str]``, says nothing."""
        return super().display_type_rich(ctx) if self.type_descriptor.choices else None


def _choices(option: Any) -> str:
    choices = option.type_descriptor.choices or ()
    return f"Choose from {', '.join(str(getattr(one, 'value', one)) for one in choices)}" if choices else ""


def _process(option: Any, ctx: Any, value: Any, by_typer: Callable[[Any, Any], Any]) -> Any:
    """Convert a value, and call the callback of its option; while the shell completes a line, values stay text."""
    if ctx.resilient_parsing:
        return value
    result = UNKNOWN if getattr(option, "prompt", None) else converted(option, value)
    if result is UNKNOWN or (option.required and option.value_is_missing(result)):
        with plain_refusal():
            return by_typer(ctx, value)
    return result if option.callback is None else option.callback(ctx, option, result)


@contextmanager
def plain_refusal() -> Iterator[None]:
    """Replace pydantic's text of a refused value ("Value error, …", "Input should be …") with one that quotes it."""
    try:
        yield
    except typer.BadParameter as exc:
        errors = getattr(exc.__cause__, "errors", None)
        if errors is not None:
            exc.message = line_for_person(_refusal(errors()[0]))
        raise


def _refusal(error: Any) -> str:
    """Return why pydantic refused a value, from an item of ``ValidationError.errors()``."""
    value, limits = error["input"], error.get("ctx", {})
    if error["type"] == "value_error":
        return str(limits["error"])
    if error["type"] == "greater_than_equal":
        return f"{value} is less than {limits['ge']}"
    if error["type"] == "less_than_equal":
        return f"{value} is more than {limits['le']}"
    return f"{value!r} is not a {'whole number' if error['type'].startswith('int') else 'valid value'}"


def simplify(option: Any) -> Any:
    """Return Typer's option, faster, with shorter help, and with the values of an enumeration in any case."""
    if type(option) is TyperArgument:
        option.__class__ = _Argument
    if isinstance(option, (TyperArgument, TyperOption)):
        option.type_descriptor.parameter_info.case_sensitive = False
    if not isinstance(option, TyperOption):
        return option
    if option.is_flag or option.count:
        option.metavar = ""
    if option.metavar == "DURATION" and isinstance(option.default, float):
        option.default = f"{option.default:g}s"
    option.__class__ = _Option
    return option
