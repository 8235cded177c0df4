"""Save a plan to a file (``--out``), and require that ``rdsrepl apply`` runs exactly that plan.

A step holds functions, so a file cannot contain it. The file contains the command and the texts of the steps. When it
is applied, the command plans again on the same server, and every step must have the same text. Statements on slots
contain the state of the slot and of the server, so a slot that was used in between has another text.

Some values are chosen at each planning: the current position of the server, the slots that are idle by now. ``pinned``
stores such a value in the file and returns it again. Warnings and reasons may differ: they contain ages and sizes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from rdsrepl import __version__, config
from rdsrepl.cli.context import SELECTORS, SERVER_OPTIONS, apply_options, global_options
from rdsrepl.config import Target
from rdsrepl.config.target import SECRETS
from rdsrepl.errors import AppliedInPart, BadPlanFile, BadValue, Error, NotFound, OutcomeUnknown, PlanChanged, Refused
from rdsrepl.text.commands import typed
from rdsrepl.text.escapes import json_text
from rdsrepl.text.masking import mask

if TYPE_CHECKING:
    from rdsrepl.cli.plan_view import PlanTarget
    from rdsrepl.plan import Plan
    from rdsrepl.state.plan_files import PlanFile

#: Where a context keeps the file whose plan its command applies.
APPLYING: Final = "rdsrepl.plan_file"
_PINS: Final = "rdsrepl.pins"
_WORDS: Final = "rdsrepl.verb_words"
_OWN: Final = "rdsrepl.own_target"
_ADDRESS: Final = ("host", "port", "dbname", "user", "region", "profile")
# Keys of a step that may differ between two plannings, and those that a step has after it was applied.
_NOT_COMPARED: Final = frozenset({"reason", "returned"})
_MAX_DIFFERENCES: Final = 20
_CONTEXT_WORDS: Final = 2


def being_applied(ctx: typer.Context) -> PlanFile | None:
    """Return the file whose plan this command applies; None if it applies its own plan."""
    file: PlanFile | None = ctx.meta.get(APPLYING)
    return file


def pinned(ctx: typer.Context, name: str, value: str) -> str:
    """Return a value that the plan depends on: the one in the file that is applied, otherwise VALUE.

    ``--out`` stores it under NAME.
    """
    file = being_applied(ctx)
    chosen = value if file is None else file.plan.pins.get(name, value)
    ctx.meta.setdefault(_PINS, {})[name] = chosen
    return str(chosen)


def keep_verb(ctx: typer.Context, given: Mapping[str, Any], added: frozenset[str]) -> None:
    """Keep the options and operands of a command as they were typed, without the options of every command.

    Args:
        ctx: the command's context.
        given: what the parser found, as text, by the name of the parameter.
        added: the parameters of every command, which are not kept.
    """
    options: list[str] = []
    operands: list[str] = []
    for parameter in ctx.command.params:
        value = given.get(str(parameter.name))
        # A confirmation is given when the plan is applied.
        if value is None or parameter.name in added or parameter.name == "confirm":
            continue
        if parameter.param_type_name == "argument":
            operands += [value] if isinstance(value, str) else list(value)
        elif isinstance(value, bool):
            options.append(max(parameter.opts if value else parameter.secondary_opts, key=len))
        else:
            flag = max(parameter.opts, key=len)
            options += [f"{flag}={one}" for one in ([value] if isinstance(value, str) else value)]
    ctx.meta[_WORDS] = [*options, *(["--", *operands] if operands else [])]


def save(ctx: typer.Context, plan: Plan, server: PlanTarget | None, target: Target) -> Path:
    """Write a plan to the file of ``--out``; return its path.

    Raises:
        BadValue: the command line contains a secret.
        BadPlanFile: the file is something else than a plan, or could not be written.
    """
    from rdsrepl.state import audit, plan_files

    path = Path(str(apply_options(ctx).out))
    assert ctx.parent is not None
    words = (str(ctx.parent.info_name), str(ctx.info_name), *ctx.meta[_WORDS])
    if any(mask(word) != word for word in words):
        raise BadValue("the command line contains a secret, and a plan file must not", hint="omit --out, or the secret")
    saved = plan_files.SavedPlan(
        created_at=plan_files.now(),
        created_by=audit.user_and_host(),
        created_with=__version__,
        command=words,
        options=_selectors(ctx),
        server=None if server is None else asdict(server),
        identity=_identity(plan, target),
        pins=dict(ctx.meta.get(_PINS, {})),
        plan=_plain(plan, server),
        own=_own_address(ctx, target),
    )
    plan_files.write(path, saved)
    return path


def require_same_address(ctx: typer.Context, target: Target) -> Target:
    """Return the target of a command, if it is the one of the plan that the command applies.

    Raises:
        Refused: the config file or the environment now lead to another server.
    """
    ctx.meta[_OWN] = target
    file = being_applied(ctx)
    own = None if file is None else file.plan.own or file.plan.server
    if file is not None and own is not None and own.get("host") is not None:
        from rdsrepl.postgres import conninfo

        _require_same_server(file, asdict(conninfo.address(target)), saved=own)
    return target


def require_same(ctx: typer.Context, plan: Plan, server: PlanTarget | None, target: Target) -> None:
    """Require that a plan is the one in the file that is applied; do nothing for a command that applies its own plan.

    Raises:
        Refused: the plan is for another server, or was applied.
        PlanChanged: the steps differ.
    """
    file = being_applied(ctx)
    if file is None:
        return
    if server is not None and file.plan.server is not None:
        _require_same_server(file, asdict(server))
        _require_same_server(file, _identity(plan, target), saved=file.plan.identity)
    if file.applied is not None:
        raise Refused(
            f"the plan in {file.path} was applied at {file.applied.at} by {file.applied.by}", hint=_again(file)
        )
    differences = _differences(file.plan.plan["steps"], _plain(plan, server)["steps"]) if plan else []
    if differences:
        raise PlanChanged(
            f"{plan.title}: the server changed since the plan was saved at {file.plan.created_at}; nothing was changed",
            hint=_again(file),
            differences=differences,
        )


@contextmanager
def marked_applied(ctx: typer.Context) -> Iterator[None]:
    """Record in the file that its plan is applied, before the first step; remove that if no step changed anything.

    Raises:
        Refused: the file could not be written; nothing was changed.
    """
    file = being_applied(ctx)
    if file is None:
        yield
        return
    file.mark_applied()
    try:
        yield
    except Error as exc:
        changed = isinstance(exc, OutcomeUnknown) or (isinstance(exc, AppliedInPart) and bool(exc.done or exc.not_done))
        if not changed:
            with suppress(BadPlanFile):  # the error of the plan is the one to report
                file.mark_not_applied()
        raise


def with_password(options: Mapping[str, str], dsn: str | None) -> dict[str, str]:
    """Return the options of a saved plan, with DSN, which may contain a password, if it is the dsn of the plan."""
    is_same = bool(dsn) and "dsn" in options and _without_secrets(str(dsn)) == options["dsn"]
    return {**options, "dsn": str(dsn)} if is_same else dict(options)


def _require_same_server(
    file: PlanFile, now: Mapping[str, str | None], *, saved: Mapping[str, str | None] | None = None
) -> None:
    before = file.plan.server if saved is None else saved
    assert before is not None
    names = [name for name in now if (saved is not None or name in _ADDRESS) and before.get(name) != now[name]]
    if names:
        values = [(name.replace("_", " "), before.get(name) or "-", now[name] or "-") for name in names]
        differing = "; ".join(f"{name} {old}, now {new}" for name, old, new in values)
        raise Refused(
            f"the plan in {file.path} is for another server: {differing}",
            hint="unset PGHOST and similar variables, or check the target in the config file; or plan again with --out",
        )


def _own_address(ctx: typer.Context, target: Target) -> dict[str, str | None] | None:
    """Return the address of the command's own server; None if the plan is applied to that server."""
    own: Target = ctx.meta.get(_OWN, target)
    if own == target:
        return None
    from rdsrepl.postgres import conninfo

    return asdict(conninfo.address(own))


def _again(file: PlanFile) -> str:
    options = [f"--{name}={value}" for name, value in file.plan.options.items()]
    line = typed((*options, *_before_operands(file.plan.command, f"--out={file.path}")))
    return "plan again with --out" if line is None else f"plan again: {line}"


def _before_operands(words: tuple[str, ...], option: str) -> list[str]:
    at = words.index("--") if "--" in words else len(words)
    return [*words[:at], option, *words[at:]]


def _selectors(ctx: typer.Context) -> dict[str, str]:
    """Return the options that lead to the command's server: those that were given, or the current target."""
    options, usable = global_options(ctx), getattr(ctx.command, "server_options", frozenset(SERVER_OPTIONS))
    given = {name: getattr(options, name) for name in SERVER_OPTIONS if name in usable and getattr(options, name)}
    if "dsn" in given:
        given["dsn"] = _without_secrets(given["dsn"])
    current = config.load().current
    if current is not None and not given.keys() & set(SELECTORS) and "target" in usable:
        given = {"target": current, **given}
    return given


def _without_secrets(dsn: str) -> str:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    try:
        return make_conninfo("", **{key: value for key, value in conninfo_to_dict(dsn).items() if key not in SECRETS})
    except psycopg.ProgrammingError:  # the command reports it
        return dsn


def _identity(plan: Plan, target: Target) -> dict[str, str | None]:
    """Return what tells this server from another one with the same name; None for what is not readable."""
    from rdsrepl.plan import Statement

    identity: dict[str, str | None] = {}
    if any(isinstance(step, Statement) for step in plan.steps):
        from rdsrepl.postgres import connection, server_identity

        with connection.open(target) as conn:
            identity["system_identifier"] = server_identity.system_identifier(conn)
    if target.aws.identifier is not None:
        identity |= _rds_identity(target)
    if any(not isinstance(step, Statement) for step in plan.steps) and identity.get("resource_id") is None:
        identity["account"] = _account(target)
    return identity


def _rds_identity(target: Target) -> dict[str, str | None]:
    """Return the ID that RDS gave the cluster or instance, and the writer of a cluster; None if the plan creates it."""
    from rdsrepl.aws import clusters, instances

    try:
        if target.aws.cluster is None:
            return {"resource_id": instances.get(target.aws, str(target.aws.instance)).resource_id}
        cluster = clusters.get(target.aws, target.aws.cluster)
    except NotFound:
        return {"resource_id": None}
    return {"resource_id": cluster.resource_id, "writer": cluster.writer}


def _account(target: Target) -> str | None:
    from rdsrepl.aws import session

    try:
        return str(session.call(target.aws, "sts", "GetCallerIdentity", {})["Account"])
    except Error:
        return None


def _plain(plan: Plan, server: PlanTarget | None) -> dict[str, Any]:
    """Return a plan as the file contains it, so that it can be compared with the file."""
    from rdsrepl.cli.plan_view import document
    from rdsrepl.render import document as to_json

    status = "planned" if plan else "unchanged"
    value: dict[str, Any] = json.loads(json_text(to_json(document(plan, server, status))))
    return value


def _differences(saved: list[dict[str, Any]], planned: list[dict[str, Any]]) -> list[str]:
    """Return each step that is not planned any more, is new, or has another text."""
    lines: list[str] = []
    for kind, a, b, c, d in _opcodes([one["summary"] for one in saved], [one["summary"] for one in planned]):
        if kind == "equal":
            for before, after in zip(saved[a:b], planned[c:d], strict=True):
                lines += _differing_values(before, after)
        else:
            lines += [f"no longer planned: {one['summary']}" for one in saved[a:b]]
            lines += [f"not in the saved plan: {one['summary']}" for one in planned[c:d]]
    more = len(lines) - _MAX_DIFFERENCES
    return lines if more <= 0 else [*lines[:_MAX_DIFFERENCES], f"and {more} more"]


def _differing_values(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    names = [name for name in {**before, **after} if name not in _NOT_COMPARED]
    return [
        f"{after['summary']}: {name}: {_difference(_text(before.get(name)), _text(after.get(name)))}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _opcodes(before: list[str], after: list[str]) -> list[tuple[str, int, int, int, int]]:
    from difflib import SequenceMatcher

    return list(SequenceMatcher(None, before, after, autojunk=False).get_opcodes())


def _text(value: object) -> str:
    return value if isinstance(value, str) else json_text(value)


def _difference(before: str, after: str) -> str:
    """Return the words that differ between two texts, each with the words in front of it."""
    old, new = before.split(), after.split()
    parts = []
    for kind, a, b, c, d in _opcodes(old, new):
        if kind != "equal":
            parts.append(" ".join([*old[max(0, a - _CONTEXT_WORDS) : a], *old[a:b], "->", *new[c:d]]))
    return "; ".join(parts)
