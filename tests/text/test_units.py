"""LSNs, sizes, durations and booleans: parsers and printers agree; a malformed text is refused with a hint."""

from __future__ import annotations

from contextlib import closing, suppress
from typing import TYPE_CHECKING

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdsrepl.errors import BadValue, ExitCode
from rdsrepl.lsn import Lsn
from rdsrepl.units import format_duration, format_size, parse_boolean, parse_duration, parse_size, parse_size_in

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
        ("0.0", 0),
        ("4096B", 4096),
        ("1kB", 1024),
        ("512MB", 512 << 20),
        ("10GB", 10 << 30),
        ("10 GB", 10 << 30),
        (" 10gb ", 10 << 30),
        ("10\u00a0GB", 10 << 30),
        ("10 GiB", 10 << 30),
        ("1.5GB", 3 << 29),
        ("0.1kB", 102),
        ("2t", 2 << 40),
        ("9007199254740993B", 9007199254740993),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", " ", "MB", "-1MB", "-5GB", "1XB", "1MB2", "one", "1e9", "\uff11\uff10GB", "10 g b", "inf", "nan", "0x10",
     "1,5GB", "1_0GB", ".5GB", "5.GB", "10\nGB", "10GB\x00", "+1GB", "1\u212aB", "9" * 31 + "GB"],
)  # fmt: skip
def test_a_malformed_size_is_refused(text: str) -> None:
    with pytest.raises(BadValue, match="not a size"):
        parse_size(text)


def test_a_size_needs_a_unit_and_must_fit() -> None:
    with pytest.raises(BadValue, match="has no unit") as caught:
        parse_size(" 10 ")
    assert caught.value.hint == "write the unit: 10MB or 10GB"
    for text in ("8388608TB", "9" * 30 + "TB"):
        with pytest.raises(BadValue, match="too large"):
            parse_size(text)


def test_a_size_in_the_unit_of_an_api() -> None:
    for text, wanted in (("200", 200), ("200GiB", 200), ("200 gb", 200), ("1TB", 1024), ("1024MB", 1)):
        assert parse_size_in("GiB", text) == wanted
    for text, reason in (
        ("1.5", "whole number of GiB"),
        ("500MB", "whole number of GiB"),
        ("0", "outside of the limits"),
        ("-1", "not a size"),
    ):
        with pytest.raises(BadValue, match=reason):
            parse_size_in("GiB", text)
    assert parse_size_in("KiB", "10MB", least=1024, most=10240) == 10240
    with pytest.raises(BadValue, match="outside of the limits") as caught:
        parse_size_in("KiB", "11MB", least=1024, most=10240)
    assert caught.value.hint == "give from 1024 to 10240 KiB"


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
        ("7 days", 7 * 86400),
        ("1 day 12 hours", 36 * 3600),
        ("1H30M", 5400),
        (" 5 minutes ", 300),
        ("2w", 14 * 86400),
        ("0.1s", 0.1),
        ("36500d", 36500 * 86400),
    ],
)
def test_durations(text: str, expected: float) -> None:
    assert parse_duration(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    ["", "s", "-1s", "1y", "1h30", "5 minute s", "1e3", "inf", "\uff15s", "0x10", "1,5h", "1h,30m", "1h-30m", "5GB"],
)
def test_a_malformed_duration_is_refused(text: str) -> None:
    with pytest.raises(BadValue, match="not a duration"):
        parse_duration(text)


def test_a_duration_must_fit() -> None:
    for text in ("40000 days", "99999999999h", "9" * 30 + "w"):
        with pytest.raises(BadValue, match=r"too long"):
            parse_duration(text)


@given(st.integers(0, 2**60))
def test_a_size_is_read_back_as_printed(value: int) -> None:
    assert parse_size(format_size(value)) == pytest.approx(value, rel=0.06)


@given(st.floats(0, 99 * 366 * 86400))
def test_a_duration_is_read_back_as_printed(value: float) -> None:
    assert parse_duration(format_duration(value)) == pytest.approx(value, rel=0.06, abs=0.06)


@given(st.text(max_size=12) | st.from_regex(r"\A[0-9.]{1,9} ?[kKmMgGtTsShHdD]?[bBiI]{0,2}\Z"))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_size, parse_duration):
        with suppress(BadValue):
            assert 0 <= parse(text) < 2**63


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
