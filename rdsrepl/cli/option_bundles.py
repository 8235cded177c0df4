"""Options that commands receive in dataclasses, so that several commands share them and each is declared once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints


def with_bundles(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command as Typer takes it: each parameter that is a dataclass becomes the options that it declares."""
    bundles: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if not is_dataclass(parameter.annotation):
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY))
            continue
        bundles[parameter.name] = parameter.annotation
        types = get_type_hints(parameter.annotation, include_extras=True)
        parameters += [
            inspect.Parameter(
                one.name,
                parameter.KEYWORD_ONLY,
                default=parameter.empty if one.default is MISSING else one.default,
                annotation=types[one.name],
            )
            for one in fields(parameter.annotation)
        ]

    @functools.wraps(command)
    def receive(**given: Any) -> None:
        values = {
            name: bundle(**{one.name: given.pop(one.name) for one in fields(bundle)})
            for name, bundle in bundles.items()
        }
        command(**given, **values)

    receive.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    receive.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return receive


def flag_name(option: str) -> str:
    """Return an option as it is written on the command line."""
    return "--" + option.replace("_", "-")


def given_options(bundle: Any) -> dict[str, Any]:
    """Return the options of a bundle that were given, by their names."""
    values = {one.name: getattr(bundle, one.name) for one in fields(bundle)}
    return {name: value for name, value in values.items() if value is not None and value is not False}
