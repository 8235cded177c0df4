"""The connection parameters of a target.

Secrets come from the sources that libpq knows, and stay inside libpq. The TLS defaults are stricter than libpq's:
unless the user chose an ``sslmode``, it is ``require`` for another host and ``verify-full`` for an RDS endpoint.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rdsrepl import errors
from rdsrepl.config import config_path

if TYPE_CHECKING:
    from rdsrepl.config import Target


CONNECT_TIMEOUT_SECONDS: Final = 10
# libpq's keywords that end a connection whose other end is gone: 60 s after the last packet, and 30 s after one that
# nobody acknowledged. The kernel's own defaults are two hours and a quarter of one.
_KEEPALIVES: Final = {
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
RDS_SUFFIXES: Final = (".rds.amazonaws.com", ".rds.amazonaws.com.cn")
_LOCAL: Final = re.compile(r"(localhost|::1|127(\.\d{1,3}){3})\Z|[/@]")
_NOT_CHOSEN: Final = "nobody chose"


def keywords(target: Target) -> dict[str, str]:
    """Return everything libpq is given for a target, secrets included, for another client of libpq.

    Raises:
        Error: the target's dsn is none, or its cluster, instance or secret was not found.
    """
    return keywords_and_options(target)[0]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a target leads to, as far as it is known before it is connected to.

    Attributes:
        host: name, address, or directory of the unix socket; several are separated by commas.
        user: None where the login names it, such as a secret.
    """

    host: str
    port: str
    dbname: str
    user: str | None


def address(target: Target) -> Address:
    """Return where a target leads to; nothing is connected to and no secret is read.

    Raises:
        Error: the target's dsn is none, or its cluster or instance was not found.
    """
    given = _merge(target, target.renew.address() if target.renew is not None else {})
    defaults = _defaults(given.get("service"))
    said = {key: given.get(key) or defaults.get(key, "") for key in ("host", "hostaddr", "port", "dbname", "user")}
    user = given.get("user") or (None if target.aws.secret else said["user"])
    return Address(
        host=said["host"] or said["hostaddr"] or "local socket",
        port=said["port"] or "5432",
        dbname=said["dbname"] or said["user"],
        user=user or None,
    )


def rds_bundle_file() -> Path:
    """Return where the RDS bundle is looked for when nobody named a file: beside the config file."""
    return config_path().with_name("global-bundle.pem")


def _merge(target: Target, found: Mapping[str, str]) -> dict[str, str]:
    """Return the keywords of a target's dsn, of what was FOUND through AWS, and its own; the later ones win."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        dsn = conninfo_to_dict(target.dsn)
        if target.keywords.get("user", dsn.get("user")) != dsn.get("user"):
            dsn.pop("password", None)  # it belongs to the role that the dsn names
        given = conninfo_to_dict("", **{**dsn, **found, **target.keywords})
    except psycopg.ProgrammingError:
        # Not as the cause: libpq quotes what it stumbled over, which may be a piece of the password.
        raise errors.BadValue(
            f"{target.label}: not a connection string",
            hint="postgresql://user@host:5432/dbname, or host=… dbname=… user=…",
        ) from None
    keywords = {key: str(value) for key, value in given.items() if value is not None}
    if not re.fullmatch(r"[\d,]*", keywords.get("port", "")) or re.search(r"[^,]@", keywords.get("host", "")):
        raise errors.BadValue(
            f"{target.label}: no host and port can be read from it",
            hint="in a URI, write what is special in user and password percent-encoded: @ as %40, / as %2F, : as %3A",
        )
    return keywords


def keywords_and_options(target: Target) -> tuple[dict[str, str], str]:
    """Return what libpq is given, and the ``options`` that hold, whoever gave them."""
    keywords = _merge(target, target.renew.keywords() if target.renew is not None else {})
    defaults = _defaults(keywords.get("service"))
    keywords.setdefault("fallback_application_name", "rdsrepl")
    if keywords.get("host") and "hostaddr" not in keywords and defaults["hostaddr"]:
        keywords["hostaddr"] = ""  # PGHOSTADDR belongs to the environment's host, not to this one
    if not keywords.get("connect_timeout") and not defaults.get("connect_timeout"):
        keywords["connect_timeout"] = str(CONNECT_TIMEOUT_SECONDS)
    for keyword, value in _KEEPALIVES.items():
        if not keywords.get(keyword) and not defaults.get(keyword):
            keywords[keyword] = value
    if not keywords.get("sslmode") and defaults["sslmode"] == _NOT_CHOSEN:
        sslmode = safe_sslmode(
            keywords.get("host", defaults["host"]), hostaddr=keywords.get("hostaddr", defaults["hostaddr"])
        )
        if sslmode and keywords.get("sslrootcert", defaults["sslrootcert"]) != "system":  # that implies verify-full
            keywords["sslmode"] = sslmode
            bundle = rds_bundle_file()
            if (
                sslmode == "verify-full"
                and not keywords.get("sslrootcert", defaults["sslrootcert"])
                and bundle.exists()
            ):
                keywords["sslrootcert"] = str(bundle)
    # UTF8 is what every decoder and printer here expects, whatever the database's own encoding.
    keywords["client_encoding"] = "UTF8"
    if "passfile" in keywords and "password" not in keywords:
        # libpq would prefer PGPASSWORD, which then is meant for another server; an empty password means: look it up.
        keywords["password"] = ""
    return keywords, keywords.get("options", defaults.get("options", ""))


def _defaults(service: str | None) -> dict[str, str]:
    """Return what libpq will take from the environment and the service file for keywords that nobody gives."""
    from psycopg import pq

    # libpq looks up PGSERVICE here. The mark shows whether anybody chose an sslmode, be it the default one.
    marks = {"PGSERVICE": service or os.environ.get("PGSERVICE"), "PGSSLMODE": os.environ.get("PGSSLMODE")}
    before = dict(marks, PGSERVICE=os.environ.get("PGSERVICE"))
    if not marks["PGSSLMODE"] and "PGREQUIRESSL" not in os.environ:
        marks["PGSSLMODE"] = _NOT_CHOSEN
    try:
        _set_environment(marks)
        return {option.keyword.decode(): (option.val or b"").decode() for option in pq.Conninfo.get_defaults()}
    finally:
        _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def safe_sslmode(hosts: str, *, hostaddr: str = "") -> str | None:
    """Return the mode to ask for when nobody chose one; None where libpq's own default will do (this machine)."""
    names = [name.strip().lower() for name in hosts.split(",") if name.strip()]
    if any(name.rstrip(".").endswith(RDS_SUFFIXES) for name in names):
        return "verify-full"
    addresses = [address.strip() for address in hostaddr.split(",") if address.strip()] or names
    return None if all(_LOCAL.match(address) for address in addresses) else "require"
