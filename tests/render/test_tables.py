"""Tables at every width: no line is wider than the terminal, and nothing is wrapped inside a word."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from rdsrepl.render import Column, displays_unicode, facts, listing, sections, shortened
from rdsrepl.render.terminal import UNLIMITED
from rdsrepl.text.glyphs import ascii_text

LONG = "debezium_orders_prod_eu_west_1_customer_orders_connector_012345"
ROWS = [
    {"name": LONG, "state": "available", "size": "112 MB", "text": "the consumer is not known", "empty": None},
    {"name": "注文データベース" * 4, "state": "no", "size": "1 B", "text": f"see {LONG}", "empty": ""},
]
COLUMNS = (
    Column("NAME", lambda row: row["name"], kind="name"),
    Column("EMPTY", lambda row: row["empty"], priority=2),
    Column("STATE", lambda row: row["state"], priority=3),
    Column("SIZE", lambda row: row["size"], kind="number"),
    Column("TEXT", lambda row: row["text"], priority=4, kind="prose"),
)


def lines(renderable: object, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(renderable)
    return [line.rstrip() for line in captured.get().splitlines()]


@pytest.mark.parametrize("width", [*range(20, 140, 7), 300])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    printed = lines(listing(ROWS, COLUMNS, empty=""), width)
    assert all(cell_len(line) <= width for line in printed)
    words = {word for line in printed[1:] for word in line.split() if "…" not in word}
    known = {word for row in ROWS for value in row.values() for word in str(value).split()}
    assert words <= known | {"-", *"1234", "column", "columns", "hidden;", "-o", "wide"}


def test_columns_are_left_out_by_importance_and_named() -> None:
    headings = {width: lines(listing(ROWS, COLUMNS, empty=""), width)[0].split() for width in (300, 95, 60, 38)}
    assert headings[300] == ["NAME", "EMPTY", "STATE", "SIZE", "TEXT"]
    assert headings[95] == ["NAME", "STATE", "SIZE", "TEXT"]  # a column without any value goes first
    assert headings[60] == ["NAME", "STATE", "SIZE"]
    assert headings[38] == ["NAME", "SIZE"]
    last = {width: lines(listing(ROWS, COLUMNS, empty=""), width)[-1] for width in (300, 95, 60)}
    assert last[95] == "1 column hidden; -o wide" and last[60] == "2 columns hidden; -o wide"
    assert "hidden" not in last[300]


def test_numbers_are_aligned_to_the_right_and_headings_can_be_left_out() -> None:
    printed = lines(listing(ROWS, COLUMNS, empty="", headers=False), 300)
    assert len(printed) == 2
    ends = [cell_len(line.partition(size)[0] + size) for line, size in zip(printed, ("112 MB", "1 B"), strict=True)]
    assert ends[0] == ends[1]


@pytest.mark.parametrize("width", range(2, 30))
def test_a_name_is_shortened_in_the_middle_to_its_width(width: int) -> None:
    for name in (LONG, "注文データベース" * 4, "e\u0301" * 40, "ab"):
        short = shortened(name, width)
        assert cell_len(short) <= width
        if width > 6 and cell_len(name) > width:
            assert short[0] == name[0] and short[-1] == name[-1] and "…" in short
    assert shortened("abc", 3) == "abc"


def test_a_long_fact_is_below_its_name_where_there_is_no_room_beside_it() -> None:
    pairs = [(LONG, "retains the most WAL of all slots of this server"), ("short", True)]
    assert lines(facts(pairs), 120) == [f"{LONG}  {pairs[0][1]}", f"short{' ' * 60}yes"]
    narrow = lines(facts(pairs), 80)
    assert narrow == [LONG, f"      {pairs[0][1]}", "short", "      yes"]


def test_of_many_findings_of_a_kind_a_terminal_shows_the_first_and_a_pipe_all() -> None:
    rows = [("idle", f"slot_{number}") for number in range(1000)] + [("lost", "other")]
    made = sections(rows, (Column("CHECK", lambda row: row[0]),), lambda row: [row[1]], kind=lambda row: row[0])
    on_terminal = lines(made, 80)
    assert on_terminal == [
        *(line for number in range(10) for line in ("idle", f"  slot_{number}")),
        *("lost", "  other", "and 990 more of idle; -o json prints all"),
    ]
    assert len(lines(made, UNLIMITED)) == 1002


def test_symbols_have_an_ascii_form() -> None:
    assert ascii_text("a → b … ── ▁█ ⣿⠁ é") == "a -> b ... -- _# #. é"


@pytest.mark.parametrize(
    ("encoding", "variables", "unicode"),
    [
        ("utf-8", {}, True),
        ("utf-8", {"LANG": "de_DE.UTF-8"}, True),
        ("utf-8", {"LC_ALL": "C", "LANG": "de_DE.UTF-8"}, False),
        ("utf-8", {"LANG": "C"}, False),
        ("utf-8", {"LANG": "C", "LC_CTYPE": "C.UTF-8"}, False),  # Python sets this LC_CTYPE
        ("utf-8", {"LANG": "C", "LC_CTYPE": "de_DE.UTF-8"}, True),
        ("iso-8859-1", {"LANG": "de_DE.ISO-8859-1"}, False),
    ],
)
def test_symbols_beyond_ascii_need_a_utf_8_locale(
    encoding: str, variables: dict[str, str], unicode: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LC_ALL", "LC_CTYPE", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert displays_unicode(io.TextIOWrapper(io.BytesIO(), encoding=encoding)) is unicode
