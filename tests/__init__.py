"""The tests: see README.md for where each stands and how it is run."""

from pathlib import Path
from typing import Final

#: The project's top folder.
ROOT: Final = Path(__file__).parent.parent
