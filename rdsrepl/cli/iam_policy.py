"""``rdsrepl iam-policy``: print the least IAM policy that commands need."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from rdsrepl.aws import iam_policy as iam
from rdsrepl.cli.context import global_options
from rdsrepl.cli.targets import aws_target
from rdsrepl.render import Format, emit


class Auth(StrEnum):
    """The values of ``--auth``."""

    password = "password"
    iam = "iam"


def complete_command() -> list[str]:
    """Complete the name of a command."""
    return list(iam.COMMANDS)


def iam_policy(
    ctx: typer.Context,
    for_: Annotated[
        list[str] | None,
        typer.Option(
            "--for",
            metavar="COMMAND",
            help="Include this command ('slot tail') or noun ('slot'); may be repeated. Default: every command.",
            autocompletion=complete_command,
        ),
    ] = None,
    account: Annotated[
        str | None, typer.Option("--account", metavar="ID", help="Limit the policy to this AWS account, twelve digits.")
    ] = None,
    members: Annotated[
        str | None,
        typer.Option(
            "--members", metavar="NAME", help="Name the cluster's members or the instance's replicas: orders-*."
        ),
    ] = None,
    param_group: Annotated[
        str | None,
        typer.Option(
            "--param-group", metavar="NAME", help="Limit the policy to this parameter group, or to a pattern: orders-*."
        ),
    ] = None,
    auth: Annotated[
        Auth | None,
        typer.Option("--auth", help="Choose how SQL commands log in: password reads a secret, iam creates a token."),
    ] = None,
    secret: Annotated[
        str | None,
        typer.Option(
            "--secret",
            metavar="NAME",
            help="Read the password from this secret, a name or ARN; default: the secrets of RDS.",
        ),
    ] = None,
    kms_key: Annotated[
        str | None, typer.Option("--kms-key", metavar="ID", help="Name the customer managed key of the secret.")
    ] = None,
    user: Annotated[
        str | None, typer.Option("--user", metavar="ROLE", help="Log in as this database role with --auth iam.")
    ] = None,
    stream: Annotated[
        str | None,
        typer.Option("--stream", metavar="NAME", help="Name the stream that slot tail writes to, or its ARN."),
    ] = None,
    resource_id: Annotated[
        str | None,
        typer.Option("--resource-id", metavar="ID", help="Limit --auth iam to this resource: db-... or cluster-..."),
    ] = None,
) -> None:
    """Print the least IAM policy that commands need, as JSON, without calling AWS.

    --region, --cluster and --instance, or those of the target, limit the policy to that region and server.

    Example: rdsrepl iam-policy --for 'slot tail' --region eu-west-1 --account 123456789012 --cluster orders
    """
    target = aws_target(ctx)
    aws = target.aws
    # The target's user is ignored: a policy that is too narrow fails when it is needed, and --user can name one.
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
    # The default is JSON, the format that IAM takes.
    emit(document, Format.yaml if output is Format.yaml else Format.json, lambda: "")
