"""Build a self-contained HTML page from titles, tables and images; ``page.css`` has its style.

The page loads nothing and has no script; a Content-Security-Policy forbids both. Every text is masked, its control
characters are escaped as for a terminal, and it is escaped for HTML: only ``Html`` is taken as markup.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from html import escape
from importlib.resources import files

from rdsrepl.text.escapes import shown
from rdsrepl.text.masking import mask


class Html(str):
    """Markup that is inserted as it is; any other text is escaped."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        is_number: aligned to the right.
        is_name: a name that may be broken anywhere.
        is_long: a text that may be broken into lines.
    """

    heading: str
    is_number: bool = False
    is_name: bool = False
    is_long: bool = False


def text(value: object) -> Html:
    """Return any value as text of a page: masked, on one line, escaped; markup is returned unchanged."""
    return value if isinstance(value, Html) else Html(escape(shown(mask(str(value)))))


def lines(values: Iterable[object]) -> Html:
    """Return values as lines of one cell."""
    return Html("<br>".join(text(value) for value in values))


def badge(severity: str) -> Html:
    """Return a severity as a coloured word: ``critical``, ``warning``, ``info``, ``ok``."""
    known = severity if severity in ("critical", "warning", "info", "ok") else "info"
    return Html(f'<span class="badge {known}">{text(severity)}</span>')


def code(value: object) -> Html:
    """Return a command or a name in a fixed-width font."""
    return Html(f"<code>{text(value)}</code>")


def paragraph(value: object, *, note: bool = False) -> Html:
    """Return a paragraph; a note is smaller."""
    return Html(f'<p class="note">{text(value)}</p>' if note else f"<p>{text(value)}</p>")


def facts(pairs: Sequence[tuple[str, object]]) -> Html:
    """Return names and values."""
    rows = "\n".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in pairs)
    return Html(f"<dl>\n{rows}\n</dl>")


def table(columns: Sequence[Column], rows: Sequence[Sequence[object]]) -> Html:
    """Return a table; a cell is any value."""
    head = "".join(f"<th{_class(column)}>{text(column.heading)}</th>" for column in columns)
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<td{_class(column)} data-heading="{text(column.heading)}">{text(cell)}</td>'
            for column, cell in zip(columns, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return Html(f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>')


def figure(image: Html, caption: object) -> Html:
    """Return an image with its legend."""
    return Html(f"<figure>\n{image}\n<figcaption>{text(caption)}</figcaption>\n</figure>")


def legend(entries: Iterable[tuple[str, str]]) -> Html:
    """Return the legend of a chart: the class of each mark, and what it means."""
    return Html(
        " ".join(f'<span class="entry"><span class="key {kind}"></span>{text(name)}</span>' for kind, name in entries)
    )


def section(title: object, *parts: Html) -> Html:
    """Return a part of the page with a heading."""
    return Html(f"<section>\n<h2>{text(title)}</h2>\n" + "\n".join(parts) + "\n</section>")


def page(title: str, *parts: Html, footer: str) -> str:
    """Return the whole page."""
    style = _style()
    digest = base64.b64encode(sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{text(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n<h1>{text(title)}</h1>\n"
        f"{body}\n</main>\n<footer>{text(footer)}</footer>\n</body>\n</html>\n"
    )


def _class(column: Column) -> str:
    kinds = (("number", column.is_number), ("name", column.is_name), ("long", column.is_long))
    names = " ".join(name for name, is_so in kinds if is_so)
    return f' class="{names}"' if names else ""


@cache
def _style() -> str:
    return files("rdsrepl.reports").joinpath("page.css").read_text(encoding="utf-8")
