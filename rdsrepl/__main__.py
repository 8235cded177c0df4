"""Where the program starts: the ``rdsrepl`` command, and ``python -m rdsrepl``."""

from __future__ import annotations

import sys


def run() -> None:
    """Start the program; the version is said without building the whole command line first."""
    if sys.argv[1:] == ["--version"]:
        from rdsrepl import __version__

        sys.stdout.write(f"rdsrepl {__version__}\n")
        return
    import threading

    from rdsrepl.cli.main import app
    from rdsrepl.render import write_traceback

    # Python's own would show the secrets in messages; the first thread's errors are `app`'s.
    threading.excepthook = lambda args: write_traceback(args.exc_value) if args.exc_value is not None else None
    app()


if __name__ == "__main__":
    run()
