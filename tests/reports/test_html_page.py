"""HTML pages: well formed, nothing loaded, every text escaped and masked, one chart for each slot."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from rdsrepl.cli import doctor_page
from rdsrepl.cli.slot import lag_page
from rdsrepl.doctor.facts import Facts
from rdsrepl.doctor.findings import CheckResult, Diagnosis, Finding, Severity
from rdsrepl.postgres.activity import ServerInfo
from rdsrepl.reports import html_page, svg_chart
from rdsrepl.retention.assessment import Retention
from rdsrepl.retention.slot_series import Point, slot_series
from tests.fixtures import builders
from tests.fixtures.builders import NOW, sample

SERVER = ServerInfo("16.4", 16, "rds", False, "app", "dba", True, False, True, True, NOW, address="db.example:5432")
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'--><svg onload=alert(1)>",
    "</title></style><b>",
    "a\x1b[2J\x07\x00b\u202eevil\u2066",
    "&lt;&#0;&amp;",
    "]]><!--",
)
_VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})
_ALLOWED = frozenset(
    {
        *("html", "head", "meta", "title", "style", "body", "main", "footer", "h1", "h2", "p", "dl", "div", "dt", "dd"),
        *("section", "table", "thead", "tbody", "tr", "th", "td", "code", "span", "br", "figure", "figcaption"),
        *("svg", "line", "text", "polyline", "polygon", "circle"),
    }
)


class Page(HTMLParser):
    """A page: its tags, attributes and text; a tag that is not closed, or not expected, fails."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in _ALLOWED, tag
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in _ALLOWED, tag
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        """All text of the page."""
        return " ".join(" ".join(self.texts).split())


def checked(page: str) -> Page:
    """Parse a page; it must be self-contained and without control characters."""
    parsed = Page(page)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg\")", page)
    names = {name for name, _ in parsed.attributes}
    assert not {name for name in names if name.startswith("on")} and not names & {"src", "href", "style", "action"}
    assert "url(" not in page and "@import" not in page and "default-src 'none'" in page
    assert all(one.isprintable() or one == "\n" for one in page)
    return parsed


def lag(history: list, retention: Retention, label: str = "target production", **given: object) -> str:  # type: ignore[type-arg]
    """Return the page of slot lag."""
    return lag_page.page(
        label,
        SERVER,
        history,
        retention,
        notes=["WAL grows by 1 MB/s"],
        details=lambda one: [("consumer", "none"), ("severity", one.severity.value), ("", "why")],
        seconds=None,
        **given,  # type: ignore[arg-type]
    )


def test_the_page_of_slots() -> None:
    history, retention = builders.growing_slot()
    page = lag(history, retention)
    parsed = checked(page)
    for said in (
        *("Replication slots of target production", "db.example:5432", "RDS PostgreSQL 16.4", "UTC"),
        *("audit", "23.1 GB", "9.4 GB", "the slot is invalidated in 4h48m", "WAL grows by 1 MB/s"),
        *("max_slot_wal_keep_size 40.0 GB", "forecast", "severity warning why"),
    ):
        assert said in parsed.text, said
    (image,) = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    root = ET.fromstring(image)
    kinds = [one.get("class") for one in root.iter()]
    # A gap divides each line in two.
    assert [kinds.count(kind) for kind in ("retained", "undelivered", "forecast", "limit", "now")] == [2, 2, 1, 1, 1]
    for one in root.iter("{http://www.w3.org/2000/svg}polyline"):
        for place in (one.get("points") or "").split():
            x, y = map(float, place.split(","))
            assert 0 <= x <= svg_chart.WIDTH and 0 <= y <= svg_chart.HEIGHT


def test_each_slot_has_a_chart_or_says_why_not() -> None:
    history, retention = builders.growing_slot()
    new = builders.growing_slot("new")[1].holdings
    both = replace(retention, holdings=(*retention.holdings, *new))
    parsed = checked(page := lag(history, both))
    assert page.count("<svg") == 1 and "a chart needs two samples" in parsed.text
    assert "no replication slots" in checked(lag(history, replace(retention, holdings=()))).text


@pytest.mark.parametrize("name", HOSTILE)
def test_texts_of_others_are_escaped(name: str) -> None:
    history, retention = builders.growing_slot(name)
    holding = retention.holdings[0]
    retention = replace(retention, holdings=(replace(holding, slot=replace(holding.slot, database=name)),))
    page = lag(history, retention, name)
    plain = re.sub(r"\s+", " ", html_page.shown(name))
    assert checked(page).text.count(plain) >= 4
    ET.fromstring(re.findall(r"<svg.*?</svg>", page, re.DOTALL)[0])
    finding = Finding(name, Severity.critical, name, name, name)
    diagnosis = Diagnosis(False, (CheckResult(name, "skipped", name, name),), (finding,), {"user": name})
    assert (
        checked(doctor_page.page(diagnosis, Facts(name, server=replace(SERVER, address=name)))).text.count(plain) >= 8
    )


def test_secrets_are_masked() -> None:
    secret = "postgresql://dba:hunter2hunter2@db/app"
    history, retention = builders.growing_slot()
    finding = Finding(
        "check", Severity.info, "x", f"the subscription connects with {secret}", "password=hunter2hunter2"
    )
    diagnosis = Diagnosis(True, (), (finding,), {})
    for page in (lag(history, retention, f"--dsn {secret}"), doctor_page.page(diagnosis, Facts(secret))):
        assert "hunter2" not in page and "********" in page


def test_a_doctor_without_findings_or_connection() -> None:
    result = CheckResult("wal_level", "ok", "wal_level is logical")
    text = checked(doctor_page.page(Diagnosis(True, (result,), (), {"retained_bytes": 2048}), Facts("orders"))).text
    assert "No check found a problem" in text and "not connected" in text and "2.0 kB" in text


def test_a_long_history_is_thinned_without_losing_its_peak() -> None:
    history, retention = builders.growing_slot()
    series = slot_series(history, retention, retention.holdings[0])
    many = [replace(series.retained[0][0], at=sample(age / 100, 0).at, size_bytes=5) for age in range(30_000, 0, -1)]
    many[12_345] = Point(many[12_345].at, 99)
    image = svg_chart.chart(replace(series, retained=(tuple(many),), undelivered=(), forecast=(), limits=()), "x")
    assert len(image) < 40_000
    heights = {place.split(",")[1] for place in re.findall(r'class="retained" points="(.*?)"', image)[0].split()}
    assert len(heights) == 2
