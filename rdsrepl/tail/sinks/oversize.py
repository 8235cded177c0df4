"""Handles a record that exceeds the stream's limit: stop, leave values out, or write it to a dead-letter file."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

from rdsrepl.errors import Error, Refused
from rdsrepl.text.counts import counted

# Fractions keep their text: a float would lose digits.
_FRACTION: Final = re.compile(r'"\\u0000([0-9.eE+-]+)\\u0000"')

Policy = Literal["fail", "drop-columns"]


class Oversize:
    """Handles records that exceed the stream's limit."""

    def __init__(self, policy: Policy, dead_letter: Path | None) -> None:
        """Apply POLICY; with DEAD_LETTER such a record is written to that file instead, and counts as delivered.

        Raises:
            Error: the dead-letter file could not be written.
        """
        self._policy = policy
        self._path = dead_letter
        try:
            self._fd = (
                None if dead_letter is None else os.open(dead_letter, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            )
        except OSError as exc:
            raise Error(
                f"could not open --dead-letter {dead_letter}: {exc.strerror}", hint="choose another file"
            ) from exc

    def fit(self, key: str, data: bytes, limit: int) -> bytes | None:
        """Return data that fits; None if the record was written to the dead-letter file, and synced to disk.

        Args:
            key: the partition key.
            data: the record.
            limit: for key and data together.

        Raises:
            Refused: the policy is to fail; the message names table, key and LSN.
            Error: the dead-letter file could not be written.
        """
        event = _event(data)
        if self._policy == "drop-columns" and event is not None:
            with suppress(RecursionError):  # a value is nested too deep
                smaller = _without_largest(event, limit - len(key.encode()))
                if smaller is not None:
                    return smaller
        if self._fd is not None:
            self._write(key, data)
            return None
        raise Refused(
            f"a change of {_origin(event)} has {counted(len(data), 'byte')}; "
            f"the stream's limit is {limit} (key {key[:80]})",
            hint="--oversize drop-columns leaves the largest values out and names them; --dead-letter FILE writes such "
            "changes to a file; or increase the stream's limit (UpdateMaxRecordSize). The change is not confirmed",
        )

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _write(self, key: str, data: bytes) -> None:
        assert self._fd is not None
        entry = {"partition_key": key, "data": data.decode("utf-8", "replace")}
        try:
            view = memoryview(json.dumps(entry, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            while view:
                view = view[os.write(self._fd, view) :]
            os.fsync(self._fd)
        except OSError as exc:
            raise Error(
                f"could not write to --dead-letter {self._path}: {exc.strerror}",
                hint="free disk space, then start again: no change is confirmed that was not written",
            ) from exc


def _event(data: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(data, parse_float=lambda digits: f"\0{digits}\0")
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def _body(event: dict[str, Any]) -> dict[str, Any]:
    """Return the event without its key, if it has one (Debezium)."""
    return event["value"] if event.keys() == {"key", "value"} and isinstance(event["value"], dict) else event


def _with_body(whole: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    return {**whole, "value": body} if whole.keys() == {"key", "value"} else body


def _origin(event: dict[str, Any] | None) -> str:
    if event is None:
        return "an unknown table"
    event = _body(event)
    source = event.get("source") if isinstance(event.get("source"), dict) else event
    assert source is not None
    return f"{source.get('schema')}.{source.get('table')} at {event.get('lsn', source.get('lsn'))}"


def _without_largest(event: dict[str, Any], limit: int) -> bytes | None:
    """Remove the largest values of both images, one by one, until the event fits; None if it cannot fit."""
    key = set(event.get("key") or ())
    whole, event = event, _body(event)
    sizes = [
        (len(json.dumps(value, ensure_ascii=False)), image, column)
        for image in ("before", "after")
        for column, value in (event.get(image) or {}).items()
        if column not in key
    ]
    dropped: list[str] = []
    for _, image, column in sorted(sizes, reverse=True):
        del event[image][column]
        if column not in dropped:
            dropped.append(column)
        smaller = json.dumps(
            _with_body(whole, {**event, "dropped": dropped}), ensure_ascii=False, separators=(",", ":")
        )
        encoded = _FRACTION.sub(r"\1", smaller).encode("utf-8", "surrogateescape")
        if len(encoded) <= limit:
            return encoded
    return None
