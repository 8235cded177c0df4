"""Layer 2: the config file and the environment as one frozen ``Target``. Entry points: ``resolve``, ``load``."""

from rdsrepl.config.edit import add_target, remove_target, use
from rdsrepl.config.file import Config, load
from rdsrepl.config.paths import config_path, state_directory
from rdsrepl.config.selection import resolve
from rdsrepl.config.target import SECRETS, Aws, Lookup, Target

__all__ = [
    "SECRETS",
    "Aws",
    "Config",
    "Lookup",
    "Target",
    "add_target",
    "config_path",
    "load",
    "remove_target",
    "resolve",
    "state_directory",
    "use",
]
