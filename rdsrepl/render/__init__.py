"""Layer 2: print any object as a table, JSON, YAML, CSV or names. Only this package prints data.

Entry points: ``emit`` prints a result, ``listing`` and ``facts`` build tables, ``console`` is the terminal.

A name is imported from its module when it is first used: help and completion need no tables.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rdsrepl.render.documents import Format, document
    from rdsrepl.render.messages import log, write_object, write_traceback
    from rdsrepl.render.output import emit, emit_csv, emit_names, paged, say
    from rdsrepl.render.selection import Listing, query
    from rdsrepl.render.tables import (
        Column,
        ago,
        facts,
        indented,
        listing,
        sections,
        shortened,
        size,
        stacked,
        styled,
    )
    from rdsrepl.render.terminal import (
        colours,
        console,
        displays_unicode,
        is_dumb,
        line_for_person,
        print_lines,
        print_message,
    )

__all__ = [
    "Column",
    "Format",
    "Listing",
    "ago",
    "colours",
    "console",
    "displays_unicode",
    "document",
    "emit",
    "emit_csv",
    "emit_names",
    "facts",
    "indented",
    "is_dumb",
    "line_for_person",
    "listing",
    "log",
    "paged",
    "print_lines",
    "print_message",
    "query",
    "say",
    "sections",
    "shortened",
    "size",
    "stacked",
    "styled",
    "write_object",
    "write_traceback",
]

_MODULES: Final = {
    "colours": "terminal",
    "console": "terminal",
    "displays_unicode": "terminal",
    "is_dumb": "terminal",
    "line_for_person": "terminal",
    "print_lines": "terminal",
    "print_message": "terminal",
    "Format": "documents",
    "document": "documents",
    "log": "messages",
    "write_object": "messages",
    "write_traceback": "messages",
    "emit": "output",
    "emit_csv": "output",
    "emit_names": "output",
    "paged": "output",
    "say": "output",
    "Listing": "selection",
    "query": "selection",
    "Column": "tables",
    "ago": "tables",
    "facts": "tables",
    "indented": "tables",
    "listing": "tables",
    "sections": "tables",
    "shortened": "tables",
    "size": "tables",
    "stacked": "tables",
    "styled": "tables",
}


def __getattr__(name: str) -> Any:
    """Import a name of ``__all__`` from its module (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value
