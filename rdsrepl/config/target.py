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
        profile: a profile of the shared config and credentials files; None uses the default chain of boto3.
        region: the region of the cluster or instance.
        endpoint_url: the endpoint of every service, in place of the AWS endpoint.
        aws_config_file: used in place of ``~/.aws/config``.
        aws_credentials_file: used in place of ``~/.aws/credentials``.
        cluster: the identifier of a DB cluster (Multi-AZ or Aurora).
        instance: the identifier of a DB instance.
        secret: name or ARN of the Secrets Manager secret with the password of the role.
        auth: how the role logs in: ``password``, or ``iam`` with a new token for each attempt.
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
        """The identifier of the cluster or instance."""
        return self.cluster or self.instance


NO_AWS: Final = Aws()
AWS_KEYS: Final = tuple(Aws.__dataclass_fields__)


class Lookup(Protocol):
    """Reads from AWS the libpq keywords that a target does not have."""

    def address(self) -> Mapping[str, str]:
        """Return host, port, dbname and user as far as the RDS API knows them, without secrets."""
        ...

    def keywords(self) -> Mapping[str, str]:
        """Return all keywords for the next attempt to connect, with secrets."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """A database to work on.

    Attributes:
        label: its name in messages: ``target prod``, ``--dsn``, ``the environment``.
        dsn: a libpq connection string or URI; can be empty.
        keywords: libpq keywords that override ``dsn``.
        aws: the AWS identity, and the cluster or instance.
        renew: called before each attempt to connect; returns more keywords: an endpoint, a password, a token.
        protect: shell patterns of slots on this target that a command drops only with ``--unprotect``, in addition to
            those of the config file.
        answer_seconds: how long a connection waits for the response to a statement; None waits without a limit.
    """

    label: str
    dsn: str = field(default="", repr=False)
    keywords: Mapping[str, str] = field(default_factory=dict, repr=False)
    aws: Aws = NO_AWS
    renew: Lookup | None = field(default=None, repr=False, compare=False)
    protect: tuple[str, ...] = ()
    answer_seconds: float | None = None

    @property
    def has_address(self) -> bool:
        """Whether dsn or keywords contain the address of the database."""
        return bool(self.dsn) or any(self.keywords.get(key) for key in ("host", "hostaddr", "service"))

    @property
    def needs_aws(self) -> bool:
        """Whether AWS knows something that a connection or a command needs."""
        return bool(self.aws.identifier or self.aws.secret) or self.aws.auth == "iam"

    @property
    def renews_login(self) -> bool:
        """Whether AWS is asked for a password or a token before each attempt to connect."""
        return bool(self.aws.secret) or self.aws.auth == "iam" or bool(self.aws.identifier and not self.has_address)

    def masked(self) -> dict[str, str]:
        """Return the settings with secrets masked."""
        shown = {key: MASK if key in SECRETS else value for key, value in self.keywords.items()}
        shown = {"dsn": mask(self.dsn), **shown} if self.dsn else shown
        return {**shown, **{key: value for key, value in asdict(self.aws).items() if value is not None}}
