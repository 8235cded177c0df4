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
    _open_missing_streams()
    if sys.argv[1:] == ["--version"]:
        from rdsrepl import __version__

        sys.stdout.write(f"rdsrepl {__version__}\n")
        return
    import threading

    from rdsrepl.cli.main import app
    from rdsrepl.render import write_traceback
    from rdsrepl.text.escapes import escape_unencodable

    escape_unencodable(sys.stdout, sys.stderr)
    # Python's own would show the secrets in messages; the first thread's errors are `app`'s.
    threading.excepthook = lambda args: write_traceback(args.exc_value) if args.exc_value is not None else None
    try:
        if is_heeded:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        app()
    except KeyboardInterrupt:
        sys.exit(130)


def _open_missing_streams() -> None:
    """Put ``/dev/null`` where stdin, stdout or stderr was closed.

    The next file that is opened, a connection or the audit trail, would get its number, and what is printed with it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            while (descriptor := os.open(os.devnull, os.O_RDWR)) < number:
                pass
            if descriptor > number:  # it is open, but not for us
                os.close(descriptor)
            mode = "w" if number else "r"
            setattr(sys, name, open(number if descriptor == number else os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


if __name__ == "__main__":
    run()
