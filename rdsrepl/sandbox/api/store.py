"""What the API remembers: one JSON file in the sandbox's directory, kept in memory."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any, Final

from rdsrepl.errors import Error
from rdsrepl.sandbox.servers import processes

FORMAT: Final = 2


class Store:
    """Named sections of records that JSON can hold.

    A request that reads holds ``lock`` while it looks at records; one that writes holds it from its first look until
    ``save``, so that two requests never decide on the same state.

    Attributes:
        lock: guards every section; the same thread may take it again.
    """

    def __init__(self, path: Path | None) -> None:
        """Read what is at PATH, if anything; with None nothing is kept beyond the process.

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
            raise Error(f"{path} cannot be read: {exc}", hint="remove that sandbox: rdsrepl sandbox down") from exc

    def section(self, name: str) -> dict[str, Any]:
        """Return the records of one kind by their key; changes are kept by ``save``."""
        with self.lock:
            return self._sections.setdefault(name, {})

    def save(self) -> None:
        """Write everything, in one step.

        Raises:
            OSError: the file cannot be written.
        """
        if self._path is None:
            return
        with self.lock:
            text = json.dumps({"format": FORMAT, "sections": self._sections}, indent=1)
            processes.write_private_file(self._path, text + "\n")
