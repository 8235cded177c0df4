"""Evaluates formulas in parameter values: ``GREATEST({DBInstanceVCPU*2},8)``.

The sandbox models what RDS does, so it does not use the product's own parser (``parameters.formulas``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final

from rdsrepl.sandbox.api.types import DEFAULT_PORT

# Operators are allowed inside and outside of the braces: {DBInstanceVCPU*2}, {DBInstanceVCPU}*2.
_TOKEN: Final = re.compile(r"\s*(?:(\d+(?:\.\d+)?|\.\d+)|([A-Za-z]+)|(\$?\{)|(.))", re.DOTALL)
_NAMES: Final = ("DBInstanceClassMemory", "DBInstanceVCPU", "EndPointPort")
_MAX_DEPTH: Final = 20


def is_formula(value: str) -> bool:
    """Return whether a value is a formula: it contains a variable or a function call."""
    return bool(re.search(r"\{|^\s*(?:GREATEST|LEAST|SUM)\s*\(", value))


def evaluate(formula: str, vcpu: int, memory_bytes: int) -> str:
    """Return the value of a formula for an instance class; a value that is not a formula is returned unchanged.

    Fractions are kept until the end; the result is truncated to a whole number.

    Raises:
        ValueError: the formula is not valid.
    """
    if not is_formula(formula):
        return formula
    values = dict(zip(_NAMES, (memory_bytes, vcpu, DEFAULT_PORT), strict=True))
    try:
        return str(math.trunc(_Parser(formula, values).value()))
    except (ZeroDivisionError, OverflowError) as exc:
        raise ValueError(f"{formula}: {exc}") from None


class _Parser:
    """A recursive descent parser that evaluates while it parses."""

    def __init__(self, text: str, values: Mapping[str, float]) -> None:
        self._text = text
        self._values = values
        self._tokens = [match.group().strip() for match in _TOKEN.finditer(text)]
        self._tokens = [token for token in self._tokens if token]
        self._at = 0
        self._depth = 0

    def value(self) -> float:
        result = self._sum()
        if self._at < len(self._tokens):
            raise self._wrong()
        return result

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def _expect(self, token: str) -> None:
        if self._next() != token:
            raise self._wrong()

    def _wrong(self) -> ValueError:
        return ValueError(f"{self._text}: not a valid formula")

    def _sum(self) -> float:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._wrong()
        result = self._product()
        while self._peek() in ("+", "-"):
            result = result + self._product() if self._next() == "+" else result - self._product()
        self._depth -= 1
        return result

    def _product(self) -> float:
        result = self._one()
        while self._peek() in ("*", "/"):
            result = result * self._one() if self._next() == "*" else result / self._one()
        return result

    def _one(self) -> float:
        token = self._next()
        if token == "-":
            return -self._number(self._next())
        if token in ("{", "${", "("):
            result = self._sum()
            self._expect(")" if token == "(" else "}")
            return result
        if token in self._values:
            return self._values[token]
        if token.upper() in ("GREATEST", "LEAST", "SUM", "LOG"):
            return self._call(token.upper())
        return self._number(token)

    def _number(self, token: str) -> float:
        if not re.fullmatch(r"[\d.]+", token):
            raise self._wrong()
        return int(token) if token.isdigit() else float(token)

    def _call(self, name: str) -> float:
        self._expect("(")
        arguments = [self._sum()]
        while self._peek() == ",":
            self._next()
            arguments.append(self._sum())
        self._expect(")")
        if name == "LOG":
            # Negative for a class with less memory than the divisor; the formula bounds it with GREATEST.
            return math.log2(arguments[0])
        if name == "GREATEST":
            return max(arguments)
        return min(arguments) if name == "LEAST" else sum(arguments)
