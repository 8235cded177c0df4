"""Where the program starts: the ``rdsrepl`` command, and ``python -m rdsrepl``."""

from __future__ import annotations

import os
import signal
import sys


def run() -> None:
    """Start the program; the version is said without building the whole command line first.

    Ctrl-C ends it with 130 and no word from the first moment on. While modules are imported, an exception would come
    out of the middle of some other library's code, which may print or swallow it; nothing has been done then that
    would have to be ended in order.
    """
    is_heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # "nohup" and "&" have it ignored
    if is_heeded:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    if sys.argv[1:] == ["--version"]:
        from rdsrepl import __version__

        sys.stdout.write(f"rdsrepl {__version__}\n")
        return
    import threading

    from rdsrepl.cli.main import app
    from rdsrepl.render import write_traceback

    # Python's own would show the secrets in messages; the first thread's errors are `app`'s.
    threading.excepthook = lambda args: write_traceback(args.exc_value) if args.exc_value is not None else None
    try:
        if is_heeded:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        app()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    run()
