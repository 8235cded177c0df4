"""``rdsrepl demo``: run the whole path on a temporary sandbox; each command is printed before it runs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from rdsrepl.cli.context import global_options
from rdsrepl.cli.options import duration_option
from rdsrepl.errors import Error

if TYPE_CHECKING:
    from rdsrepl.config import Target


_TABLES: Final = (
    "CREATE TABLE public.customers (id integer PRIMARY KEY, name text NOT NULL, email text)",
    "CREATE TABLE public.orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer integer "
    "REFERENCES public.customers, item text, amount numeric(10,2), paid boolean NOT NULL DEFAULT false)",
    "INSERT INTO public.customers "
    "VALUES (1, 'Ada', 'ada@example.com'), (2, 'Grace', NULL), (3, 'Edgar', 'ted@example.com')",
)
_WORK: Final = (
    "INSERT INTO public.orders (customer, item, amount) VALUES (1 + %(n)s %% 3, 'order ' || %(n)s, 9.99 + %(n)s)",
    "UPDATE public.orders SET paid = true WHERE id = (SELECT max(id) FROM public.orders)",
    "UPDATE public.customers SET email = 'n' || %(n)s || '@example.com' WHERE id = 1 + %(n)s %% 3",
    "DELETE FROM public.orders WHERE id = (SELECT min(id) FROM public.orders) "
    "AND (SELECT count(*) FROM public.orders) > 5",
)
_PAUSE_SECONDS: Final = 0.25
_REMOVED_VARIABLES: Final = ("PGPASSWORD", "PGSERVICE", "PGHOSTADDR", "PGSSLMODE", "RDSREPL_DSN", "RDSREPL_TARGET")


class DemoFailed(Error):
    """A step of the demo failed; the sandbox was stopped."""


def demo(
    ctx: typer.Context, seconds: Annotated[float, duration_option("--duration", help="Stream for this long.")] = 8.0
) -> None:
    """Run the whole path on a temporary sandbox: parameter group, reboot, role, slot, stream, failover, clean-up.

    Your servers and files are not touched: the sandbox runs on loopback in a temporary directory, which is removed.

    Example: rdsrepl demo
    """
    with tempfile.TemporaryDirectory(prefix="rdsrepl-demo-") as directory:
        steps = _Demo(ctx, Path(directory))
        try:
            steps.run(seconds)
        finally:
            steps.stop_sandbox()


class _Demo:
    """Runs rdsrepl commands one after the other, with a temporary configuration."""

    def __init__(self, ctx: typer.Context, directory: Path) -> None:
        self._quiet = global_options(ctx).quiet
        self._colour = sys.stdout.isatty() and not global_options(ctx).no_color and "NO_COLOR" not in os.environ
        kept = {key: value for key, value in os.environ.items() if key not in _REMOVED_VARIABLES}
        self._env = {
            **kept,
            "RDSREPL_CONFIG": str(directory / "config.yaml"),
            "RDSREPL_SANDBOX_DIR": str(directory / "sandbox"),
            # The sandbox restarts a server within a second; RDS takes minutes.
            "RDSREPL_POLL_INTERVAL": os.environ.get("RDSREPL_POLL_INTERVAL") or "1s",
        }
        self._passfile = directory / "pgpass"
        self._up = False
        self._directory = directory

    def run(self, seconds: float) -> None:
        """Run all steps.

        Raises:
            DemoFailed: a step failed, or a change is missing.
        """
        target = self._start_sandbox()
        self._turn_on_logical_replication()
        dsn = self._create_role_publication_and_slot(target)
        self._stream_through_failover(target, dsn, seconds)
        self._inspect_the_slot(target, dsn)
        self._stream_to_kinesis(target)
        self._clean_up()

    def _start_sandbox(self) -> Target:
        self._say("1. Start a Multi-AZ DB cluster in the sandbox: real PostgreSQL servers on loopback, and an RDS API.")
        self._up = True
        self._run("sandbox", "up", "--default-group")
        return self._target()

    def _turn_on_logical_replication(self) -> None:
        self._say("2. Check whether it is ready for logical replication. With the default parameter group it is not.")
        self._run("-t", "sandbox", "doctor", allowed=(8, 9))
        self._say("3. Create a parameter group with all the values needed: show the plan and why, then apply it.")
        size = ("param-group", "create", "shop-logical", "--slots", "4")
        self._run("-t", "sandbox", *size, "--dry-run")
        self._run("-t", "sandbox", *size, "--yes")
        self._say("4. Attach the group, reboot each server in the safe order, and verify the result over SQL.")
        self._run("-t", "sandbox", "param-group", "attach", "shop-logical", "--reboot", "--yes")
        self._run("-t", "sandbox", "cluster", "show", "sandbox")

    def _create_role_publication_and_slot(self, target: Target) -> str:
        """Create what a stream needs; return the connection string of the role that reads it."""
        self._say("5. Create two tables, and a role that may replicate through rds_replication, as on RDS.")
        _execute(target, *_TABLES)
        created = self._json("role", "create", "cdc", "--generate-password", "--schema", "public", "--yes")
        self._passfile.touch(mode=0o600)
        self._passfile.write_text(f"*:*:*:cdc:{created['password']}\n")
        self._say("6. Create a publication, check that everything in it can be replicated, and create the slot.")
        self._run(
            "-t", "sandbox", "publication", "create", "shop", "--table", "customers", "--table", "orders", "--yes"
        )
        self._run("-t", "sandbox", "publication", "check", "shop", allowed=(0, 8))
        self._run("-t", "sandbox", "slot", "create", "shop_cdc", "--plugin", "pgoutput", "--yes")
        keywords = target.keywords
        return f"host={keywords['host']} port={keywords['port']} dbname={keywords['dbname']} user=cdc"

    def _stream_through_failover(self, target: Target, dsn: str, seconds: float) -> None:
        self._say(
            f"7. Stream as role cdc for {seconds:g} s, with a failover in the middle. Delivery is at least once: "
            "the slot on the new writer is a little behind, so some changes are delivered twice."
        )
        tail = ("--dsn", dsn, "slot", "tail", "shop_cdc", "--publication", "shop", "--format", "pretty")
        self._stream(tail, target, seconds)

    def _inspect_the_slot(self, target: Target, dsn: str) -> None:
        self._say("8. Check again. Only information is left.")
        self._run("-t", "sandbox", "doctor", allowed=(0, 8))
        self._say("9. Show the slot: how much WAL it retains, and how far its consumer is behind.")
        self._run("-t", "sandbox", "slot", "list")
        self._run("-t", "sandbox", "slot", "lag", "shop_cdc")
        self._say("10. Print a change as JSON, for programs, without consuming it.")
        _execute(target, "INSERT INTO public.orders (customer, item, amount) VALUES (2, 'the last one', 1.10)")
        self._run(
            "--dsn", dsn, "slot", "peek", "shop_cdc", "--publication", "shop", "--limit", "1", "--format", "json",
            env={"PGPASSFILE": str(self._passfile)},
        )  # fmt: skip

    def _stream_to_kinesis(self, target: Target) -> None:
        self._say("11. Stream the same slot to Kinesis, confirmed when Kinesis has it, and read it back.")
        self._run("-t", "sandbox", "stream", "create", "shop", "--shards", "2", "--yes")
        _execute(
            target,
            "INSERT INTO public.orders (customer, item, amount) SELECT 1, 'in bulk', n FROM generate_series(1, 5) n",
        )
        to_kinesis = ("slot", "tail", "shop_cdc", "--publication", "shop", "--to", "kinesis:shop", "--until-now")
        self._run("-t", "sandbox", *to_kinesis)
        self._run("-t", "sandbox", "stream", "tail", "shop", "--from", "trim-horizon", "--limit", "6")
        self._run("-t", "sandbox", "stream", "delete", "shop", "--confirm", "shop")

    def _clean_up(self) -> None:
        self._say("12. Try to prune the slot. It is refused: the slot was active a moment ago.")
        self._run("-t", "sandbox", "slot", "prune", "--slot", "shop_cdc", "--dry-run", allowed=(4,))
        self._say("13. Drop the slot first, because it retains WAL. Delete the cluster with a final snapshot.")
        self._run("-t", "sandbox", "slot", "drop", "shop_cdc", "--yes")
        self._run("-t", "sandbox", "publication", "drop", "shop", "--yes")
        self._run("-t", "sandbox", "role", "drop", "cdc", "--yes")
        self._run(
            "-t", "sandbox", "cluster", "delete", "sandbox", "--final-snapshot", "shop-final", "--confirm", "sandbox"
        )
        self._run("-t", "sandbox", "param-group", "delete", "shop-logical", "--yes")

    def _stream(self, tail: tuple[str, ...], target: Target, seconds: float) -> None:
        """Tail the slot while an application writes and the cluster fails over; every order must arrive.

        Raises:
            DemoFailed: the tail failed, or an order is missing.
        """
        words = (*tail, "--idle-exit", "3s")
        self._show(words)
        env = {**self._env, "PGPASSFILE": str(self._passfile)}
        reader = subprocess.Popen([*_program(), *words], env=env, stdout=subprocess.PIPE, text=True)
        seen = _TailOutput(reader, quiet=self._quiet)
        work = _Application(target)
        try:
            with work:
                time.sleep(seconds / 2)
                self._run("-t", "sandbox", "cluster", "failover", "sandbox", "--yes")
                time.sleep(seconds / 2)
            self._check(words, seen.finish(), (0,))
        finally:
            reader.terminate()
        missing = work.committed - seen.orders
        if missing:
            raise DemoFailed(f"{len(missing)} of {len(work.committed)} orders are missing in the stream")
        if not self._quiet:
            print(
                f"All {len(work.committed)} committed orders were delivered; "
                f"the longest pause, during the failover, was {seen.longest_pause_seconds:.1f} s."
            )

    def stop_sandbox(self) -> None:
        """Stop the sandbox, after a failure as well."""
        if self._up:
            self._up = False
            self._run("sandbox", "down")

    def _target(self) -> Target:
        from rdsrepl import config

        return config.load(Path(self._env["RDSREPL_CONFIG"])).get("sandbox")

    def _run(self, *words: str, env: Mapping[str, str] | None = None, allowed: tuple[int, ...] = (0,)) -> None:
        self._show(words)
        flags = ["-q"] if self._quiet else []
        code = subprocess.run([*_program(), *flags, *words], env={**self._env, **(env or {})}, check=False).returncode
        self._check(words, code, allowed)

    def _json(self, *words: str) -> dict[str, Any]:
        """Run a command and return its JSON output, which is not printed: it contains the password."""
        self._show(("-t", "sandbox", *words))
        command = [*_program(), "-t", "sandbox", "-o", "json", *words]
        done = subprocess.run(command, env=self._env, stdout=subprocess.PIPE, text=True, check=False)
        self._check(words, done.returncode, (0,))
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def _check(self, words: tuple[str, ...], code: int, allowed: tuple[int, ...]) -> None:
        if code not in allowed:
            raise DemoFailed(
                f"the demo stopped: rdsrepl {shlex.join(words)} exited with {code}",
                hint="read its message above; if that is a defect of rdsrepl, please report it",
            )

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(f"\n\x1b[1m{text}\x1b[0m" if self._colour else f"\n{text}", flush=True)

    def _show(self, words: tuple[str, ...]) -> None:
        if not self._quiet:
            text = f"$ rdsrepl {shlex.join(words)}"
            print(f"\x1b[36m{text}\x1b[0m" if self._colour else text, flush=True)


def _program() -> list[str]:
    return [sys.executable, "-m", "rdsrepl"]


def _execute(target: Target, *statements: str) -> None:
    from rdsrepl.postgres import connection

    with connection.open(target) as conn:
        for statement in statements:
            conn.execute(statement.encode())


class _TailOutput:
    """Prints the output of the tail, and records the orders in it and the longest pause."""

    def __init__(self, reader: subprocess.Popen[str], *, quiet: bool) -> None:
        self.orders: set[int] = set()
        self.longest_pause_seconds = 0.0
        self._reader = reader
        self._quiet = quiet
        self._thread = threading.Thread(target=self._read, name="stream", daemon=True)
        self._thread.start()

    def finish(self) -> int:
        """Wait until the tail ends; return its exit code."""
        self._thread.join()
        return self._reader.wait()

    def _read(self) -> None:
        assert self._reader.stdout is not None
        before: float | None = None
        for line in self._reader.stdout:
            now = time.monotonic()
            if before is not None:
                self.longest_pause_seconds = max(self.longest_pause_seconds, now - before)
            before = now
            if match := re.search(r"\border (\d+)\b", line):
                self.orders.add(int(match[1]))
            if not self._quiet:
                sys.stdout.write(line)
                sys.stdout.flush()


class _Application:
    """An application that commits a small transaction four times a second, and reconnects when needed.

    Attributes:
        committed: the orders whose commit the server has acknowledged.
    """

    def __init__(self, target: Target) -> None:
        self.committed: set[int] = set()
        self._target = target
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="application", daemon=True)

    def __enter__(self) -> _Application:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        from rdsrepl.postgres import connection

        number = 0
        while not self._done.is_set():
            with contextlib.suppress(Error), connection.open(self._target) as conn:
                while not self._done.wait(_PAUSE_SECONDS):
                    number += 1
                    with conn.transaction():
                        conn.execute(_WORK[number % len(_WORK)].encode(), {"n": number})
                    if number % len(_WORK) == 0:
                        self.committed.add(number)
            self._done.wait(_PAUSE_SECONDS)
