"""Check the row filter of a publication before the server sees it (manual, section 31.4)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from rdsrepl import errors
from rdsrepl.postgres.error_mapping import translate
from rdsrepl.postgres.relations import COLUMNS, Relation
from rdsrepl.postgres.sql_names import parse_name

if TYPE_CHECKING:
    from psycopg.sql import Composed

    from rdsrepl.postgres.connection import Connection


_SYSTEM_COLUMNS: Final = frozenset({"tableoid", "ctid", "xmin", "xmax", "cmin", "cmax"})
# PostgreSQL's lexical rules (manual, section 4.1), as far as a row filter needs them.
_TOKEN: Final = re.compile(
    r"""(?P<space>\s+)
      | (?P<comment>--|/\*)
      | (?P<text>[eE]'(?:[^'\\]|''|\\.)*' | '(?:[^']|'')*' | \$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$)
      | (?P<quoted>"(?:[^"]|"")+")
      | (?P<parameter>\$\d+)
      | (?P<word>[^\W\d][\w$]*)
      | (?P<number>\d[\w.]*)
      | (?P<open>\() | (?P<close>\)) | (?P<end>;) | (?P<unfinished>['"$])
      | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
# The type of a column, unless it is built in.
_COLUMN_TYPES: Final = """
SELECT attname::text, CASE WHEN atttypid >= 16384 THEN pg_catalog.format_type(atttypid, atttypmod) END
  FROM pg_catalog.pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped
"""
_USER_DEFINED: Final = """
SELECT pg_catalog.format('%%I.%%I', n.nspname, o.name)
  FROM (SELECT typname, typnamespace, oid FROM pg_catalog.pg_type
        UNION ALL SELECT proname, pronamespace, oid FROM pg_catalog.pg_proc) AS o (name, namespace, oid)
  JOIN pg_catalog.pg_namespace n ON n.oid = o.namespace
  JOIN ROWS FROM (pg_catalog.unnest(%(schemas)s::text[]), pg_catalog.unnest(%(names)s::text[])) AS g (schema, name)
    ON g.schema = n.nspname AND g.name = o.name
 WHERE o.oid >= 16384 LIMIT 1
"""
# The names before a parenthesis that are functions and not built-in immutable ones.
_NOT_IMMUTABLE: Final = """
SELECT p.proname::text FROM pg_catalog.pg_proc p
 WHERE p.proname = ANY (%s)
   AND NOT EXISTS (SELECT FROM pg_get_keywords() k WHERE k.word = p.proname AND k.catcode = 'R')
 GROUP BY 1 HAVING NOT bool_or(p.provolatile = 'i' AND p.oid < 16384) ORDER BY 1
"""


def are_equal(one: str | None, other: str | None) -> bool:
    """Say whether two row filters differ at most in spaces, case and parentheses around the whole."""
    return _tokens(one or "") == _tokens(other or "")


def _tokens(predicate: str) -> list[str]:
    """Return the tokens of a filter without parentheses around the whole."""
    tokens = [token for token in _TOKEN.finditer(predicate) if token.lastgroup != "space"]
    words = [token[0].lower() if token.lastgroup == "word" else token[0] for token in tokens]
    while words[:1] == ["("] and words[-1:] == [")"]:
        depth = 0
        for position, word in enumerate(words):
            depth += {"(": 1, ")": -1}.get(word, 0)
            if depth == 0 and position < len(words) - 1:
                return words
        words = words[1:-1]
    return words


def check_predicate(
    conn: Connection, relation: Relation, predicate: str, *, is_immutable: bool = True
) -> tuple[str, ...]:
    """Make sure that a filter is one boolean expression and nothing else; return the columns that it reads.

    Args:
        conn: the database.
        relation: the table.
        predicate: the filter.
        is_immutable: whether it may call immutable functions only, as PostgreSQL requires of a publication's.

    Raises:
        BadValue: it is something else.
    """
    import psycopg
    from psycopg import sql

    words, called, paths = _words(relation, predicate)
    _require_built_in(conn, relation, paths, predicate)
    table = sql.Identifier(relation.schema, relation.name)
    try:
        _prepare(conn, sql.SQL("SELECT 1 FROM {}").format(table), predicate)
    except psycopg.Error as exc:
        cause = translate(exc)
        if isinstance(cause, errors.Denied | errors.Unreachable):
            raise cause from exc
        raise _bad_predicate(relation, cause.message, predicate, cause.sqlstate) from exc
    mutable = [name for (name,) in conn.execute(_NOT_IMMUTABLE, (sorted(called),))]
    if mutable and is_immutable:
        reason = f"the condition may call built-in immutable functions only, not {', '.join(mutable)}"
        raise _bad_predicate(relation, reason, predicate)
    columns = [name for (name, _) in conn.execute(COLUMNS, (relation.oid,))]
    read: list[str] = []
    for column in columns:
        if column not in words:
            continue
        # The word may also name a type. It names the column if the filter fails without that column.
        others = sql.SQL(", ").join(sql.Identifier(other) for other in columns if other != column)
        source = sql.SQL("SELECT 1 FROM (SELECT {} FROM {}) AS {}").format(others, table, sql.Identifier(relation.name))
        try:
            _prepare(conn, source, predicate)
        except psycopg.errors.ProgrammingError:
            read.append(column)
    return tuple(read)


def _require_built_in(conn: Connection, relation: Relation, paths: set[tuple[str, ...]], predicate: str) -> None:
    """Make sure, before the server parses a filter, that it uses only built-in types, functions and operators.

    PostgreSQL refuses others in a row filter, but only after it has evaluated the constants. A comparison with an array
    or a range of a domain runs the CHECK of the domain, with the privileges of this role.

    Args:
        conn: the database.
        relation: the table.
        paths: the names in the filter, each with its qualifiers; ``""`` stands for a ``*``.
        predicate: the filter, for the message.

    Raises:
        BadValue: it uses others.
    """
    own: dict[str, str | None] = dict(conn.execute(_COLUMN_TYPES, (relation.oid,)))
    for path in sorted(paths):
        if path == (relation.name,) and relation.name not in own:
            raise _bad_predicate(relation, "the condition cannot read a whole row", predicate)
        if path[-1] == "" and path != ("pg_catalog", ""):
            raise _bad_predicate(relation, f"{'.'.join(path[:-1])} with a dot is not followed by a name", predicate)
        column = own.get(path[-1]) if len(path) == 1 or path[-2] == relation.name else None
        if column is not None:
            reason = f"the condition may use built-in types only, and column {path[-1]} is of type {column}"
            raise _bad_predicate(relation, reason, predicate)
    pairs = sorted(path for path in paths if len(path) == 2)
    given = {"schemas": [schema for schema, _ in pairs], "names": [name for _, name in pairs]}
    if pairs and (row := conn.execute(_USER_DEFINED, given).fetchone()):
        raise _bad_predicate(
            relation, f"the condition may use built-in types, functions and operators only, not {row[0]}", predicate
        )


def _prepare(conn: Connection, source: Composed, predicate: str) -> None:
    """Let the server parse and analyze a filter without running it, in a read-only transaction that is rolled back."""
    import psycopg
    from psycopg import sql

    probe = source + sql.SQL(" WHERE ({}\n)").format(sql.SQL(predicate))
    with conn.transaction(force_rollback=True):
        conn.execute("SET TRANSACTION READ ONLY")
        result = conn.pgconn.prepare(b"", probe.as_bytes(None))
        if result.status != psycopg.pq.ExecStatus.COMMAND_OK:
            raise psycopg.errors.error_from_result(result)


def _words(relation: Relation, predicate: str) -> tuple[set[str], set[str], set[tuple[str, ...]]]:
    """Split a filter into tokens as the lexer of PostgreSQL does.

    Returns:
        The names in it; the names before a parenthesis; and all names with their qualifiers: ``n`` is
        ``("n",)``, ``t.n`` is ``("t", "n")``, and ``t.*`` is ``("t", "")``.

    Raises:
        BadValue: it closes more parentheses than it opens, or is not a single expression.
    """
    words: set[str] = set()
    called: set[str] = set()
    paths: list[tuple[str, ...]] = []
    depth, last, may_go_on = 0, "", False
    reasons = {
        "comment": "a comment",
        "parameter": "a parameter",
        "end": "a semicolon",
        "unfinished": "an unterminated string or name",
    }
    for token in _TOKEN.finditer(predicate):
        kind = token.lastgroup or "other"
        kind = "text" if kind == "tag" else kind
        if kind == "space":
            continue
        if kind in reasons:
            raise _bad_predicate(relation, f"it contains {reasons[kind]}", predicate)
        if kind == "open":
            depth += 1
            if last:
                called.add(last)
        elif kind == "close":
            depth -= 1
            if depth < 0:
                break
        last = ""
        if kind in ("word", "quoted"):
            (last,) = parse_name(token[0])
            paths.append((*paths.pop()[:-1], last) if may_go_on and paths[-1][-1] == "" else (last,))
            words.add(last)
            if last in _SYSTEM_COLUMNS:
                raise _bad_predicate(relation, f"the condition cannot read the system column {last}", predicate)
            if kind == "word" and last == "select":
                raise _bad_predicate(relation, "the condition cannot contain a subquery", predicate)
        elif token[0] == "." and may_go_on:
            paths[-1] = (*paths[-1], "")
        may_go_on = kind in ("word", "quoted") or (token[0] == "." and may_go_on)
    if depth != 0:
        raise _bad_predicate(relation, "its parentheses do not match", predicate)
    return words, called, set(paths)


def _bad_predicate(relation: Relation, reason: str, predicate: str, sqlstate: str | None = None) -> errors.BadValue:
    return errors.BadValue(
        f"--where {relation.quoted}: {reason}", hint=f"correct the condition: {predicate}", sqlstate=sqlstate
    )
