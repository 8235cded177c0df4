"""A database to work on and the AWS identity to use, as frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Final, Protocol

from rdsrepl.text.masking import MASK, mask

KEYWORDS: Final = frozenset(
    [
        "host",
        "hostaddr",
        "port",
        "dbname",
        "user",
        "password",
        "passfile",
        "service",
        "connect_timeout",
        "options",
        "application_name",
        "channel_binding",
        "requirepeer",
        "require_auth",
        "sslmode",
        "sslrootcert",
        "sslcert",
        "sslkey",
        "sslcertmode",
        "sslcrl",
        "sslcrldir",
        "sslpassword",
        "sslsni",
        "ssl_min_protocol_version",
        "ssl_max_protocol_version",
        "sslnegotiation",
        "gssencmode",
        "gssdelegation",
        "gsslib",
        "krbsrvname",
        "target_session_attrs",
        "load_balance_hosts",
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "tcp_user_timeout",
    ]
)
SECRETS: Final = frozenset({"password", "sslpassword"})


@dataclass(frozen=True, slots=True)
class Aws:
    """An AWS identity, and the cluster or instance to work on.

    Attributes:
        profile: of the shared config and credentials files; boto3's usual chain where it is None.
        region: where the cluster or instance lives.
        endpoint_url: of every service, in place of AWS's own.
        aws_config_file: in place of ``~/.aws/config``.
        aws_credentials_file: in place of ``~/.aws/credentials``.
        cluster: a DB cluster's identifier (Multi-AZ or Aurora).
        instance: a DB instance's identifier.
        secret: name or ARN of the Secrets Manager secret that holds the role's password.
        auth: how the role logs in: ``password``, or ``iam`` with a token made anew for each attempt.
    """

    profile: str | None = None
    region: str | None = None
    endpoint_url: str | None = None
    aws_config_file: str | None = None
    aws_credentials_file: str | None = None
    cluster: str | None = None
    instance: str | None = None
    secret: str | None = None
    auth: str | None = None

    @property
    def identifier(self) -> str | None:
        """The cluster's or the instance's identifier."""
        return self.cluster or self.instance


NO_AWS: Final = Aws()
AWS_KEYS: Final = tuple(Aws.__dataclass_fields__)


class Lookup(Protocol):
    """Finds, through AWS, libpq keywords that a target does not have itself."""

    def place(self) -> Mapping[str, str]:
        """Return host, port, dbname and user as far as the RDS API knows them; no secret."""
        ...

    def keywords(self) -> Mapping[str, str]:
        """Return everything for the next attempt to connect, secrets included."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """A database to work on.

    Attributes:
        label: how messages call it: ``target prod``, ``--dsn``, ``the environment``.
        dsn: a libpq connection string or URI; empty when keywords or the environment say it all.
        keywords: libpq keywords that go on top of ``dsn``.
        aws: the AWS identity, and the cluster or instance.
        renew: asked before each attempt to connect for further keywords: an endpoint, a password, a token.
        protect: shell patterns of slots that are dropped only when they are named as exceptions; on this target, beside
            the config file's own.
        answer_seconds: how long a connection waits for the server's answer to a statement; None is for ever.
    """

    label: str
    dsn: str = field(default="", repr=False)
    keywords: Mapping[str, str] = field(default_factory=dict, repr=False)
    aws: Aws = NO_AWS
    renew: Lookup | None = field(default=None, repr=False, compare=False)
    protect: tuple[str, ...] = ()
    answer_seconds: float | None = None

    @property
    def located(self) -> bool:
        """Whether dsn or keywords themselves say where the database is."""
        return bool(self.dsn) or any(self.keywords.get(key) for key in ("host", "hostaddr", "service"))

    @property
    def needs_aws(self) -> bool:
        """Whether AWS knows something that a connection or a command needs."""
        return bool(self.aws.identifier or self.aws.secret) or self.aws.auth == "iam"

    @property
    def renews_login(self) -> bool:
        """Whether AWS is asked for a password or a token before each attempt to connect."""
        return bool(self.aws.secret) or self.aws.auth == "iam" or bool(self.aws.identifier and not self.located)

    def masked(self) -> dict[str, str]:
        """Return the settings with their secrets hidden."""
        shown = {key: MASK if key in SECRETS else value for key, value in self.keywords.items()}
        shown = {"dsn": mask(self.dsn), **shown} if self.dsn else shown
        return {**shown, **{key: value for key, value in asdict(self.aws).items() if value is not None}}
