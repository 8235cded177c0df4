"""Signals: any role of the database can write one, so only exactly what this program writes is accepted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdsrepl.errors import BadValue
from rdsrepl.snapshot import requests
from rdsrepl.snapshot.requests import Control, Malformed, Request, Verb, encode, parse, table_text

_NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=15)
_REQUEST = Request("a1", "orders_cdc", ("public.orders", 'public."Odd.Name"'), "id > 5", 500, 1000, "orders-replica")


@given(st.lists(st.tuples(_NAMES, _NAMES), min_size=1, max_size=4, unique=True), st.none() | _NAMES)
def test_every_name_and_condition_comes_back(names: list[tuple[str, str]], where: str | None) -> None:
    request = Request(requests.new_id(), "s", tuple(table_text(*name) for name in names), where)
    assert parse(encode(request).encode("ascii")) == request
    assert request.table_names == tuple(names)


@pytest.mark.parametrize("verb", Verb)
def test_controls_come_back(verb: Verb) -> None:
    assert parse(encode(Control(verb, "a1", "s")).encode()) == Control(verb, "a1", "s")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", ""),
        ("id", "A"),
        ("id", "-a"),
        ("id", "a" * 64),
        ("id", "a\n"),
        ("id", 1),
        ("id", None),
        ("slot", "UPPER"),
        ("slot", "s; DROP"),
        ("slot", ["s"]),
        ("tables", []),
        ("tables", "public.orders"),
        ("tables", ["orders"]),
        ("tables", ["public.orders", "public.orders"]),
        ("tables", ["a.b.c"]),
        ("tables", ["Public.orders"]),
        ("tables", [' public."orders"']),
        ("tables", ['public."orders"']),
        ("tables", ['public."a\0b"']),
        ("tables", ['public."\ud800"']),
        ("tables", ["public." + "x" * 64]),
        ("tables", [f"public.t{number}" for number in range(1001)]),
        ("tables", [1]),
        ("where", ""),
        ("where", "a\0"),
        ("where", "\udfff"),
        ("where", "x" * 10_001),
        ("where", True),
        ("chunk_rows", 0),
        ("chunk_rows", -1),
        ("chunk_rows", 1_000_001),
        ("chunk_rows", "10"),
        ("chunk_rows", 10.0),
        ("chunk_rows", True),
        ("chunk_rows", None),
        ("rows_per_second", 0),
        ("rows_per_second", 10**10),
        ("read_from", "host=evil password=x"),
        ("read_from", "postgresql://evil/"),
        ("read_from", "../x"),
        ("read_from", ""),
        ("version", 2),
        ("version", "1"),
        ("version", True),
        ("verb", "drop"),
        ("verb", "Start"),
        ("verb", "__class__"),
        ("more", 1),
    ],
)
def test_a_value_outside_of_the_form_is_malformed(field: str, value: Any) -> None:
    fields = json.loads(encode(_REQUEST))
    assert parse(json.dumps(fields).encode()) == _REQUEST
    with pytest.raises(Malformed):
        parse(json.dumps({**fields, field: value}).encode())


def test_a_request_of_an_earlier_version_has_no_method() -> None:
    fields = json.loads(encode(_REQUEST))
    del fields["method"]
    assert parse(json.dumps(fields).encode()) == _REQUEST


@pytest.mark.parametrize("field", sorted(json.loads(encode(_REQUEST)).keys() - {"method"}))
def test_a_missing_field_is_malformed(field: str) -> None:
    fields = json.loads(encode(_REQUEST))
    del fields[field]
    with pytest.raises(Malformed, match=f"no {field}|version"):
        parse(json.dumps(fields).encode())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"{" * 100_000,
        b'{"version": 1, "verb": "pause", "id": "a", "slot": "s", "id": "b"}',
        b'{"version": 1, "verb": "pause", "id": "a", "slot": "s", "tables": []}',
        b'{"version": 1, "verb": "pause", "id": NaN, "slot": "s"}',
        b'{"version": ' + b"9" * 5000 + b', "verb": "pause", "id": "a", "slot": "s"}',
        b'{"version": 1, "verb": "pause", "id": "a", "slot": "s"}' + b" " * requests.MAX_BYTES,
    ],
)
def test_other_content_is_malformed(content: bytes) -> None:
    with pytest.raises(Malformed):
        parse(content)


@given(st.binary(max_size=200))
def test_any_content_is_a_signal_or_malformed(content: bytes) -> None:
    with pytest.raises(Malformed):
        parse(content)


def test_a_request_that_would_be_refused_is_not_written() -> None:
    with pytest.raises(BadValue, match="read_from is not valid"):
        encode(Request("a", "s", ("public.t",), read_from="host=x"))
