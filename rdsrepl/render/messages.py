"""Write to stderr what ``console`` does not print: JSON objects and stack traces, with secrets masked."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

from rdsrepl.text.escapes import json_text, shown
from rdsrepl.text.masking import mask, masked


def log(level: str, message: str, **fields: object) -> None:
    """Write one JSON object to stderr: ``time`` (UTC), ``level``, ``message`` and FIELDS."""
    document = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level, "message": message}
    write_object({**document, **fields})


def write_object(value: object) -> None:
    """Write one JSON object to stderr, on a line of its own."""
    sys.stderr.write(json_text(masked(value)) + "\n")
    sys.stderr.flush()


def write_traceback(exc: BaseException) -> None:
    """Write an error, its causes and their stack traces to stderr."""
    import traceback

    text = "".join(traceback.format_exception(exc))
    sys.stderr.write(shown(mask(text), keep="\n").rstrip("\n") + "\n")
    sys.stderr.flush()
