"""Where the program starts: the ``rdsrepl`` command, and ``python -m rdsrepl``."""

from __future__ import annotations

import sys


def run() -> None:
    """Start the program; the version is said without building the whole command line first."""
    if sys.argv[1:] == ["--version"]:
        from rdsrepl import __version__

        sys.stdout.write(f"rdsrepl {__version__}\n")
        return
    from rdsrepl.cli.main import app

    app()


if __name__ == "__main__":
    run()
