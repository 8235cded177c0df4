"""LSNs, sizes, durations and booleans: parsers and printers agree; a malformed text is refused with a hint."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdsrepl.errors import BadValue, ExitCode
from rdsrepl.lsn import Lsn
from rdsrepl.units import format_duration, format_size, parse_boolean, parse_duration, parse_size

if TYPE_CHECKING:
    from tests.fixtures.postgres import Database


@given(st.integers(min_value=0, max_value=2**64 - 1))
def test_an_lsn_is_read_back_as_printed(value: int) -> None:
    assert Lsn.parse(str(Lsn(value))) == value


def test_an_lsn_prints_as_postgresql_does() -> None:
    assert f"{Lsn(0x16_B374D848)}" == "16/B374D848"
    assert repr(Lsn(1)) == "Lsn('0/1')"


@pytest.mark.parametrize("text", ["", "0", "0/", "/0", "0/G", "0-1", "0/123456789", "1/2/3", "0/0 x"])
def test_a_malformed_lsn_is_refused(text: str) -> None:
    with pytest.raises(BadValue) as caught:
        Lsn.parse(text)
    assert caught.value.exit_code == ExitCode.USAGE
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1kB", 1024),
        ("512MB", 512 << 20),
        ("10 GiB", 10 << 30),
        ("1.5GB", 3 << 29),
        ("2t", 2 << 40),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1XB", "1MB2", "one"])
def test_a_malformed_size_is_refused(text: str) -> None:
    with pytest.raises(BadValue, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("90", 90),
        ("1.5s", 1.5),
        ("500ms", 0.5),
        ("1h30m", 5400),
        ("2d", 172800),
        ("1min", 60),
        ("1m 30s", 90),
    ],
)
def test_durations(text: str, expected: float) -> None:
    assert parse_duration(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1y", "1h30", "5 minutes", "1e3"])
def test_a_malformed_duration_is_refused(text: str) -> None:
    with pytest.raises(BadValue, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 kB"), (150 << 20, "150 MB"), (-2048, "-2.0 kB"), (5 << 40, "5.0 TB")],
)
def test_sizes_are_printed_for_people(value: int, text: str) -> None:
    assert format_size(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.25, "0.2s"), (75, "1m15s"), (3700, "1h01m"), (90000, "1d01h")])
def test_durations_are_printed_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_boolean_is_read_as_postgresql_reads_it(db18: Database) -> None:
    words = "1 0 on ON off of o true tru t T false f yes y no n 2 11 trues onn - null"
    with closing(db18.connect()) as conn:
        for word in (*words.split(), " on ", ""):
            try:
                row = conn.execute("SELECT %s::text::boolean", (word,)).fetchone()
            except psycopg.DataError:
                row = (None,)
            assert row == (parse_boolean(word),), word
