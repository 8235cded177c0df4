"""Layer 2: the config file and the environment as one frozen ``Target``.

Entry points: ``resolve``, ``load``. ``edit`` changes the file; only the commands that do so import it.
"""

from rdsrepl.config.file import VALUES, Config, load
from rdsrepl.config.paths import config_path, home_directory, state_directory
from rdsrepl.config.selection import resolve
from rdsrepl.config.target import SECRETS, Aws, Lookup, Target

__all__ = [
    "SECRETS",
    "VALUES",
    "Aws",
    "Config",
    "Lookup",
    "Target",
    "config_path",
    "home_directory",
    "load",
    "resolve",
    "state_directory",
]
