"""Layer 2: the config file and the environment as one frozen ``Target``. Entry points: ``resolve``, ``load``."""

from rdsrepl.config.edit import (
    SETTABLE,
    Change,
    Update,
    delete_target,
    rename_target,
    replace_target,
    set_target,
    use_target,
)
from rdsrepl.config.file import VALUES, Config, load
from rdsrepl.config.paths import config_path, state_directory
from rdsrepl.config.selection import resolve
from rdsrepl.config.target import SECRETS, Aws, Lookup, Target

__all__ = [
    "SECRETS",
    "SETTABLE",
    "VALUES",
    "Aws",
    "Change",
    "Config",
    "Lookup",
    "Target",
    "Update",
    "config_path",
    "delete_target",
    "load",
    "rename_target",
    "replace_target",
    "resolve",
    "set_target",
    "state_directory",
    "use_target",
]
