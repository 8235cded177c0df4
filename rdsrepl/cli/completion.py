"""Complete names in the shell: from the cache, else from the server or AWS. Quick, silent, and empty on failure.

A cached answer imports neither psycopg nor boto3. A question times out after ``_TIMEOUT_SECONDS``, whether name
resolution, a sign-in or a server hangs. A failure is cached for a few seconds, so that the next Tab does not wait
again. ``confirm_and_apply`` clears the cache; a change made elsewhere is seen when the entry expires: after 30 seconds
for objects of a database, after 5 minutes for AWS resources.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NoReturn

import typer

from rdsrepl.cli.context import GlobalOptions, global_options

if TYPE_CHECKING:
    from rdsrepl.config import Aws
    from rdsrepl.postgres.connection import Connection

VARIABLE: Final = "_RDSREPL_COMPLETE"

# The user waits after pressing Tab.
_CALL_TIMEOUT_SECONDS: Final = 2
_TIMEOUT_SECONDS: Final = 4.0
_DATABASE_SECONDS: Final = 30.0
_AWS_SECONDS: Final = 300.0
_FAILURE_SECONDS: Final = 5.0

# Names that a shell takes as one word and does not interpret: the creator of a publication chooses its name.
_PLAIN: Final = re.compile(r"[\w.:/@%+,-][\w.:/@%+,=-]*")
# bash splits words at these (COMP_WORDBREAKS).
_BREAKS: Final = re.compile(r"[:=@]+")
_SECRET_VARIABLE: Final = re.compile(r"PASSWORD|SECRET|TOKEN")


def complete_target() -> list[str]:
    """Complete the name of a target."""
    from rdsrepl import config

    try:
        return sorted(config.load().targets)
    except Exception:  # noqa: BLE001 - completion prints no errors
        return []


def complete_slot(ctx: typer.Context) -> list[str]:
    """Complete the name of a logical slot."""
    return _from_database(ctx, "logical slots", _logical_slots)


def complete_any_slot(ctx: typer.Context) -> list[str]:
    """Complete the name of a slot, logical or physical."""
    return _from_database(ctx, "slots", _slots)


def complete_publication(ctx: typer.Context) -> list[str]:
    """Complete the name of a publication."""
    return _from_database(ctx, "publications", _publications)


def complete_table(ctx: typer.Context) -> list[str]:
    """Complete the full name of a table."""
    return _from_database(ctx, "tables", _tables)


def complete_published_table(ctx: typer.Context) -> list[str]:
    """Complete the full name of a published table."""
    return _from_database(ctx, "published tables", _published_tables)


def complete_snapshot(ctx: typer.Context) -> list[str]:
    """Complete the ID of a snapshot, from the state on this machine."""
    return _from_database(ctx, "snapshots", _snapshots)


def complete_role(ctx: typer.Context) -> list[str]:
    """Complete the name of a role."""
    return _from_database(ctx, "roles", _roles)


def complete_cluster(ctx: typer.Context) -> list[str]:
    """Complete the identifier of a DB cluster."""
    return _from_aws(ctx, "clusters", _clusters)


def complete_instance(ctx: typer.Context) -> list[str]:
    """Complete the identifier of a DB instance."""
    return _from_aws(ctx, "instances", _instances)


def complete_param_group(ctx: typer.Context) -> list[str]:
    """Complete the name of a custom parameter group; default groups cannot be changed and are left out."""
    return _from_aws(ctx, "parameter groups", _param_groups)


def complete_stream(ctx: typer.Context) -> list[str]:
    """Complete the name of a data stream."""
    return _from_aws(ctx, "streams", _streams)


def complete_sink(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete the value of ``slot tail --to``; streams are listed once the value begins with ``k``."""
    if not incomplete.startswith("k"):
        return ["-", "file:", "kinesis:"]
    return [f"kinesis:{name}" for name in complete_stream(ctx)]


def complete_plugin() -> list[str]:
    """Complete the name of an output plugin."""
    return ["pgoutput", "wal2json", "test_decoding"]


def complete_profile() -> list[str]:
    """Complete the name of an AWS profile, from the files that boto3 reads, without boto3."""
    from configparser import ConfigParser, Error

    names: set[str] = set()
    for variable, default in (
        ("AWS_CONFIG_FILE", "~/.aws/config"),
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
    ):
        parser = ConfigParser(interpolation=None, strict=False)
        with contextlib.suppress(OSError, UnicodeDecodeError, Error):
            parser.read(os.path.expanduser(os.environ.get(variable) or default), encoding="utf-8")  # noqa: PTH111
        for section in parser.sections():
            kind, _, name = section.rpartition(" ")
            if kind in ("", "profile"):
                names.add(name)
    return _plain(names)


def run(program: Callable[[], object]) -> NoReturn:
    """Answer the shell: run PROGRAM, which prints the completions; stderr stays empty.

    bash splits words at colons, at signs and equals signs. They are joined again, so that a connection URI earlier on
    the line is read correctly, and only the part of each answer that bash adds to the line is printed.
    """
    before = _join_words() if os.environ[VARIABLE] == "complete_bash" else ""
    out, code = io.StringIO(), 0
    with _silent(), contextlib.redirect_stdout(out):
        try:
            program()
        except SystemExit as exc:
            # fish takes from the exit code whether there are completions.
            code = exc.code if isinstance(exc.code, int) else 1
        except (Exception, KeyboardInterrupt):  # noqa: BLE001 - completion prints no errors
            code = 1
    for line in out.getvalue().splitlines():
        sys.stdout.write(line.removeprefix(before) + "\n")
    sys.exit(code)


def _join_words() -> str:
    """Join the words that bash split in ``COMP_WORDS``; return what precedes the piece that bash completes."""
    pieces = os.environ.get("COMP_WORDS", "").split("\n")
    if len(pieces) == 1:  # not from bash's own array
        return ""
    current = int(os.environ.get("COMP_CWORD", "0") or 0)
    words: list[str] = []
    at, glue = len(pieces), False
    before = ""
    for number, piece in enumerate(pieces):
        is_break = number > 0 and _BREAKS.fullmatch(piece) is not None
        joined = bool(words) and (is_break or glue) and piece != ""
        if number == current:
            # To bash, the text after a break is a new piece; the break itself is on the line already.
            before = "" if not joined else words[-1] + (piece if is_break else "")
            at = len(words) - 1 if joined else len(words)
        if joined:
            words[-1] += piece
        else:
            words.append(piece)
        glue = is_break
    # Words after the cursor are ignored.
    os.environ["COMP_WORDS"], os.environ["COMP_CWORD"] = "\n".join(words[: at + 1]), str(at)
    # The parser removes the name of an option.
    return re.sub(r"\A--[\w-]+=", "", before)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Discard what this process and its children, such as credential helpers, write to stderr."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _logical_slots(conn: Connection) -> Iterable[str]:
    from rdsrepl.postgres import slots

    return (slot.slot_name for slot in slots.ls(conn) if slot.slot_type == "logical")


def _slots(conn: Connection) -> Iterable[str]:
    from rdsrepl.postgres import slots

    return (slot.slot_name for slot in slots.ls(conn))


def _publications(conn: Connection) -> Iterable[str]:
    from rdsrepl.postgres import publications

    return (publication.pubname for publication in publications.ls(conn))


def _tables(conn: Connection) -> Iterable[str]:
    from rdsrepl.postgres import relations

    return relations.quoted_tables(conn)


def _published_tables(conn: Connection) -> Iterable[str]:
    from rdsrepl.postgres import publications, table_structures
    from rdsrepl.snapshot.requests import table_text

    names = [publication.pubname for publication in publications.ls(conn)]
    return (table_text(*name) for name in table_structures.published(conn, names))


def _snapshots(conn: Connection) -> Iterable[str]:
    from rdsrepl.snapshot import table_store
    from rdsrepl.snapshot.state import FilePlace

    known = table_store.read_slots(conn, FilePlace(), None)
    return (one.request.id for states in known.values() for one in states or ())


def _roles(conn: Connection) -> Iterable[str]:
    from rdsrepl.postgres import roles

    return (role.rolname for role in roles.ls(conn))


def _clusters(aws: Aws) -> Iterable[str]:
    from rdsrepl.aws import clusters

    return (cluster.cluster_id for cluster in clusters.ls(aws))


def _instances(aws: Aws) -> Iterable[str]:
    from rdsrepl.aws import instances

    return (instance.instance_id for instance in instances.ls(aws))


def _param_groups(aws: Aws) -> Iterable[str]:
    from rdsrepl.aws import parameter_groups

    return {group.name for group in parameter_groups.ls(aws) if not group.is_default}


def _streams(aws: Aws) -> Iterable[str]:
    from rdsrepl.aws import streams

    return streams.ls(aws)


def _from_database(ctx: typer.Context, kind: str, read: Callable[[Connection], Iterable[str]]) -> list[str]:
    """Return the names that READ returns from the database that the incomplete command names."""
    from rdsrepl.text.masking import mask

    options = _expanded(global_options(ctx))
    identity = {
        "dsn": None if options.dsn is None else mask(options.dsn),
        "cluster": options.cluster,
        "instance": options.instance,
        **_identity_key(options),
    }

    def ask() -> Iterable[str]:
        from rdsrepl.aws import locations
        from rdsrepl.cli.targets import aws_target
        from rdsrepl.postgres import connection

        target = locations.with_rds_lookup(aws_target(ctx))
        target = replace(target, keywords={**target.keywords, "connect_timeout": str(_CALL_TIMEOUT_SECONDS)})
        with connection.open(target, settings={"statement_timeout": f"{_CALL_TIMEOUT_SECONDS}s"}) as conn:
            return list(read(conn))

    return _cached(ctx, options, {"kind": kind, **identity}, ask, _DATABASE_SECONDS)


def _from_aws(ctx: typer.Context, kind: str, read: Callable[[Aws], Iterable[str]]) -> list[str]:
    """Return the names that READ returns from the AWS account that the incomplete command names."""
    options = _expanded(global_options(ctx))
    # With a connection string the current target is ignored, and so is its account.
    identity = {"dsn": options.dsn is not None, **_identity_key(options)}

    def ask() -> Iterable[str]:
        from rdsrepl.cli.targets import aws_target

        return list(read(aws_target(ctx).aws))

    return _cached(ctx, options, {"kind": kind, **identity}, ask, _AWS_SECONDS)


def _cached(
    ctx: typer.Context, options: GlobalOptions, key: dict[str, Any], ask: Callable[[], Iterable[str]], seconds: float
) -> list[str]:
    from rdsrepl.state import completion_cache

    text = json.dumps(key, sort_keys=True)
    names = completion_cache.read(text, now=time.time())
    if names is None:
        ctx.find_root().obj = ctx.obj = options
        answer = _within(_TIMEOUT_SECONDS, ask)
        names = [] if answer is None else _plain(answer)
        completion_cache.write(text, names, seconds=_FAILURE_SECONDS if answer is None else seconds, now=time.time())
    return _plain(names)


def _within(seconds: float, ask: Callable[[], Iterable[str]]) -> list[str] | None:
    """Return what ASK returns; None when it fails or times out: then its thread ends with the process."""
    from threading import Thread

    answers: list[list[str]] = []

    def work() -> None:
        # A failure of any kind means no completions.
        with contextlib.suppress(Exception):
            from rdsrepl.aws import session

            with session.short_timeouts(_CALL_TIMEOUT_SECONDS):
                answers.append(list(ask()))

    thread = Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None


def _identity_key(options: GlobalOptions) -> dict[str, Any]:
    """Return the rest of the cache key: options and environment without secrets, and the config file's identity."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("PG", "AWS_")) and not _SECRET_VARIABLE.search(name)
    }
    from rdsrepl.config.paths import config_path

    path = config_path()
    try:
        status = path.stat()
        file: list[Any] = [str(path), status.st_ino, status.st_size, status.st_mtime_ns]
    except OSError:
        file = [str(path)]
    return {
        "target": options.target,
        "profile": options.profile,
        "region": options.region,
        "config": file,
        "environment": environment,
    }


def _expanded(options: GlobalOptions) -> GlobalOptions:
    """Return the options with ``$VARIABLES`` expanded: the shell has not expanded an incomplete line yet."""
    names = ("target", "dsn", "profile", "region", "cluster", "instance")
    given = {name: os.path.expandvars(value) for name in names if (value := getattr(options, name))}
    return replace(options, **given)


def _plain(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if _PLAIN.fullmatch(name))
