"""The connection parameters of a target.

Secrets come from the sources that libpq knows, and stay inside libpq. The TLS defaults are stricter than libpq's:
unless the user chose an ``sslmode``, it is ``require`` for another host and ``verify-full`` for an RDS endpoint.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rdsrepl import errors
from rdsrepl.config import config_path

if TYPE_CHECKING:
    from rdsrepl.config import Target


CONNECT_TIMEOUT_SECONDS: Final = 10
# libpq's keywords that end a connection whose peer does not answer: 60 s after the last packet, and 30 s after a packet
# that was not acknowledged. The defaults of the kernel are two hours and 15 minutes.
_KEEPALIVES: Final = {
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
RDS_SUFFIXES: Final = (".rds.amazonaws.com", ".rds.amazonaws.com.cn")
_LOCAL: Final = re.compile(r"(localhost|::1|127(\.\d{1,3}){3})\Z|[/@]")
_NOT_CHOSEN: Final = "not chosen"
# The environment belongs to the process, and several threads connect.
_MARKING: Final = threading.Lock()


def keywords(target: Target) -> dict[str, str]:
    """Return all connection parameters of a target, secrets included, for another client of libpq.

    Raises:
        Error: the dsn of the target is not a connection string, or its cluster, instance or secret is not found.
    """
    return keywords_and_options(target)[0]


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a target, as far as it is known before the connection is made.

    Attributes:
        host: name, IP address or directory of the Unix socket; several are separated by commas.
        user: None where a secret contains it.
    """

    host: str
    port: str
    dbname: str
    user: str | None


def address(target: Target) -> Address:
    """Return the address of a target. This neither connects nor reads a secret.

    Raises:
        Error: the dsn of the target is not a connection string, or its cluster or instance is not found.
    """
    given = _merge(target, target.renew.address() if target.renew is not None else {})
    defaults = _defaults(given.get("service"))
    values = {key: given.get(key) or defaults.get(key, "") for key in ("host", "hostaddr", "port", "dbname", "user")}
    user = given.get("user") or (None if target.aws.secret else values["user"])
    return Address(
        host=values["host"] or values["hostaddr"] or "local socket",
        port=values["port"] or "5432",
        dbname=values["dbname"] or values["user"],
        user=user or None,
    )


def rds_bundle_file() -> Path:
    """Return the default path of the RDS certificate bundle: beside the config file."""
    return config_path().with_name("global-bundle.pem")


def _merge(target: Target, from_aws: Mapping[str, str]) -> dict[str, str]:
    """Merge the keywords of the dsn, those FROM_AWS, and those of the target; a later one overrides."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        dsn = conninfo_to_dict(target.dsn)
        if target.keywords.get("user", dsn.get("user")) != dsn.get("user"):
            dsn.pop("password", None)  # it is the password of the user in the dsn
        given = conninfo_to_dict("", **{**dsn, **from_aws, **target.keywords})
    except psycopg.ProgrammingError:
        # Without the cause: libpq quotes the text that it could not parse, which may be part of the password.
        raise errors.BadValue(
            f"{target.label} is not a connection string",
            hint="postgresql://user@host:5432/dbname, or host=… dbname=… user=…",
        ) from None
    keywords = {key: str(value) for key, value in given.items() if value is not None}
    if not re.fullmatch(r"[\d,]*", keywords.get("port", "")) or re.search(r"[^,]@", keywords.get("host", "")):
        raise errors.BadValue(
            f"{target.label}: could not read host and port from the connection string",
            hint="percent-encode special characters of user and password in a URI: @ as %40, / as %2F, : as %3A",
        )
    return keywords


def keywords_and_options(target: Target) -> tuple[dict[str, str], str]:
    """Return the connection parameters of a target, and the ``options`` of the target or the environment."""
    keywords = _merge(target, target.renew.keywords() if target.renew is not None else {})
    defaults = _defaults(keywords.get("service"))
    keywords.setdefault("fallback_application_name", "rdsrepl")
    if keywords.get("host") and "hostaddr" not in keywords and defaults["hostaddr"]:
        keywords["hostaddr"] = ""  # PGHOSTADDR is the address of PGHOST, not of this host
    if not keywords.get("connect_timeout") and not defaults.get("connect_timeout"):
        keywords["connect_timeout"] = str(CONNECT_TIMEOUT_SECONDS)
    for keyword, value in _KEEPALIVES.items():
        if not keywords.get(keyword) and not defaults.get(keyword):
            keywords[keyword] = value
    if not keywords.get("sslmode") and defaults["sslmode"] == _NOT_CHOSEN:
        sslmode = safe_sslmode(
            keywords.get("host", defaults["host"]), hostaddr=keywords.get("hostaddr", defaults["hostaddr"])
        )
        if sslmode and keywords.get("sslrootcert", defaults["sslrootcert"]) != "system":  # it implies verify-full
            keywords["sslmode"] = sslmode
            bundle = rds_bundle_file()
            if (
                sslmode == "verify-full"
                and not keywords.get("sslrootcert", defaults["sslrootcert"])
                and bundle.exists()
            ):
                keywords["sslrootcert"] = str(bundle)
    if not keywords.get("sslmode"):
        # Explicit also where it is libpq's default: another thread may have set the mark while libpq connects.
        is_system = keywords.get("sslrootcert", defaults["sslrootcert"]) == "system"
        default = "verify-full" if is_system else "prefer"
        keywords["sslmode"] = default if defaults["sslmode"] == _NOT_CHOSEN else defaults["sslmode"] or default
    # Every decoder and output format expects UTF8, whatever the encoding of the database.
    keywords["client_encoding"] = "UTF8"
    if "passfile" in keywords and "password" not in keywords:
        # libpq prefers PGPASSWORD, which is for another server here. An empty password makes it read the password file.
        keywords["password"] = ""
    return keywords, keywords.get("options", defaults.get("options", ""))


def _defaults(service: str | None) -> dict[str, str]:
    """Return the defaults that libpq takes from the environment and the service file."""
    from psycopg import pq

    # libpq reads PGSERVICE here. The mark tells a chosen sslmode from libpq's default.
    with _MARKING:
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
    """Return the sslmode to use when none is chosen; None for a local host, where libpq's default is enough."""
    names = [name.strip().lower() for name in hosts.split(",") if name.strip()]
    if any(name.rstrip(".").endswith(RDS_SUFFIXES) for name in names):
        return "verify-full"
    addresses = [address.strip() for address in hostaddr.split(",") if address.strip()] or names
    return None if all(_LOCAL.match(address) for address in addresses) else "require"
