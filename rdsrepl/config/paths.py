"""Where the config file and the state directory are."""

from __future__ import annotations

import os
from pathlib import Path


def home_directory() -> Path:
    """Return the user's home directory; ``/`` for a user without one, as container runtimes set it."""
    try:
        return Path.home()
    except RuntimeError:  # neither HOME nor an entry in the passwd file
        return Path("/")


def config_path() -> Path:
    """Return the path of the config file, which may not exist: ``RDSREPL_CONFIG``, or under ``XDG_CONFIG_HOME``."""
    if explicit := os.environ.get("RDSREPL_CONFIG"):
        return Path(explicit)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else home_directory() / ".config") / "rdsrepl" / "config.yaml"


def state_directory() -> Path:
    """Return the directory of the audit file and other state: ``RDSREPL_STATE_DIR``, or under ``XDG_STATE_HOME``."""
    if explicit := os.environ.get("RDSREPL_STATE_DIR"):
        return Path(explicit)
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else home_directory() / ".local" / "state") / "rdsrepl"
