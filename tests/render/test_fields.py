"""What ``--filter`` and ``--sort-by`` mean for each type of field."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from rdsrepl.errors import BadValue
from rdsrepl.lsn import Lsn
from rdsrepl.render import Column, Listing


@dataclass(frozen=True)
class Place:
    host: str
    port: int


@dataclass(frozen=True)
class Row:
    name: str
    active: bool | None
    lag_bytes: int | None
    idle_seconds: float | None
    since: datetime | None
    lsn: Lsn | None
    schemas: tuple[str, ...]
    place: Place


NOW = datetime.now(UTC)
ROWS = [
    Row("a", True, 5 << 30, 30.0, NOW - timedelta(days=9), Lsn.parse("1/0"), ("sales", "hr"), Place("h1", 9)),
    Row("b", False, None, 7200.0, NOW - timedelta(hours=1), Lsn.parse("0/FF"), (), Place("h2", 10)),
    Row("=c", None, 10, None, None, None, ("sales",), Place("h3", 11)),
]
LISTING = Listing(
    Row,
    (
        Column("NAME", lambda row: row.name, "name"),
        Column("LAG SIZE", lambda row: row.lag_bytes, "lag_bytes"),
        Column("HOST", lambda row: row.place.host, "place.host"),
    ),
    "no rows",
)


@pytest.mark.parametrize(
    ("condition", "names"),
    [
        ("name=a", "a"),
        ("name==a", "a"),
        ("NAME != a", "b =c"),
        ("name<>a", "b =c"),
        ("name==c", ""),
        ("name~^[ab]$", "a b"),
        ("name!~^[ab]$", "=c"),
        ("active=yes", "a"),
        ("active=false", "b"),
        ("active!=true", "b =c"),
        ("active=", "=c"),
        ("active!=", "a b"),
        ("lag_bytes>1GB", "a"),
        ("lag-bytes<=10", "=c"),
        ("lag size>=5 GB", "a"),
        ("idle_seconds>1h30m", "b"),
        ("since>7d", "a"),
        ("since<2d", "b"),
        pytest.param(f"since>{(NOW - timedelta(days=2)).isoformat()}", "b", id="since>TIME"),
        ("lsn>0/FE", "a b"),
        ("schemas=sales", "a =c"),
        ("schemas!=sales", "b"),
        ("schemas=", "b"),
        ("schemas~^h", "a"),
        ("place.port>9", "b =c"),
        ("port>=11", "=c"),
        ("{.place.host}=h1", "a"),
        ("host=h1", "a"),
    ],
)
def test_a_condition_compares_by_the_type_of_its_field(condition: str, names: str) -> None:
    assert " ".join(row.name for row in LISTING.select(conditions=[condition])(ROWS)) == names


def test_all_conditions_must_hold() -> None:
    kept = LISTING.select(conditions=["schemas=sales", "lag_bytes>1kB"])(ROWS)
    assert [row.name for row in kept] == ["a"]


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("lag_bytes", "=c a b"),
        ("-lag_bytes", "a =c b"),
        ("lag size:desc", "a =c b"),
        (".place.port:asc", "a b =c"),
        ("-{.idle_seconds}", "b a =c"),
        ("active,-name", "b a =c"),
        ("lsn", "b a =c"),
    ],
)
def test_rows_without_a_value_are_last(order: str, names: str) -> None:
    assert " ".join(row.name for row in LISTING.select(sort_by=order)(ROWS)) == names


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("lag_byts>1", "no field lag_byts"),
        ("name", "is not FIELD=VALUE"),
        ("lag_bytes>much", "lag_bytes: 'much' is not a size"),
        ("idle_seconds>long", "idle_seconds: 'long' is not a duration"),
        ("port=x", "place.port: 'x' is not a number"),
        ("since>yesterday", "since: 'yesterday' is not a time"),
        ("lsn=x", "lsn: 'x' is not an LSN"),
        ("active=maybe", "active: 'maybe' is not yes or no"),
        ("active>no", "active is yes or no: > does not apply"),
        ("schemas<x", "schemas is a list: < does not apply"),
        ("name~(", "is not a regular expression: missing ), unterminated subpattern at position 1"),
    ],
)
def test_a_wrong_condition_is_refused(condition: str, said: str) -> None:
    with pytest.raises(BadValue) as caught:
        LISTING.select(conditions=[condition])
    assert said in caught.value.message and caught.value.hint


def test_an_unknown_field_is_answered_with_the_nearest_and_all_fields() -> None:
    with pytest.raises(BadValue) as caught:
        LISTING.select(sort_by="lag_byte")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("did you mean lag_bytes? the fields are name, active, lag_bytes, ")
    assert "place.port" in caught.value.hint
    with pytest.raises(BadValue, match="not FIELD:asc"):
        LISTING.select(sort_by="name:down")
