"""Find the module for files in the format zstd."""

from __future__ import annotations

import sys
from typing import Any


def module() -> Any:
    """Return Python's module, or its backport to older versions.

    Raises:
        ImportError: the package is not installed.
    """
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd
