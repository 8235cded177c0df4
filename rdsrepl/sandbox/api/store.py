"""The records of the API: one JSON file in the directory of the sandbox, with a copy in memory."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any, Final

from rdsrepl.errors import Error
from rdsrepl.sandbox.servers import processes

FORMAT: Final = 2


class Store:
    """Named sections of records, as JSON values.

    A request holds ``lock`` while it reads records. A request that writes holds it until ``save``, so that no other
    request changes what it read.

    Attributes:
        lock: protects every section; a thread can acquire it several times.
    """

    def __init__(self, path: Path | None) -> None:
        """Read the file PATH if it exists; with None the records are not saved.

        Raises:
            Error: the file cannot be read, or another version wrote it.
        """
        self.lock = threading.RLock()
        self._path = path
        self._sections: dict[str, dict[str, Any]] = {}
        if path is None:
            return
        try:
            loaded = json.loads(path.read_text(encoding="utf-8"))
            if loaded["format"] != FORMAT:
                raise ValueError("another format")
            self._sections = dict(loaded["sections"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise Error(f"could not read {path}: {exc}", hint="remove that sandbox: rdsrepl sandbox down") from exc

    def section(self, name: str) -> dict[str, Any]:
        """Return the records of a section by their keys; ``save`` saves changes."""
        with self.lock:
            return self._sections.setdefault(name, {})

    def save(self) -> None:
        """Write all sections to the file, in one step.

        Raises:
            OSError: the file cannot be written.
        """
        if self._path is None:
            return
        with self.lock:
            text = json.dumps({"format": FORMAT, "sections": self._sections}, indent=1)
            processes.write_private_file(self._path, text + "\n")
