"""Compare two parameter groups, or a group and a running server. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rdsrepl.aws.parameter_groups import Parameter
from rdsrepl.parameters import formulas
from rdsrepl.parameters.instance_classes import Hardware
from rdsrepl.postgres.settings import Setting
from rdsrepl.units import parse_boolean


@dataclass(frozen=True, slots=True)
class Difference:
    """A parameter whose values differ.

    Attributes:
        left: the value in the group.
        right: the value in the other group, or on the server.
        note: an explanation, such as a pending reboot.
    """

    name: str
    left: str | None
    right: str | None
    apply_type: str
    note: str = ""


def groups(left: Mapping[str, Parameter], right: Mapping[str, Parameter]) -> list[Difference]:
    """Compare two groups' parameters by name."""
    return [
        Difference(name, _value(left, name), _value(right, name), (left.get(name) or right[name]).apply_type)
        for name in sorted({*left, *right})
        if _value(left, name) != _value(right, name)
    ]


def server(
    group: Mapping[str, Parameter], running: Mapping[str, Setting], hardware: Hardware | None, *, pending_reboot: bool
) -> list[Difference]:
    """Compare a group with a running server; formulas that cannot be evaluated are skipped.

    Args:
        group: the group's parameters.
        running: the server's settings, from ``pg_settings``, in the same units as RDS.
        hardware: vCPU and memory of the instance class.
        pending_reboot: whether RDS reports a pending reboot.
    """
    differences = []
    for name, parameter in sorted(group.items()):
        if name not in running or parameter.value is None:
            continue
        wanted, has = _plain(parameter.value, hardware), _plain(running[name].setting, None)
        if wanted is None or wanted == has:
            continue
        waits = running[name].pending_restart or (pending_reboot and parameter.apply_type == "static")
        note = "pending reboot" if waits else ""
        differences.append(Difference(name, parameter.value, running[name].setting, parameter.apply_type, note))
    return differences


def _value(parameters: Mapping[str, Parameter], name: str) -> str | None:
    return parameters[name].value if name in parameters else None


def _plain(value: str, hardware: Hardware | None) -> str | None:
    """Return a value in comparable form: booleans as 1 and 0, formulas evaluated; None where unknown."""
    if (boolean := parse_boolean(value)) is not None:
        return str(int(boolean))
    if formulas.is_formula(value):
        number = formulas.read(value, hardware)
        return None if number is None else str(number)
    return value
