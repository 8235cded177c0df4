"""The options of ``config set-target``: one for each key of a target in the config file."""

from __future__ import annotations

from dataclasses import make_dataclass
from typing import Annotated, Any, Final

import typer

from rdsrepl import config
from rdsrepl.cli.completion import complete_profile
from rdsrepl.config import edit

_MAIN: Final = {
    "dsn": ("CONNINFO", "Set the libpq connection string or URI, without a password."),
    "cluster": ("ID", "Set the DB cluster, whose endpoint, master user and secret the RDS API gives."),
    "instance": ("ID", "Set the DB instance, whose endpoint, master user and secret the RDS API gives."),
    "host": ("HOST", "Set the host of the server."),
    "port": ("PORT", "Set the port of the server."),
    "dbname": ("NAME", "Set the database."),
    "user": ("ROLE", "Set the role to log in as."),
    "secret": ("ID", "Set the Secrets Manager secret, by name or ARN, with the password of the role."),
    "auth": ("MODE", "Set how the role logs in: password, or iam with a token."),
    "profile": ("NAME", "Set the AWS profile."),
    "region": ("NAME", "Set the AWS region."),
    "sslmode": ("MODE", "Set how TLS is used, such as verify-full."),
    "sslrootcert": ("FILE", "Set the file with the certificates of the authorities to trust."),
    "passfile": ("FILE", "Set the password file to use in place of ~/.pgpass."),
    "service": ("NAME", "Set the service of pg_service.conf."),
    "endpoint_url": ("URL", "Set the endpoint of every AWS service."),
    "aws_config_file": ("FILE", "Set the file to use in place of ~/.aws/config."),
    "aws_credentials_file": ("FILE", "Set the file to use in place of ~/.aws/credentials."),
}
_KEYWORDS_PANEL: Final = "Other connection keywords of libpq"
_SHORT: Final = {"dbname": ("-d",), "user": ("-U",)}


def _complete_values(key: str) -> Any:
    """Return the function that completes the values of a key that has a known set of them."""
    values = config.VALUES.get(key, "").split("|")
    return lambda: [value for value in values if value.replace("-", "").isalnum()]


def _option(key: str) -> tuple[str, Any, Any]:
    metavar, text = _MAIN.get(key, ("VALUE", f"Set the connection keyword {key}."))
    declared = typer.Option(
        "--" + key.replace("_", "-"),
        *_SHORT.get(key, ()),
        metavar=metavar,
        help=text,
        rich_help_panel=None if key in _MAIN else _KEYWORDS_PANEL,
        autocompletion=complete_profile if key == "profile" else _complete_values(key),
    )
    return key, Annotated[str | None, declared], None


_KEYS: Final = (*_MAIN, *(key for key in edit.SETTABLE if key not in _MAIN and key != "protect"))

#: The keys of a target as a dataclass whose fields are options; None where an option is not given.
TargetKeys: Any = make_dataclass("TargetKeys", [_option(key) for key in _KEYS], frozen=True)


def given(keys: Any) -> dict[str, str]:
    """Return the keys that were given, and their values."""
    return {key: value for key in _KEYS if (value := getattr(keys, key)) is not None}
