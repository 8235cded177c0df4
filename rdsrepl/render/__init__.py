"""Layer 2: print any object as a table, JSON, YAML, CSV or names. Only this package prints data.

Entry points: ``emit`` prints a result, ``listing`` and ``facts`` build tables, ``console`` is the terminal.
"""

from rdsrepl.render.console import (
    colours,
    console,
    displays_unicode,
    is_dumb,
    line_for_person,
    print_lines,
    print_message,
)
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
