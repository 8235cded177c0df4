"""``rdsrepl demo``: the whole path on a sandbox of its own, each command named before it runs."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from rdsrepl.cli.options import Reader, duration_option, shared
from rdsrepl.errors import Error

if TYPE_CHECKING:
    from rdsrepl.config import Target

Verb = Reader

_TABLES: Final = (
    "CREATE TABLE customers (id integer PRIMARY KEY, name text NOT NULL, email text)",
    "CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer integer REFERENCES customers, "
    "item text, amount numeric(10,2), paid boolean NOT NULL DEFAULT false)",
    "INSERT INTO customers VALUES (1, 'Ada', 'ada@example.com'), (2, 'Grace', NULL), (3, 'Edgar', 'ted@example.com')",
)
_WORK: Final = (
    "INSERT INTO orders (customer, item, amount) VALUES (1 + %(n)s %% 3, 'item ' || %(n)s, 9.99 + %(n)s)",
    "UPDATE orders SET paid = true WHERE id = (SELECT max(id) FROM orders)",
    "UPDATE customers SET email = 'n' || %(n)s || '@example.com' WHERE id = 1 + %(n)s %% 3",
    "DELETE FROM orders WHERE id = (SELECT min(id) FROM orders) AND (SELECT count(*) FROM orders) > 5",
)
_PAUSE_SECONDS: Final = 0.25
_DROP_PASSWORD: Final = ("PGPASSWORD", "PGSERVICE", "PGHOSTADDR", "PGSSLMODE", "RDSREPL_DSN", "RDSREPL_TARGET")


class DemoFailed(Error):
    """A step of the demo did not end well; the sandbox was taken down."""


def demo(
    ctx: typer.Context,
    seconds: Annotated[
        float,
        duration_option("--duration", help="How long the stream is shown."),
    ] = 6.0,
) -> None:
    """Walk the whole path on a sandbox of its own: role, publication, slot, live changes, clean-up.

    Nothing of yours is touched: the servers run on loopback in a temporary directory, which is removed at the end.

    Example: rdsrepl demo
    """
    with tempfile.TemporaryDirectory(prefix="rdsrepl-demo-") as directory:
        run = _Demo(ctx, Path(directory))
        try:
            run.walk(seconds)
        finally:
            run.leave()


class _Demo:
    """Runs the program's own commands, one after the other, in a configuration of the demo's own."""

    def __init__(self, ctx: typer.Context, directory: Path) -> None:
        self._quiet = shared(ctx).quiet
        self._colour = sys.stdout.isatty() and not shared(ctx).no_color and "NO_COLOR" not in os.environ
        kept = {key: value for key, value in os.environ.items() if key not in _DROP_PASSWORD}
        self._env = {
            **kept,
            "RDSREPL_CONFIG": str(directory / "config.yaml"),
            "RDSREPL_SANDBOX_DIR": str(directory / "sandbox"),
        }
        self._passfile = directory / "pgpass"
        self._up = False
        self._directory = directory

    def walk(self, seconds: float) -> None:
        """Run all steps.

        Raises:
            DemoFailed: one of them failed.
        """
        self._say("1. A writer and a standby: real PostgreSQL servers with RDS's roles, on loopback.")
        self._up = True
        self._run("sandbox", "up")
        target = self._target()
        self._say("2. An application with two tables, as any other.")
        _execute(target, *_TABLES)

        self._say("3. A role that may replicate through rds_replication, as on RDS, and read the tables.")
        created = self._json("role", "create", "cdc", "--generate-password", "--schema", "public", "--yes")
        self._passfile.touch(mode=0o600)
        self._passfile.write_text(f"*:*:*:cdc:{created['password']}\n")

        self._say("4. What is published, and whether all of it can be.")
        self._run(
            "-t", "sandbox", "publication", "create", "shop", "--table", "customers", "--table", "orders", "--yes"
        )
        self._run("-t", "sandbox", "publication", "check", "shop", allowed=(0, 8))

        self._say("5. The slot: shown before it is made, then made.")
        self._run("-t", "sandbox", "slot", "create", "shop_cdc", "--plugin", "pgoutput", "--dry-run")
        self._run("-t", "sandbox", "slot", "create", "shop_cdc", "--plugin", "pgoutput", "--yes")

        self._say(f"6. The stream, as role cdc, while the application works for {seconds:g} s.")
        keywords = target.keywords
        dsn = f"host={keywords['host']} port={keywords['port']} dbname={keywords['dbname']} user=cdc"
        tail = ("--dsn", dsn, "slot", "tail", "shop_cdc", "--publication", "shop", "--format", "pretty")
        with _working(target):
            self._run(*tail, "--duration", f"{seconds:g}s", env={"PGPASSFILE": str(self._passfile)})

        self._say("7. Where the slot stands: what it keeps on the server is what a forgotten slot would pile up.")
        self._run("-t", "sandbox", "slot", "list")

        self._say("8. The same as JSON, for programs: what came after the stream ended, not consumed.")
        _execute(target, "INSERT INTO orders (customer, item, amount) VALUES (2, 'the last one', 1.10)")
        self._run(
            "--dsn", dsn, "slot", "peek", "shop_cdc", "--publication", "shop", "--limit", "1", "--format", "json",
            env={"PGPASSFILE": str(self._passfile)},
        )  # fmt: skip

        self._say("9. Clean-up: the slot first, for it is what costs.")
        self._run("-t", "sandbox", "slot", "drop", "shop_cdc", "--yes")
        self._run("-t", "sandbox", "publication", "drop", "shop", "--yes")
        self._run("-t", "sandbox", "role", "drop", "cdc", "--yes")

    def leave(self) -> None:
        """Take the sandbox down, however the walk ended."""
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
        """Run a command whose result is needed; its password is used here, and not shown."""
        self._show(("-t", "sandbox", *words))
        command = [*_program(), "-t", "sandbox", "-o", "json", *words]
        done = subprocess.run(command, env=self._env, stdout=subprocess.PIPE, text=True, check=False)
        self._check(words, done.returncode, (0,))
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def _check(self, words: tuple[str, ...], code: int, allowed: tuple[int, ...]) -> None:
        if code not in allowed:
            raise DemoFailed(
                f"the demo stopped: rdsrepl {shlex.join(words)} ended with {code}",
                hint="its message stands above; please report it if it makes no sense",
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


@contextlib.contextmanager
def _working(target: Target) -> Iterator[None]:
    """Let an application work: a small transaction four times a second."""
    done = threading.Event()

    def work() -> None:
        from rdsrepl.postgres import connection

        with contextlib.suppress(Error), connection.open(target) as conn:
            number = 0
            while not done.wait(_PAUSE_SECONDS):
                with conn.transaction():
                    conn.execute(_WORK[number % len(_WORK)].encode(), {"n": number})
                number += 1

    thread = threading.Thread(target=work, name="application", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
