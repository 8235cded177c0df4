"""Where the config file and the state directory are."""

from __future__ import annotations

import os
from pathlib import Path


def config_path() -> Path:
    """Return where the config file is, or would be: ``RDSREPL_CONFIG``, or under ``XDG_CONFIG_HOME``."""
    if explicit := os.environ.get("RDSREPL_CONFIG"):
        return Path(explicit)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "rdsrepl" / "config.yaml"


def state_directory() -> Path:
    """Return where rdsrepl keeps what it must remember: ``RDSREPL_STATE_DIR``, or under ``XDG_STATE_HOME``."""
    if explicit := os.environ.get("RDSREPL_STATE_DIR"):
        return Path(explicit)
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "rdsrepl"
