"""The entry point of the ``rdsrepl`` command and of ``python -m rdsrepl``."""

from __future__ import annotations

import gc
import os
import signal
import sys


def run() -> None:
    """Run the program; print the version without building the whole command line.

    Ctrl-C ends the process with 130 and without a message at the start. During the imports a KeyboardInterrupt would
    be raised inside another library, which may print or suppress it; no work has begun that needs a clean end.
    """
    is_handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # nohup and "&" ignore SIGINT
    if is_handled:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    _open_missing_streams()
    if sys.argv[1:] == ["--version"]:
        from rdsrepl import __version__

        sys.stdout.write(f"rdsrepl {__version__}\n")
        return
    # Nothing that the imports create is garbage. The root command switches the collector on before it runs a command.
    gc.disable()
    import threading

    from rdsrepl.cli import interrupts, standard_streams
    from rdsrepl.cli.main import app
    from rdsrepl.render import write_traceback

    standard_streams.install()
    # The hook of Python would print secrets; `app` handles the errors of the main thread.
    threading.excepthook = lambda args: write_traceback(args.exc_value) if args.exc_value is not None else None
    try:
        interrupts.install(ctrl_c=is_handled)
        app()
    except KeyboardInterrupt:
        sys.exit(130)


def _open_missing_streams() -> None:
    """Open ``/dev/null`` for a closed stdin, stdout or stderr.

    Otherwise the next file, such as a connection or the audit file, would get its number, and the output with it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            while (descriptor := os.open(os.devnull, os.O_RDWR)) < number:
                pass
            if descriptor > number:  # it is open, but without a Python object
                os.close(descriptor)
            mode = "w" if number else "r"
            setattr(sys, name, open(number if descriptor == number else os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


if __name__ == "__main__":
    run()
