"""Open the HTML pages in headless Chromium: nothing is requested, no script runs, the style sheet is applied.

Names that try to be markup are on every page. The pages that must fail prove that the checks can.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from rdsrepl.cli import doctor_page
from rdsrepl.cli.slot import lag_page
from rdsrepl.doctor.facts import Facts
from rdsrepl.doctor.findings import CheckResult, Diagnosis, Finding, Severity
from rdsrepl.postgres.activity import ServerInfo
from tests.fixtures import builders

_SERVER = ServerInfo("16.4", 16, "rds", False, "app", "dba", True, False, True, True, builders.NOW)
_HOSTILE = (
    "orders_cdc",
    "<script>document.title='ran'</script>",
    '"><img src=https://example.invalid/x onerror="document.title=\'ran\'">',
    "</svg></title></style><script>document.title='ran'</script>\u202e\x1b[2J",
)
_WIDTHS = (1280, 390)
_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr"),
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


class _Document(HTMLParser):
    """The elements of a page after the browser has read it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.tags.append(tag)


def _pages() -> Iterator[tuple[str, str]]:
    for number, name in enumerate(_HOSTILE):
        history, retention = builders.growing_slot(name, free_bytes=12 * builders.GIB)
        holding = retention.holdings[0]
        retention = replace(retention, holdings=(replace(holding, slot=replace(holding.slot, database=name)),))
        yield (
            f"lag-{number}",
            lag_page.page(
                name,
                _SERVER,
                history,
                retention,
                notes=[name],
                details=lambda _, name=name: [(name, name)],
                seconds=None,
            ),
        )
        finding = Finding("check", Severity.critical, name, name, name)
        diagnosis = Diagnosis(False, (CheckResult("check", "critical", name, name),), (finding,), {"user": name})
        yield f"doctor-{number}", doctor_page.page(diagnosis, Facts(name, server=_SERVER))


def _open(browser: str, page: Path, *options: str) -> tuple[str, str, list[str]]:
    """Return the document, the log, and the addresses that the page asked for; requests of the browser do not count."""
    with tempfile.TemporaryDirectory(prefix="rdsrepl-chromium-") as profile:
        log = Path(profile) / "net.json"
        done = subprocess.run(
            [browser, *_OPTIONS, f"--user-data-dir={profile}", f"--log-net-log={log}", *options, page.as_uri()],
            capture_output=True,
            timeout=120,
            check=True,
        )
        events = json.loads(log.read_text(encoding="utf-8"))["events"]
    requests = [event["params"] for event in events if "initiator" in event.get("params", {})]
    urls = {
        one["url"] for one in requests if one["initiator"] != "not an origin" and not one["url"].startswith("file:")
    }
    return done.stdout.decode(), done.stderr.decode(errors="replace"), sorted(urls)


def problems(browser: str, page: Path) -> list[str]:
    """Return what is wrong with a page in the browser."""
    document, log, urls = _open(browser, page, "--dump-dom")
    tags = set(_Document(document).tags)
    found = [f"it asked for {url}" for url in urls]
    found += [f"it has an element {tag}" for tag in sorted(tags & {"script", "img", "iframe", "link", "object"})]
    found += ["a script ran"] if "<title>ran</title>" in document else []
    found += ["the browser refused a part"] if "Content Security Policy" in log else []
    return found


def _check_the_checks(browser: str, page: Path, text: str) -> None:
    """Open pages that are wrong; each must be found."""
    unescaped = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&#x27;", "'")
    without_policy = unescaped.replace("Content-Security-Policy", "x")
    image = text.replace("Content-Security-Policy", "x").replace(
        "<main>", '<main><img src="https://example.invalid/x">'
    )
    for wrong, said in (
        (unescaped, "it has an element script"),
        (without_policy, "a script ran"),
        (image, "it asked for https://example.invalid/x"),
        (text.replace("<style>", "<style> "), "the browser refused a part"),
    ):
        page.write_text(wrong, encoding="utf-8")
        assert said in problems(browser, page), f"the check does not find: {said}"


def report() -> None:
    """Open every page, and take a screenshot of each at the width of a desktop and of a phone."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        print("\nHTML pages: not checked, because Chromium is missing")
        return
    with tempfile.TemporaryDirectory(prefix="rdsrepl-pages-") as directory:
        images = 0
        for name, text in _pages():
            page = Path(directory) / f"{name}.html"
            page.write_text(text, encoding="utf-8")
            if found := problems(browser, page):
                raise SystemExit(f"the page {name} in the browser: {', '.join(found)}")
            for width in _WIDTHS if name.endswith("-0") else ():
                image = page.with_suffix(f".{width}.png")
                _open(browser, page, f"--window-size={width},1600", f"--screenshot={image}")
                assert image.stat().st_size > 10_000, f"{image.name} is empty"
                images += 1
        _check_the_checks(browser, Path(directory) / "control.html", text)
    version = subprocess.run([browser, "--version"], capture_output=True, check=True).stdout.decode().strip()
    print(f"\nHTML pages in {version}: {2 * len(_HOSTILE)} pages, {images} screenshots: no problem")
