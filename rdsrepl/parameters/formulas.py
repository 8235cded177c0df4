"""Read and evaluate the parameter formulas of RDS: ``GREATEST({DBInstanceVCPU*2},8)``.

The grammar is that of the user guide ("Specifying DB parameters"): whole numbers, variables in braces (Aurora writes
``$`` before the brace), ``*`` and ``/``, the functions GREATEST, LEAST and SUM, and ``log``, to base 2. Arithmetic is
on whole numbers, from left to right, and a quotient is truncated; a logarithm keeps its fraction until the end.

A formula that the user types must follow it (``evaluate``, ``variables``). AWS also prints defaults without braces:
``GREATEST($DBInstanceVCPU/2,8)``, ``SUM(DBInstanceClassMemory/12038,-50003)``; ``read`` and ``raise_floor`` accept
those as well. A value that is not readable is unknown.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from rdsrepl.errors import BadValue
from rdsrepl.parameters.instance_classes import Hardware

# AllocatedStorage, EndPointPort and TrueIfReplica are valid names whose values the instance class does not give.
VARIABLES: Final = frozenset({"AllocatedStorage", "DBInstanceClassMemory", "DBInstanceVCPU", "EndPointPort"}) | {
    "TrueIfReplica"
}
_Quantity = int | float | Fraction
_FUNCTIONS: Final[Mapping[str, Callable[[Sequence[_Quantity]], _Quantity]]] = {
    "GREATEST": max,
    "LEAST": min,
    "SUM": sum,
    "LOG": lambda values: math.log2(values[0]),
}
_TOKEN: Final = re.compile(r"\s*(?:(?P<number>[0-9]+)|(?P<word>[A-Za-z]\w*)|(?P<sign>\$\{|[{}(),*/$-]))")
_MARKS: Final = re.compile(rf"[{{$]|\b(?:{'|'.join(VARIABLES)})\b|\b(?:GREATEST|LEAST|SUM|LOG|IF)\s*\(", re.IGNORECASE)
# A longer or deeper formula is a mistake; those of AWS have two levels.
_MAX_LENGTH: Final = 1000
_MAX_DEPTH: Final = 30
_HINT: Final = "a formula looks like GREATEST({DBInstanceVCPU*2},8): braces around variables, * and /, and " + (
    "GREATEST, LEAST, SUM, log"
)


@dataclass(frozen=True, slots=True)
class _Number:
    value: int


@dataclass(frozen=True, slots=True)
class _Variable:
    name: str


@dataclass(frozen=True, slots=True)
class _Chain:
    first: _Node
    rest: tuple[tuple[str, _Node], ...]


@dataclass(frozen=True, slots=True)
class _Call:
    function: str
    arguments: tuple[_Node, ...]
    spans: tuple[tuple[int, int], ...]


_Node = _Number | _Variable | _Chain | _Call


def evaluate(text: str, hardware: Hardware | None) -> int | None:
    """Evaluate a formula, or a plain number, for an instance class.

    Args:
        text: the parameter's value.
        hardware: vCPU and memory of the class; None where the class is unknown.

    Returns:
        None where it uses an unknown variable.

    Raises:
        BadValue: TEXT is not a formula.
    """
    return _whole(_parse(text), hardware, text)


def read(text: str, hardware: Hardware | None) -> int | None:
    """Evaluate a parameter's value, as AWS reports it, for an instance class.

    Args:
        text: the value: a number, or a formula in any spelling.
        hardware: vCPU and memory of the class; None where the class is unknown.

    Returns:
        None where it is not readable, or uses an unknown variable.
    """
    try:
        return _whole(_parse(text, printed=True), hardware, text)
    except BadValue:
        return None


def is_readable(text: str) -> bool:
    """Return whether a value that AWS reports is a number or a readable formula."""
    try:
        _whole(_parse(text, printed=True), None, text)
    except BadValue:
        return False
    return True


def is_formula(text: str) -> bool:
    """Return whether a value that AWS reports is a formula, readable or not."""
    return _MARKS.search(text) is not None


def variables(text: str) -> frozenset[str]:
    """Return the variables of a formula; a plain number has none.

    Raises:
        BadValue: TEXT is not a formula.
    """
    return frozenset(_names(_parse(text)))


def raise_floor(text: str, floor: int) -> str:
    """Return a formula that is TEXT, but never below FLOOR; braces are added where AWS printed none.

    A number in an existing GREATEST is replaced: ``GREATEST({DBInstanceVCPU*2},8)`` with a floor of 20 is
    ``GREATEST({DBInstanceVCPU*2},20)``.

    Raises:
        BadValue: TEXT is not a formula.
    """
    try:
        node = _parse(text)
    except BadValue:
        text = _spelled(_parse(text, printed=True))
        node = _parse(text)
    if isinstance(node, _Call) and node.function == "GREATEST":
        for argument, (start, end) in zip(node.arguments, node.spans, strict=True):
            if isinstance(argument, _Number):
                return f"{text[:start]}{max(floor, argument.value)}{text[end:]}"
        return f"{text.rstrip()[:-1]},{floor})"
    return f"GREATEST({text.strip()},{floor})"


def _parse(text: str, *, printed: bool = False) -> _Node:
    return _Parser(text, printed=printed).parse()


def _spelled(node: _Node, *, inside: bool = False) -> str:
    """Return a formula as the user guide writes it: only variables are in braces."""
    if isinstance(node, _Number):
        return str(node.value)
    if isinstance(node, _Call) and node.function != "LOG":
        return f"{node.function}({','.join(map(_spelled, node.arguments))})"
    if isinstance(node, _Variable):
        text = node.name
    elif isinstance(node, _Call):
        text = f"log({_spelled(node.arguments[0], inside=True)})"
    else:
        rest = (f"{sign}{_spelled(operand, inside=True)}" for sign, operand in node.rest)
        text = "".join([_spelled(node.first, inside=True), *rest])
    return text if inside or not any(_names(node)) else f"{{{text}}}"


def _whole(node: _Node, hardware: Hardware | None, text: str) -> int | None:
    known = (
        {} if hardware is None else {"DBInstanceVCPU": hardware.vcpu, "DBInstanceClassMemory": hardware.memory_bytes}
    )
    try:
        value = _value(node, known, text)
        return None if value is None else math.trunc(value)
    except (ValueError, OverflowError):
        raise BadValue(f"{text!r} has no value", hint=_HINT) from None


def _names(node: _Node) -> Iterator[str]:
    if isinstance(node, _Variable):
        yield node.name
    elif isinstance(node, _Call):
        for argument in node.arguments:
            yield from _names(argument)
    elif isinstance(node, _Chain):
        for part in (node.first, *(operand for _, operand in node.rest)):
            yield from _names(part)


def _value(node: _Node, known: Mapping[str, int], text: str, *, exact: bool = False) -> _Quantity | None:
    if isinstance(node, _Number):
        return node.value
    if isinstance(node, _Variable):
        return known.get(node.name)
    if isinstance(node, _Call):
        exact = exact or node.function == "LOG"
        return _applied(node.function, [_value(argument, known, text, exact=exact) for argument in node.arguments])
    value = _value(node.first, known, text, exact=exact)
    for sign, operand in node.rest:
        right = _value(operand, known, text, exact=exact)
        if sign == "/" and right == 0:
            raise BadValue(f"{text!r} divides by zero", hint=_HINT)
        if value is not None:
            value = None if right is None else value * right if sign == "*" else _quotient(value, right, exact=exact)
    return value


def _applied(function: str, values: Sequence[_Quantity | None]) -> _Quantity | None:
    given = [value for value in values if value is not None]
    return _FUNCTIONS[function](given) if len(given) == len(values) else None


def _quotient(dividend: _Quantity, divisor: _Quantity, *, exact: bool) -> _Quantity:
    if exact or not isinstance(dividend, int) or not isinstance(divisor, int):
        whole = isinstance(dividend, int) and isinstance(divisor, int)
        return Fraction(dividend) / Fraction(divisor) if whole else float(dividend) / float(divisor)
    # Truncate toward zero; Python's // rounds down.
    quotient = abs(dividend) // abs(divisor)
    return quotient if (dividend < 0) == (divisor < 0) else -quotient


class _Parser:
    """Reads a formula by recursive descent."""

    def __init__(self, text: str, *, printed: bool) -> None:
        self._text = text
        self._printed = printed
        self._position = 0
        self._braces = 0
        self._depth = 0

    def parse(self) -> _Node:
        """Read the whole text."""
        if len(self._text) > _MAX_LENGTH:
            raise BadValue(f"the formula is too long: {len(self._text)} characters", hint=_HINT)
        node = self._chain()
        if self._text[self._position :].strip():
            raise self._malformed()
        return node

    def _chain(self) -> _Node:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._malformed()
        first = self._atom()
        rest: list[tuple[str, _Node]] = []
        while sign := self._take("*", "/"):
            rest.append((sign, self._atom()))
        self._depth -= 1
        return _Chain(first, tuple(rest)) if rest else first

    def _atom(self) -> _Node:
        if self._take("{", "${"):
            self._braces += 1
            node = self._chain()
            self._require("}")
            self._braces -= 1
            return node
        if self._printed and self._take("$"):
            self._braces += 1
            node = self._variable()
            self._braces -= 1
            return node
        sign = -1 if self._take("-") else 1
        match = _TOKEN.match(self._text, self._position)
        if match is None:
            raise self._malformed()
        if match["number"]:
            self._position = match.end()
            return _Number(sign * int(match["number"]))
        word = match["word"]
        if word and sign == 1:
            if word.upper() in _FUNCTIONS:
                self._position = match.end()
                return self._call(word.upper())
            return self._variable()
        raise self._malformed()

    def _variable(self) -> _Variable:
        match = _TOKEN.match(self._text, self._position)
        if match is None or match["word"] not in VARIABLES or not (self._braces or self._printed):
            raise self._malformed()
        self._position = match.end()
        return _Variable(match["word"])

    def _call(self, function: str) -> _Call:
        self._require("(")
        arguments, spans = [], []
        while True:
            start = self._position
            arguments.append(self._chain())
            spans.append((start, self._position))
            if not self._take(","):
                break
        self._require(")")
        if function == "LOG" and len(arguments) > 1:
            raise self._malformed()
        return _Call(function, tuple(arguments), tuple(spans))

    def _take(self, *signs: str) -> str | None:
        match = _TOKEN.match(self._text, self._position)
        if match is None or match["sign"] not in signs:
            return None
        self._position = match.end()
        return match["sign"]

    def _require(self, sign: str) -> None:
        if not self._take(sign):
            raise self._malformed()

    def _malformed(self) -> BadValue:
        rest = self._text[self._position :].strip()
        where = f" (at {rest[:20]!r})" if rest and rest != self._text.strip() else ""
        return BadValue(f"{self._text!r} is not a formula{where}", hint=_HINT)
