"""Where the config file and the state directory are."""

from __future__ import annotations

import os
from pathlib import Path


def config_path() -> Path:
    """Return the path of the config file, which may not exist: ``RDSREPL_CONFIG``, or under ``XDG_CONFIG_HOME``."""
    if explicit := os.environ.get("RDSREPL_CONFIG"):
        return Path(explicit)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "rdsrepl" / "config.yaml"


def state_directory() -> Path:
    """Return the directory of the audit file and other state: ``RDSREPL_STATE_DIR``, or under ``XDG_STATE_HOME``."""
    if explicit := os.environ.get("RDSREPL_STATE_DIR"):
        return Path(explicit)
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "rdsrepl"
