"""Run docs/walkthrough.md as written: each way from nothing to a stream, and back to nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.fixtures.sandbox import Cloud
from tests.fixtures.walkthrough import WAYS, walk


def report() -> None:
    """Walk each way on one sandbox."""
    with tempfile.TemporaryDirectory() as name:
        cloud = Cloud(Path(name), "--default-group")
        try:
            for way in WAYS:
                directory = Path(name, way)
                directory.mkdir()
                walk(cloud, way, directory)
        finally:
            cloud("sandbox", "down")
    print(f"\ndocs/walkthrough.md: {', '.join(WAYS)} streamed their changes and left nothing behind")
