"""``rdsrepl iam-policy``: the least IAM policy with which commands run."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from rdsrepl.aws import iam_policy as iam
from rdsrepl.cli.context import global_options
from rdsrepl.cli.targets import aws_target
from rdsrepl.render import Format, emit


class Auth(StrEnum):
    """How SQL commands log in."""

    password = "password"
    iam = "iam"


def complete_command() -> list[str]:
    """Return the commands for the shell."""
    return list(iam.COMMANDS)


def iam_policy(
    ctx: typer.Context,
    for_: Annotated[
        list[str] | None,
        typer.Option(
            "--for",
            metavar="COMMAND",
            help="A command ('slot tail') or all of a noun ('slot'); may be repeated. Default: every command.",
            autocompletion=complete_command,
        ),
    ] = None,
    account: Annotated[
        str | None, typer.Option("--account", metavar="ID", help="The AWS account, twelve digits.")
    ] = None,
    members: Annotated[
        str | None,
        typer.Option("--members", metavar="NAME", help="The cluster's members, or the instance's replicas: orders-*."),
    ] = None,
    param_group: Annotated[
        str | None, typer.Option("--param-group", metavar="NAME", help="The parameter group, or a pattern: orders-*.")
    ] = None,
    auth: Annotated[
        Auth | None,
        typer.Option("--auth", help="How SQL commands log in: password reads a secret, iam makes a token."),
    ] = None,
    secret: Annotated[
        str | None,
        typer.Option(
            "--secret", metavar="NAME", help="The secret, name or ARN, with the password; default: those of RDS."
        ),
    ] = None,
    kms_key: Annotated[
        str | None, typer.Option("--kms-key", metavar="ID", help="The customer managed key that encrypts the secret.")
    ] = None,
    user: Annotated[
        str | None, typer.Option("--user", metavar="ROLE", help="The database role that logs in with --auth iam.")
    ] = None,
    stream: Annotated[
        str | None,
        typer.Option("--stream", metavar="NAME", help="The stream slot tail writes to, by name or ARN."),
    ] = None,
    resource_id: Annotated[
        str | None,
        typer.Option("--resource-id", metavar="ID", help="db-… or cluster-…: what --auth iam is limited to."),
    ] = None,
) -> None:
    """Print the least IAM policy with which commands run, as JSON. Nothing is asked of AWS.

    --region, --cluster and --instance, or those of the target, limit it to what they name.

    Example: rdsrepl iam-policy --for 'slot tail' --region eu-west-1 --account 123456789012 --cluster orders
    """
    target = aws_target(ctx)
    aws = target.aws
    # The target's user is not taken: a policy that is too narrow fails at 3 a.m., and --user says it as well.
    scope = iam.PolicyScope(
        region=aws.region,
        account=account,
        cluster=aws.cluster,
        instance=aws.instance,
        members=members,
        parameter_group=param_group,
        secret=secret or aws.secret,
        kms_key=kms_key,
        stream=stream,
        user=user,
        resource_id=resource_id,
        auth="iam" if (auth.value if auth else aws.auth) == "iam" else "password",
    )
    document = iam.policy(for_ or (), scope).document()
    output = global_options(ctx).output
    # A policy is JSON: that is what IAM takes.
    emit(document, Format.yaml if output is Format.yaml else Format.json, lambda: "")
