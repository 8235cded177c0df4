"""``rdsrepl role``: manage the roles that may replicate."""

from __future__ import annotations

import sys
import uuid
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rdsrepl.cli.command_classes import ListCommand, ReadCommand, WriteCommand
from rdsrepl.cli.completion import complete_role, complete_table
from rdsrepl.cli.confirm import confirm_and_apply, plan_and_apply
from rdsrepl.cli.console import is_interactive, prompt_password
from rdsrepl.cli.context import apply_options, global_options
from rdsrepl.cli.lists import print_database_list
from rdsrepl.cli.options import flag_option
from rdsrepl.cli.saved_plans import pinned
from rdsrepl.cli.targets import database_target
from rdsrepl.errors import BadValue
from rdsrepl.render import Column, Listing, emit, facts

if TYPE_CHECKING:
    from rdsrepl.postgres.role_details import RoleDetails, RoleSetting, UsedSlot

app = typer.Typer(no_args_is_help=True, help="Roles: manage who may replicate.")


_ATTRIBUTES: Final = {
    "rolcanlogin": "LOGIN",
    "rolsuper": "SUPERUSER",
    "rolreplication": "REPLICATION",
    "rolcreaterole": "CREATEROLE",
    "rolcreatedb": "CREATEDB",
    "rolinherit": "INHERIT",
    "rolbypassrls": "BYPASSRLS",
}

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="The role's name.", autocompletion=complete_role, show_default=False)
]
Tables = Annotated[
    list[str] | None,
    typer.Option(
        "--grant-select",
        metavar="TABLE",
        help="Grant SELECT on this table; may be repeated.",
        autocompletion=complete_table,
    ),
]
Schemas = Annotated[
    list[str] | None,
    typer.Option("--schema", metavar="SCHEMA", help="Grant SELECT on all tables of this schema, future ones as well."),
]


@app.command(cls=WriteCommand)
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new role.", show_default=False)],
    password_stdin: Annotated[
        bool, flag_option("--password-stdin", help="Read the password from standard input.")
    ] = False,
    generate_password: Annotated[
        bool, flag_option("--generate-password", help="Generate a password and print it once.")
    ] = False,
    no_password: Annotated[
        bool, flag_option("--no-password", help="Set no password, for IAM or certificates.")
    ] = False,
    grant_select: Tables = None,
    schema: Schemas = None,
    connection_limit: Annotated[
        int | None, typer.Option("--connection-limit", min=1, metavar="N", help="Allow at most N connections.")
    ] = None,
) -> None:
    """Create a role that may log in and replicate: a member of rds_replication, or with REPLICATION elsewhere.

    The password is prompted for on a terminal. It is sent as a SCRAM verifier, so neither a plan nor the server's log
    contains it.

    Example: rdsrepl role create cdc --generate-password --schema sales
    """
    from rdsrepl.postgres import connection, role_plans, roles

    if sum((password_stdin, generate_password, no_password)) > 1:
        raise BadValue(
            "--password-stdin, --generate-password and --no-password cannot be used together", hint="choose one"
        )
    password: str | None = None
    if not no_password:
        password = _new_password(ctx, name, password_stdin=password_stdin, generate=generate_password, or_none=True)
    target = database_target(ctx)
    with connection.open(target) as conn:
        plan = role_plans.create(
            conn,
            name,
            password=password,
            tables=grant_select or (),
            schemas=schema or (),
            connection_limit=connection_limit,
        )
        is_new = not roles.exists(conn, name)
    reveal = {"password": password} if generate_password and password and is_new else None
    confirm_and_apply(ctx, plan, target=target, reveal=reveal)


@app.command("list", cls=ListCommand)
def list_(
    ctx: typer.Context,
    every: Annotated[bool, flag_option("--all", help="List the roles that may not replicate as well.")] = False,
) -> None:
    """List the roles that may replicate, and why.

    Example: rdsrepl role list --all
    """
    from rdsrepl.postgres import roles

    columns = (
        Column("ROLE", lambda role: role.rolname, "rolname", kind="name"),
        Column("MAY REPLICATE", lambda role: role.may_replicate, "may_replicate"),
        Column("WHY", lambda role: role.reasons, "reasons", priority=2, kind="prose"),
        Column("LOGIN", lambda role: role.rolcanlogin, "rolcanlogin"),
        Column("LIMIT", lambda role: "" if role.rolconnlimit < 0 else role.rolconnlimit, "rolconnlimit", 4, "number"),
        Column("VALID UNTIL", lambda role: role.rolvaliduntil, "rolvaliduntil", priority=3),
    )
    print_database_list(
        ctx,
        Listing(roles.Role, columns, "no role may replicate"),
        lambda conn: [role for role in roles.ls(conn) if every or role.may_replicate],
    )


@app.command(cls=ReadCommand)
def show(ctx: typer.Context, name: Name) -> None:
    """Show a role: why it may replicate, its memberships, limits and settings, and the slots that it uses now.

    Example: rdsrepl role show cdc
    """
    from rdsrepl.postgres import connection, role_details

    with connection.open(database_target(ctx)) as conn:
        found = role_details.get(conn, name)
    emit(found, global_options(ctx).output, lambda: facts(_facts(found)))


def _facts(found: RoleDetails) -> list[tuple[str, object]]:
    role = found.role
    attributes = [word for column, word in _ATTRIBUTES.items() if getattr(role, column)]
    limit = "no limit" if role.rolconnlimit < 0 else f"limit {role.rolconnlimit}"
    memberships = [one.role + (f" (through {one.through})" if one.through else "") for one in found.memberships]
    publications = list(found.publications)
    return [
        ("role", role.rolname),
        ("may replicate", ", ".join(role.reasons) or "no"),
        ("attributes", attributes),
        ("member of", memberships),
        ("members", found.members),
        ("password valid until", role.rolvaliduntil or "no limit"),
        ("connections", f"{found.connections} now, {limit}"),
        *(("setting", _setting(one)) for one in found.settings),
        *(("uses slot", _used(one)) for one in found.slots),
        ("owns publications", publications),
    ]


def _setting(one: RoleSetting) -> str:
    return f"{one.name} = {one.value}" + (f" (in database {one.database})" if one.database else "")


def _used(one: UsedSlot) -> str:
    return f"{one.slot_name}: PID {one.pid}, {one.application or 'no application name'}, from {one.client or '?'}"


@app.command(cls=WriteCommand)
def grant(ctx: typer.Context, name: Name, grant_select: Tables = None, schema: Schemas = None) -> None:
    """Grant a role the right to replicate and to read the named tables; grant only what it lacks.

    Example: rdsrepl role grant app --grant-select sales.orders
    """
    from rdsrepl.postgres import role_plans

    plan_and_apply(ctx, lambda conn: role_plans.grant(conn, name, tables=grant_select or (), schemas=schema or ()))


@app.command(cls=WriteCommand)
def password(
    ctx: typer.Context,
    name: Name,
    password_stdin: Annotated[
        bool, flag_option("--password-stdin", help="Read the password from standard input.")
    ] = False,
    generate_password: Annotated[
        bool, flag_option("--generate-password", help="Generate a password; without --secret it is printed once.")
    ] = False,
    secret: Annotated[
        str | None,
        typer.Option(
            metavar="SECRET",
            help="Store it in this Secrets Manager secret, which is created if needed.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Change a role's password, and the secret that its consumers read it from.

    The password is prompted for on a terminal. It is sent to the server as a SCRAM verifier. With --secret it is stored
    as a pending version first, then set for the role, then made the current version, so that it is never lost.

    Example: rdsrepl role password cdc --generate-password --secret prod/cdc
    """
    from dataclasses import replace

    from rdsrepl.postgres import connection, role_plans

    if password_stdin and generate_password:
        raise BadValue("--password-stdin and --generate-password cannot be used together", hint="choose one")
    new = _new_password(ctx, name, password_stdin=password_stdin, generate=generate_password)
    target = database_target(ctx)
    with connection.open(target) as conn:
        plan = role_plans.change_password(conn, name, new)
        place = {"host": conn.info.host, "port": str(conn.info.port), "dbname": conn.info.dbname}
    if secret is not None:
        from rdsrepl.aws import secrets

        (change,) = plan.steps
        version = pinned(ctx, "secret_version", str(uuid.uuid4()))
        steps = secrets.keep_password(
            target.aws, secret, username=name, password=new, version=version, extra=place, change=change
        )
        plan = replace(plan, steps=steps)
    printed = generate_password and secret is None
    confirm_and_apply(ctx, plan, target=target, reveal={"password": new} if printed else None)


@app.command(cls=WriteCommand)
def drop(ctx: typer.Context, name: Name) -> None:
    """Drop a role without connections and objects; its privileges in this database are revoked first.

    Example: rdsrepl role drop cdc --dry-run
    """
    from rdsrepl.postgres import role_plans

    plan_and_apply(ctx, lambda conn: role_plans.drop(conn, name))


def _new_password(ctx: typer.Context, name: str, *, password_stdin: bool, generate: bool, or_none: bool = False) -> str:
    from rdsrepl.postgres import role_plans

    if password_stdin:
        return _read_password()
    if generate or apply_options(ctx).plans_only:
        return role_plans.generate_password()
    if not is_interactive():
        options = (
            "--password-stdin, --generate-password or --no-password"
            if or_none
            else ("--password-stdin or --generate-password")
        )
        raise BadValue("a password is required but stdin is not a terminal", hint=f"add {options}")
    return _ask_password(name)


def _read_password() -> str:
    try:
        password = sys.stdin.buffer.readline().decode().rstrip("\r\n")
    except UnicodeDecodeError:
        # Not chained: that error contains the bytes of the password.
        raise BadValue(
            "the password on standard input is not UTF-8", hint="convert it to UTF-8, or choose another"
        ) from None
    if not password:
        raise BadValue("standard input has no password", hint="printf '%s' \"$PASSWORD\" | rdsrepl role create …")
    return password


def _ask_password(name: str) -> str:
    password = prompt_password(f"Password for role {name}:")
    if not password:
        raise BadValue("the password is empty", hint="type one, or use --generate-password or --no-password")
    if password != prompt_password("Again:"):
        raise BadValue("the two passwords differ", hint="try again")
    return password
