"""Find which database and which AWS account a command works on."""

from __future__ import annotations

from dataclasses import replace

import typer

from rdsrepl import config
from rdsrepl.cli.console import note
from rdsrepl.cli.context import GlobalOptions, global_options
from rdsrepl.cli.saved_plans import require_same_address
from rdsrepl.config import Target
from rdsrepl.errors import BadValue, NotFound, UsageError
from rdsrepl.text.masking import mask
from rdsrepl.text.suggestions import did_you_mean


def database_target(ctx: typer.Context) -> Target:
    """Return the database that this command works on; the RDS API is asked for its endpoint at the first connection.

    A command gets the same object each time, so that a cluster is described once.

    Raises:
        ConfigError, NotFound: the config file has an error, or no such target.
        UsageError: the options name two different servers.
    """
    meta = ctx.find_root().meta
    known = meta.get("rdsrepl.database_target")
    if isinstance(known, Target):
        return known
    options, target = global_options(ctx), aws_target(ctx)
    if options.verbose:
        for name in options.ignored:
            note(ctx, f"RDSREPL_{name.upper()} is ignored: the command line names the server")
        settings = " ".join(f"{key}={value}" for key, value in target.masked().items())
        note(ctx, f"database: {target.label}{': ' + settings if settings else ''}")
    meta["rdsrepl.database_target"] = target = _with_rds_lookup(target, check=bool(options.dsn))
    return require_same_address(ctx, target)


def aws_target(ctx: typer.Context) -> Target:
    """Return the database and the AWS account from the options and the config file; nothing is looked up.

    Raises:
        ConfigError, NotFound: the config file has an error, or no such target.
        UsageError: --dsn and --target name different servers.
    """
    return _resolve(global_options(ctx))


def database_of(ctx: typer.Context, *, cluster: str | None = None, instance: str | None = None) -> Target:
    """Return the database of the cluster or instance that is the command's argument.

    The argument names the server: the environment is ignored, and options must name the same server.

    Raises:
        ConfigError, NotFound: the config file has an error, or no such target.
        UsageError: an option names another server.
    """
    options = global_options(ctx)
    for name, value, wanted in (("cluster", options.cluster, cluster), ("instance", options.instance, instance)):
        if name in options.typed and value != wanted:
            raise UsageError(
                f"--{name} {value} and {cluster or instance} name different servers", hint="omit the option"
            )
    dsn = options.dsn if "dsn" in options.typed else None
    target = _resolve(replace(options, cluster=cluster, instance=instance, dsn=dsn))
    return require_same_address(ctx, _with_rds_lookup(target, check=bool(dsn)))


def other_target(ctx: typer.Context, words: str, option: str) -> Target:
    """Return the database of another server that an option names, besides the one that the command works on.

    Args:
        ctx: the command's context.
        words: a target of the config file, a connection string, or an instance of the command's AWS account; an
            instance has the login and the database of the command's own target, as a read replica has.
        option: the option, for errors: ``--to``.

    Raises:
        BadValue: it is empty, or it contains a password.
        ConfigError, NotFound: the config file has an error, or there is no such target.
    """
    if not words:
        raise BadValue(f"{option} is empty", hint="give a target, an instance or a connection string")
    is_dsn = "=" in words or "://" in words
    if is_dsn and mask(words) != words:
        raise BadValue(
            f"{option}: a password on the command line is visible to other users",
            hint="put it in ~/.pgpass or PGPASSFILE, or give a target of the config file",
        )
    targets = config.load().targets
    if not is_dsn and words not in targets:
        from rdsrepl.aws import locations, session

        own = aws_target(ctx)
        # Without a region AWS is not in use here, and the name is that of a target.
        if session.region(own.aws) is not None:
            unknown = NotFound(
                f"{option} {words} is neither a target of the config file nor an instance",
                hint=did_you_mean(words, targets, otherwise="list the targets: rdsrepl config get-targets"),
            )
            return locations.instance_with_login_of(own, words, unknown)
    found = config.resolve(dsn=words if is_dsn else None, target=None if is_dsn else words)
    return _with_rds_lookup(replace(found, label=option) if is_dsn else found, check=False)


def _with_rds_lookup(target: Target, *, check: bool) -> Target:
    """Return a target that asks AWS when it connects; with CHECK, require that its dsn names the same server."""
    if not target.needs_aws:
        return target
    from rdsrepl.aws import locations

    target = locations.with_rds_lookup(target)
    if check and target.aws.identifier:
        locations.require_same_server(target)
    return target


def _resolve(options: GlobalOptions) -> Target:
    aws = config.Aws(cluster=options.cluster, instance=options.instance)
    chosen = {"profile": options.profile, "region": options.region}
    # The account of a target on the command line overrides RDSREPL_PROFILE and RDSREPL_REGION, which fill its gaps.
    typed = {key: value for key, value in chosen.items() if key in options.typed or "target" not in options.typed}
    return config.resolve(
        dsn=options.dsn,
        target=options.target,
        aws=replace(aws, **typed),
        defaults=config.Aws(**chosen),
        dbname=options.dbname,
        user=options.user,
    )
