"""Databases with hostile functions, operators, casts, types and relations, none of which the program may run.

Every statement of the package is collected from its source, so that a new one cannot be forgotten here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql

import rdsrepl as package
from rdsrepl import apply
from rdsrepl.config import Target
from rdsrepl.lsn import Lsn
from rdsrepl.plan import Statement
from rdsrepl.postgres import connection, slot_plans, slots, verification, wal
from rdsrepl.snapshot import table_store
from rdsrepl.snapshot.state import StreamIdentity, TablePlace
from tests.fixtures.postgres import Database, Servers, drop_database, new_database
from tests.fixtures.program import Program

_BEGINS: Final = re.compile(
    r"[\s(]*(SELECT|WITH|INSERT INTO|UPDATE|DELETE FROM|CREATE|ALTER|DROP|GRANT|REVOKE|SHOW|(?:LEFT )?JOIN|WHERE|CASE"
    r"|coalesce\(|pg_\w+\()\s*[\w\s(\"{]"
)
_PLACE: Final = re.compile(r"%s|%\(\w+\)s|%%|\{\{|\}\}|\{\w*\}")
_SYSTEM_RELATION: Final = re.compile(r"\b(?:FROM|JOIN|INTO|UPDATE)\s+pg_(?!catalog\.)\w+\b(?!\s*\()")
_BARE_CALL: Final = re.compile(r"\bSELECT pg_(?!catalog\.)\w+\(")
# These run on new servers, or in databases of the demo.
_ELSEWHERE: Final = ("sandbox/", "cli/demo.py")


@dataclass(frozen=True)
class Constant:
    """An SQL text in the source of the package."""

    path: str
    line: int
    text: str
    on_foreign_path: bool = False
    printed: bool = False

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {' '.join(self.text.split())[:70]}"

    @property
    def sent(self) -> re.Pattern[str]:
        """The parts of it that appear in the log of the server."""
        parts: list[str] = []
        position = 0
        for place in _PLACE.finditer(self.text):
            parts.append(_words(self.text[position : place.start()]))
            found = place[0]
            # %% becomes %, and the number of a placeholder depends on the whole statement.
            parts.append({"%%": "%{1,2}", "{{": r"\{", "}}": r"\}"}.get(found, r"\$\d+" if found[0] == "%" else ".*?"))
            position = place.end()
        return re.compile("".join([*parts, _words(self.text[position:])]).strip())

    @property
    def is_complete(self) -> bool:
        """Whether it is a complete statement."""
        return re.match(r"\s*(SELECT|WITH \w)", self.text) is not None and not re.search(r"(?<!\{)\{\w*\}", self.text)

    @property
    def has_expressions(self) -> bool:
        """Whether the server looks up names for it, besides those that are inserted."""
        if self.path == "verify/folded_stream.py" or self.text.startswith("ALTER SUBSCRIPTION"):
            return False  # for SQLite; options only
        return re.search(r"\w\(|[-+*/<>=~!|]|\b(FROM|JOIN) \w|::", self.text) is not None


def _words(text: str) -> str:
    return re.sub(r"(\\?\s)+", " ", re.escape(re.sub(r"\s+", " ", text)))


def collect() -> Iterator[Constant]:
    """Return every SQL text of the package."""
    root = Path(package.__file__).parent
    for path in sorted(root.rglob("*.py")):
        source = path.read_text()
        tree = ast.parse(source)
        place = str(path.relative_to(root))
        foreign = _on_foreign_path(tree) if "own_path" in source else set[int]()
        left_out, printed = set[int](), set[int]()
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):  # a message: the linter lets no SQL be formatted
                left_out |= {id(part) for part in ast.walk(node)}
            elif (
                isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "sql"
            ):  # to be pasted into psql
                printed |= {id(part) for part in ast.walk(node)}
            elif isinstance(node, ast.Expr):  # a docstring
                left_out.add(id(node.value))
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in left_out:
                continue
            if _BEGINS.match(node.value) and "…" not in node.value:
                first = place == "postgres/session.py"  # sent before the path is set
                yield Constant(place, node.lineno, node.value, first or id(node) in foreign, id(node) in printed)


def _on_foreign_path(tree: ast.Module) -> set[int]:
    """Return the constants that run with the search_path of the role, or set it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        inside: list[ast.AST] = []
        if isinstance(node, ast.With) and any("own_path" in ast.unparse(item.context_expr) for item in node.items):
            inside = [*node.body]
        elif isinstance(node, ast.FunctionDef) and node.name == "own_path":
            inside = [node]
        elif isinstance(node, ast.Call) and any(keyword.arg == "own_path" for keyword in node.keywords):
            inside = [*node.args]
        names |= {name.id for part in inside for name in ast.walk(part) if isinstance(name, ast.Name)}
    names = {name for name in names if name.isupper()}
    found: set[int] = set()
    for node in ast.walk(tree):
        target: ast.expr | None = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(node, ast.Assign):
            target = node.targets[0]
        if isinstance(target, ast.Name) and target.id in names:
            found |= {id(part) for part in ast.walk(node)}
    return found


@cache
def constants() -> list[Constant]:
    """Return them from the first call: not every worker runs these tests."""
    return list(collect())


_SCHEMA: Final = """
CREATE SCHEMA evil;
CREATE SEQUENCE evil.ran;
CREATE FUNCTION evil.trip(what text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_catalog.nextval('evil.ran'::pg_catalog.regclass);  -- not undone by a rollback
    RAISE EXCEPTION 'hostile code ran: %', what;
END $$;
CREATE TYPE evil.thing AS (v text);
"""
# Functions, operators and types with the names of system objects, in a schema before pg_catalog.
_SAME: Final = """
DO $do$
DECLARE
    r record;
BEGIN
    FOR r IN SELECT p.oid, p.proname, pg_get_function_identity_arguments(p.oid) AS args,
                    pg_get_function_result(p.oid) AS result
               FROM pg_proc p WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = ANY (%(words)s)
    LOOP
        BEGIN
            EXECUTE format('CREATE FUNCTION evil.%%I(%%s) RETURNS %%s LANGUAGE plpgsql AS %%L', r.proname, r.args,
                           r.result, format('BEGIN PERFORM evil.trip(%%L); END', 'function ' || r.proname));
        EXCEPTION WHEN others THEN NULL;  -- of a type that plpgsql cannot have
        END;
    END LOOP;
    FOR r IN SELECT o.oprname, o.oprleft::regtype AS l, o.oprright::regtype AS r, o.oprresult::regtype AS result
               FROM pg_operator o WHERE o.oprnamespace = 'pg_catalog'::regnamespace AND o.oprname = ANY (%(operators)s)
                AND o.oprleft <> 0
    LOOP
        BEGIN
            EXECUTE format('CREATE FUNCTION evil.%%I(%%s, %%s) RETURNS %%s LANGUAGE plpgsql AS %%L', 'op' || r.oprname,
                           r.l, r.r, r.result,
                           format('BEGIN PERFORM evil.trip(%%L); END', format('%%s %%s %%s', r.l, r.oprname, r.r)));
            EXECUTE format('CREATE OPERATOR evil.%%s (FUNCTION = evil.%%I, LEFTARG = %%s, RIGHTARG = %%s)', r.oprname,
                           'op' || r.oprname, r.l, r.r);
        EXCEPTION WHEN others THEN NULL;
        END;
    END LOOP;
    FOR r IN SELECT c.relname FROM pg_class c
              WHERE c.relnamespace = 'pg_catalog'::regnamespace AND c.relname = ANY (%(words)s)
                AND c.relkind IN ('r', 'v')
    LOOP
        EXECUTE format('CREATE VIEW evil.%%I AS SELECT evil.trip(%%L) AS tripped', r.relname, r.relname);
    END LOOP;
    FOR r IN SELECT t.typname FROM pg_type t
              WHERE t.typnamespace = 'pg_catalog'::regnamespace AND t.typname = ANY (%(words)s) AND t.typtype = 'b'
    LOOP
        EXECUTE format('CREATE DOMAIN evil.%%I AS pg_catalog.%%I CHECK (evil.trip(%%L))', r.typname, r.typname,
                       'type ' || r.typname);
    END LOOP;
END $do$
"""
# Operators that match better than those of the system, in a schema on every path; and casts.
_BETTER: Final = """
DO $do$
DECLARE
    types CONSTANT regtype[] := '{text,name,integer,bigint,oid,boolean,"char",timestamptz,interval,pg_lsn,xid,jsonb,
                                  numeric,text[],name[],regclass}';
    l regtype; r regtype; o text; body text;
BEGIN
    FOREACH l IN ARRAY types LOOP
        IF l = ANY ('{integer,name,oid,timestamptz,pg_lsn}'::regtype[]) THEN
            EXECUTE format('CREATE FUNCTION evil.to_thing(%s) RETURNS evil.thing LANGUAGE plpgsql AS %L', l,
                           'BEGIN PERFORM evil.trip(''cast''); END');
            EXECUTE format('CREATE CAST (%s AS evil.thing) WITH FUNCTION evil.to_thing(%s) AS IMPLICIT', l, l);
        END IF;
        FOREACH r IN ARRAY types LOOP
            body := format('BEGIN PERFORM evil.trip(%L); END', format('%s . %s', l, r));
            EXECUTE format('CREATE FUNCTION evil.any(%s, %s) RETURNS boolean LANGUAGE plpgsql AS %L', l, r, body);
            EXECUTE format('CREATE FUNCTION evil.joined(%s, %s) RETURNS text LANGUAGE plpgsql AS %L', l, r, body);
            FOREACH o IN ARRAY ARRAY['=', '<>', '<', '>', '>=', '~', '!~', '-', '||', '->>'] LOOP
                IF NOT EXISTS (SELECT FROM pg_operator WHERE oprname = o AND oprleft = l AND oprright = r) THEN
                    EXECUTE format('CREATE OPERATOR public.%s (FUNCTION = evil.%I, LEFTARG = %s, RIGHTARG = %s)', o,
                                   CASE WHEN o IN ('-', '||', '->>') THEN 'joined' ELSE 'any' END, l, r);
                END IF;
            END LOOP;
        END LOOP;
    END LOOP;
END $do$
"""
_TABLES: Final = (
    "CREATE TABLE public.orders (id integer PRIMARY KEY, kind text, n integer)",
    "CREATE TYPE public.mood AS ENUM ('sad', 'ok')",
    "CREATE TYPE public.pair AS (a integer, b text)",
    "CREATE TABLE public.things (id serial PRIMARY KEY, m public.mood, p public.pair, l integer[], ms public.mood[])",
    "CREATE TABLE public.moods (m public.mood PRIMARY KEY)",
    "CREATE TABLE public.parts (id integer PRIMARY KEY) PARTITION BY RANGE (id)",
    "CREATE TABLE public.part1 PARTITION OF public.parts FOR VALUES FROM (0) TO (10)",
    "CREATE TABLE public.log (a integer, b text)",
    "CREATE TABLE public.beats (slot_name text PRIMARY KEY, beat_at timestamptz NOT NULL)",
    "CREATE PUBLICATION shop FOR TABLE public.orders, public.things",
    "CREATE PUBLICATION everything FOR ALL TABLES WITH (publish_via_partition_root)",
)
# The owner of a type decides how it is cast to text and json.
_CASTS: Final = """
DO $do$
DECLARE
    l regtype; r regtype;
BEGIN
    FOREACH l IN ARRAY '{public.mood,public.pair}'::regtype[] LOOP
        FOREACH r IN ARRAY '{text,json,jsonb,character varying}'::regtype[] LOOP
            EXECUTE format('CREATE FUNCTION evil.from_%s(%s) RETURNS %s LANGUAGE plpgsql AS %L', r::oid, l, r,
                           'BEGIN PERFORM evil.trip(''cast of a type''); END');
            EXECUTE format('CREATE CAST (%s AS %s) WITH FUNCTION evil.from_%s(%s) AS IMPLICIT', l, r, r::oid, l);
        END LOOP;
    END LOOP;
END $do$
"""
# Settings of a role or database that the program depends on.
_SETTINGS: Final = (
    "datestyle = 'German'",
    "intervalstyle = 'sql_standard'",
    "timezone = 'America/St_Johns'",
    "standard_conforming_strings = off",
    "quote_all_identifiers = on",
    "bytea_output = 'escape'",
    "extra_float_digits = -15",
    "default_transaction_isolation = 'serializable'",
    "idle_in_transaction_session_timeout = '1ms'",
    "row_security = on",
    "search_path = evil, public, pg_catalog",
)


def hostile(made: Database) -> None:
    """Create hostile objects and settings in a database."""
    words = sorted({word for constant in constants() for word in re.findall(r"[a-z_]\w*", constant.text)})
    operators = sorted({sign for constant in constants() for sign in re.findall(r"[-+*/<>=~!@#%^&|]+", constant.text)})
    with closing(made.connect()) as conn:
        for statement in _TABLES:
            conn.execute(statement.encode())
        conn.execute("SET search_path = pg_catalog")
        conn.execute(_SCHEMA.encode())
        given = {"words": sql.Literal(words), "operators": sql.Literal(operators)}
        text = _SAME.replace("%%", "%")
        for name, value in given.items():
            text = text.replace(f"%({name})s", value.as_string(conn))
        conn.execute(_BETTER.encode())
        conn.execute(_CASTS.encode())
        conn.execute(text.encode())
        conn.execute(f"ALTER DATABASE {made.name} SET log_statement = 'all'".encode())
        for setting in _SETTINGS:
            conn.execute(f"ALTER DATABASE {made.name} SET {setting}".encode())


def disarm(made: Database) -> None:
    """Reset the record of hostile code that ran."""
    with closing(made.connect()) as conn:
        conn.execute("ALTER SEQUENCE evil.ran RESTART")


def tripped(made: Database) -> bool:
    """Say whether hostile code ran."""
    with closing(made.connect()) as conn:
        row = conn.execute("SELECT r.is_called FROM evil.ran AS r").fetchone()
        assert row is not None
        return bool(row[0])


@pytest.fixture(scope="module", params=[15, 18], ids=["pg15", "pg18"])
def victim(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Database]:
    """A database with hostile objects, on each version."""
    made = new_database(servers.get(request.param))
    hostile(made)
    yield made
    drop_database(made)


def _snapshot_state(victim: Database) -> None:
    """Create, write and read a table with the state of snapshots."""
    place, owner = TablePlace("rdsrepl", "snapshots"), StreamIdentity("1", victim.name, "s")
    with connection.open(victim.target) as conn:
        apply.run(table_store.creation(conn, place), victim.target, done=lambda _: None, waiting=lambda *_: None)
        with closing(table_store.open_store(place, owner, victim.target)) as store:
            store.load()
            store.save(())
        assert table_store.read(conn, place, owner) == ()


def test_no_hostile_code_runs(victim: Database, rdsrepl: Program) -> None:
    """A superuser runs every statement of the package in the database of another role."""
    start = victim.server.log_file.stat().st_size
    disarm(victim)
    name = victim.name
    failed: list[str] = []

    def run(*words: str, allowed: tuple[int, ...] = (0,)) -> None:
        result = rdsrepl(*words, dsn=victim.dsn)
        if result.code not in allowed:
            failed.append(f"{' '.join(words)}: {result.code} {result.err}")

    dry = "--dry-run"
    run("slot", "create", name, "--plugin", "pgoutput", dry)
    run("slot", "create", name, "--plugin", "pgoutput", "--yes")
    run("slot", "list")
    run("slot", "show", name)
    run("slot", "lag", name)
    run("slot", "check", allowed=(0, 8, 9))
    run("slot", "prune", "--slot", name, dry, allowed=(0, 4))
    run("slot", "advance", name, "--to-current", dry)
    run("slot", "drop", name, dry)
    run("doctor", allowed=(0, 8, 9))
    run("publication", "list")
    run("publication", "show", "shop")
    run("publication", "check", allowed=(0, 8, 9))
    run("publication", "check", "everything", allowed=(0, 8, 9))
    filtered = ("--table", "orders", "--columns", "orders=id,n", "--where", "orders: n > 3")
    run("publication", "create", "more", *filtered, dry)
    run("publication", "create", "more", *filtered, "--yes")
    run("publication", "create", "whole", "--schema", "public", dry)
    run("publication", "add", "more", "--table", "things", "--yes")
    run("publication", "remove", "more", "--table", "things", "--yes")
    run("publication", "drop", "more", "--yes")
    run("role", "list")
    run("role", "create", name, "--no-password", "--grant-select", "orders", "--schema", "public", "--yes")
    run("role", "grant", name, "--grant-select", "things", "--schema", "public", dry)
    run("role", "drop", name, dry, allowed=(0, 4))

    with closing(psycopg.connect(f"{victim.dsn} options='-c search_path=pg_catalog'", autocommit=True)) as conn:
        conn.execute("INSERT INTO public.orders VALUES (1, 'a', 5)")
        conn.execute("INSERT INTO public.moods VALUES ('ok')")
        conn.execute("INSERT INTO public.things (m, p, l) VALUES ('ok', '(1,x)', '{1,2}')")
    beat = ("--heartbeat", "1s", "--heartbeat-table", "beats")
    tail = ("slot", "tail", name, "--publication", "shop", "--until-now")
    run(*tail, "--no-confirm", "--format", "wal2json", *beat)
    request = ("snapshot", "start", "--slot", name, "--table", "orders", "--where", "n > 3")
    run(*request, dry)
    run(*request, "--yes", "--id", "hostile")
    run(*tail, "--heartbeat", "1s", "--table", "order")
    run("snapshot", "list")
    run("snapshot", "cancel", "hostile", "--slot", name, dry, allowed=(0, 4))
    run("slot", "advance", name, "--to-current", "--yes")
    assert verification.settings({"wal_level": "logical"}).probe(victim.target).met
    assert verification.ServerProbe({"wal_level": "logical"}).needs_restart(victim.target) is False
    with connection.open(victim.target) as conn:
        here, slot = wal.get(conn), slots.get(conn, name)
        behind = replace(slot, confirmed_flush_lsn=Lsn(1))
        stale = slot_plans.drop(slot, server=here, saved=datetime(2000, 1, 1, tzinfo=UTC)).steps[0]
        assert isinstance(stale, Statement) and conn.execute(stale.sql).fetchone() is None, "it was written since"
        steps = (
            *slot_plans.create(conn, f"{name}_b", plugin="pgoutput").steps,
            *slot_plans.drop(slot, server=here).steps,
            *slot_plans.advance(behind, None, server=here).steps,
        )
        for step in steps:  # what is sent only when something breaks
            assert isinstance(step, Statement)
            for query in (step.undo, step.done_if):
                if query is not None:
                    conn.execute(query)
            if step.blockers is not None:
                conn.execute(step.blockers.encode())
        _statements_about_two_servers(conn, name)
    _snapshot_state(victim)
    run("slot", "drop", name, "--yes")
    run("role", "drop", name, "--yes")
    copy = new_database(victim.server)
    try:
        copy.run(*(table for table in _TABLES if " TABLE " in table or " TYPE " in table))
        more = ("--to", copy.dsn, "--no-changes", "--columns")
        run("verify", *more, allowed=(9,))
        run("verify", *more, "--publication", "shop", "--table", "orders", allowed=(9,))
        run("verify", *more, "--table", "orders", "--repair", "--yes")
    finally:
        drop_database(copy)
    assert failed == []
    assert not tripped(victim)

    log = victim.server.log_file.read_bytes()[start:].decode(errors="replace")
    sent = re.sub(r"\s+", " ", log)
    expected = [constant for constant in constants() if constant.has_expressions and not constant.printed]
    missing = [constant for constant in expected if not constant.sent.search(sent)]
    with connection.open(victim.target) as conn:
        for constant in [constant for constant in missing if constant.is_complete]:
            execute(conn, constant)
            missing.remove(constant)
    assert not tripped(victim)
    unknown = "failover = {" if victim.server.version < 17 else "\0"
    assert [
        str(constant)
        for constant in missing
        if not constant.path.startswith(_ELSEWHERE) and unknown not in constant.text
    ] == []


def _statements_about_two_servers(conn: Any, name: str) -> None:
    """Send what is sent when two servers or a consumer are there."""
    from rdsrepl.postgres import (
        commit_visibility,
        json_casts,
        slot_alter_plans,
        standbys,
        subscriptions,
        table_structures,
    )
    from rdsrepl.snapshot import chunk_table, chunks, tables
    from rdsrepl.verify import stream_rows

    here, slot = wal.get(conn), slots.get(conn, name)
    subscriptions.publishers(conn)
    subscriptions.received(conn)
    reached = sql.SQL(standbys._ADVANCE).format(reached=sql.SQL("pg_catalog.pg_current_wal_lsn()"))
    given = {"name": name, "plugin": "pgoutput", "lsn": Lsn(1), "in_recovery": False, "started_at": here.started_at}
    conn.execute(reached, given)
    literals = {"name": sql.Literal(name), "pid": sql.Literal(0), "command": sql.Literal("ALTER")}
    conn.execute(sql.SQL(slot_alter_plans._HOLDER).format(literals["name"]))
    conn.execute(sql.SQL(slot_alter_plans._TERMINATE).format(**literals))
    if here.version >= 17:
        done_if = slot_alter_plans.alter(conn, slot, failover=True, server=here, target=Target("x")).steps[0].done_if
        conn.execute(done_if)
    with conn.transaction():
        for check in chunks.condition_checks(chunk_table.describe(conn, ("public", "orders"), ["shop"]), "n > 3"):
            conn.execute(check)
        commit_visibility.wait_until_visible(conn, lambda: True)
        found = tables.ls(conn, ["shop"], lambda *name: name == ("public", "orders"))
        tables.ranges(conn, [replace(one, parts=((("public", "orders"), 9_999),)) for one in found], 2, by_pages=False)
        (table,) = table_structures.ls(conn, [("public", "things")])
        shapes = json_casts.ls(conn, table.full_name)
        assert shapes == {"m": "value", "ms": "array", "p": "other"}
        assert list(stream_rows._source_rows(conn, table, ("id",), shapes, lambda rows: None))


def test_what_runs_on_a_foreign_path_names_every_schema(victim: Database) -> None:
    """Statements that run before the path is set, and those that read the path of the role."""
    found = [constant for constant in constants() if constant.on_foreign_path]
    assert len(found) >= 5
    options = "-c idle_in_transaction_session_timeout=0"
    with closing(psycopg.connect(victim.dsn, options=options, autocommit=True)) as conn:
        for constant in found:
            execute(conn, constant)
        with pytest.raises(psycopg.errors.RaiseException, match="hostile code ran"):
            conn.execute("SELECT c.relname || 1 FROM pg_catalog.pg_class AS c")
    assert tripped(victim)  # by the last one: the trap works


def test_a_catalogue_relation_is_named_with_its_schema() -> None:
    """A temporary table comes before pg_catalog in every path."""
    bare = [str(constant) for constant in constants() if _SYSTEM_RELATION.search(constant.text)]
    assert bare == []


def test_what_is_printed_for_psql_names_the_schema() -> None:
    """A superuser can paste it into a session with any path."""
    root = Path(package.__file__).parent
    bare: list[str] = []
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            messages = isinstance(node, ast.JoinedStr) or (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) in ("sql", "errors.Refused", "critical", "warning")
            )
            parts = ast.walk(node) if messages else ()
            for part in parts:
                if isinstance(part, ast.Constant) and isinstance(part.value, str) and _BARE_CALL.search(part.value):
                    bare.append(f"{path.relative_to(root)}:{part.lineno}: {part.value}")
    assert bare == []


def execute(conn: psycopg.Connection[Any], constant: Constant) -> None:
    """Run a statement without parameters and roll it back."""
    names = re.findall(r"%\((\w+)\)s", constant.text)
    given: Any = dict.fromkeys(names) if names else [None] * constant.text.count("%s")
    with conn.transaction(force_rollback=True):
        conn.execute(constant.text.encode(), given or None)


def test_a_row_filter_reads_no_constant_of_a_user_defined_type(victim: Database, rdsrepl: Program) -> None:
    """The input of an array or a range of a domain runs the CHECK of the domain while the server parses."""
    statements = (
        "CREATE DOMAIN public.sly AS text CHECK (evil.trip('a domain in a constant'))",
        "CREATE TYPE public.span AS RANGE (subtype = public.sly)",
        "CREATE TYPE public.box2 AS (a public.sly)",
        "CREATE TABLE public.typed (id int PRIMARY KEY, l public.sly[], s public.span, b public.box2, d public.sly)",
    )
    with closing(victim.connect()) as conn:
        conn.execute("SET search_path = pg_catalog")
        for statement in statements:
            conn.execute(statement.encode())
    disarm(victim)

    def refused(predicate: str) -> str:
        where = ("--table", "public.typed", "--where", f"public.typed: {predicate}")
        result = rdsrepl("publication", "create", "sly", *where, "--dry-run", dsn=victim.dsn)
        return result.err if result.code == 2 else ""

    for predicate, why in {
        "l = '{x}'": "column l is of type public.sly[]",
        "id > 1 AND TYPED . s = '[a,b]'": "column s is of type public.span",
        "public.typed.d = 'x'": "column d is of type public.sly",
        "coalesce(typed, '(1,{x},,,)') IS NULL": "cannot read a whole row",
        "coalesce(typed.*, '(1,{x},,,)') IS NULL": "typed with a dot",
        "coalesce(public.typed, '(1,{x},,,)') IS NULL": "not public.typed",
        "'(x)'::public.box2 IS NULL": "not public.box2",
        "id OPERATOR(public.=) '{x}'": "public with a dot",
        "evil.trip('x')": "not evil.trip",
    }.items():
        assert why in refused(predicate), predicate
    assert not tripped(victim)
    for predicate in ("public.typed.id > 1.5", "typed.id OPERATOR(pg_catalog.>) 1", "id::pg_catalog.int8 > 1"):
        assert refused(predicate) == ""
