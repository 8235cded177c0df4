"""Create AWS clients, make calls with retries, and translate the errors of boto3. No other module creates clients.

boto3 finds the profile, the region, assumed roles, endpoints and credentials; a target can name its own. The retry mode
is ``adaptive``: it backs off with jitter and slows down when AWS throttles.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from rdsrepl import __version__, errors
from rdsrepl.config import Aws

if TYPE_CHECKING:
    import boto3
    from botocore.config import Config

_ATTEMPTS: Final = 6
_CONNECT_TIMEOUT_SECONDS: Final = 10
_READ_TIMEOUT_SECONDS: Final = 60
_SHORT_TIMEOUT_SECONDS: Final[ContextVar[float | None]] = ContextVar("short_timeout_seconds", default=None)

_LIST_COMMANDS: Final[Mapping[str, str]] = {
    "DBCluster": "rdsrepl cluster list",
    "DBInstance": "rdsrepl instance list",
    "DBParameterGroup": "rdsrepl param-group list",
    "DBClusterParameterGroup": "rdsrepl param-group list",
    "Stream": "rdsrepl stream list",
}
THROTTLED: Final = frozenset(
    [
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "KMSThrottlingException",
        "RequestLimitExceeded",
        "TooManyRequestsException",
        "RequestThrottled",
        "LimitExceededException",
        "ProvisionedThroughputExceededException",
    ]
)
DENIED: Final = frozenset(
    [
        "AccessDenied",
        "AccessDeniedException",
        "KMSAccessDeniedException",
        "NotAuthorized",
        "UnauthorizedOperation",
    ]
)
# Errors about the KMS key that encrypts a stream.
BAD_KEYS: Final = frozenset(
    ["KMSDisabledException", "KMSInvalidStateException", "KMSNotFoundException", "KMSOptInRequired"]
)
EXPIRED: Final = frozenset(["ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"])
BAD_CREDENTIALS: Final = frozenset(
    [
        "InvalidClientTokenId",
        "UnrecognizedClientException",
        "SignatureDoesNotMatch",
        "AuthFailure",
        "InvalidAccessKeyId",
        "MissingAuthenticationToken",
        "IncompleteSignature",
        "OptInRequired",
    ]
)
BAD_VALUES: Final = frozenset(
    [
        "InvalidParameterValue",
        "InvalidParameterCombination",
        "ValidationError",
        "ValidationException",
        "MissingParameter",
        "InvalidParameterException",
        "InvalidRequestException",
    ]
)
# Secrets Manager has one code for a secret that does not exist and for one without a value.
_NO_VALUE: Final = re.compile(r"secret value|staging label", re.IGNORECASE)
_FAILED_HINT: Final = "AWS failed, after all retries; run the command again later"
_CHECK_ENDPOINT: Final = "check AWS_ENDPOINT_URL, or endpoint_url in the target"
FAILURES: Final = frozenset(["InternalFailure", "InternalError", "InternalServiceError", "ServiceUnavailable"])


@lru_cache(maxsize=16)
def _session(aws: Aws) -> boto3.Session:
    import boto3
    import botocore.exceptions
    import botocore.session

    core = botocore.session.Session()
    for name, path in (("config_file", aws.aws_config_file), ("credentials_file", aws.aws_credentials_file)):
        if path is not None:
            core.set_config_variable(name, path)
    # boto3 reads only AWS_DEFAULT_REGION; containers, Lambda and the other SDKs set AWS_REGION.
    region_name = aws.region or os.environ.get("AWS_REGION")
    try:
        return boto3.Session(botocore_session=core, profile_name=aws.profile, region_name=region_name)
    except botocore.exceptions.BotoCoreError as exc:
        raise translate(exc, "", "Session", aws) from exc


@lru_cache(maxsize=64)
def _client(aws: Aws, service: str, short_timeout_seconds: float | None = None) -> Any:
    from botocore.config import Config

    retries: dict[str, Any] = {"mode": os.environ.get("AWS_RETRY_MODE", "adaptive")}
    if short_timeout_seconds is not None:
        retries = {"mode": "standard", "total_max_attempts": 1}
    elif "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = _ATTEMPTS
    config = Config(
        retries=retries,  # type: ignore[arg-type]
        connect_timeout=short_timeout_seconds or _CONNECT_TIMEOUT_SECONDS,
        read_timeout=short_timeout_seconds or _READ_TIMEOUT_SECONDS,
        user_agent_extra=f"rdsrepl/{__version__}",
    )
    return _new_client(aws, service, config)


def _new_client(aws: Aws, service: str, config: Config) -> Any:
    import botocore.exceptions

    try:
        session = _session(aws)
        return session.client(service, endpoint_url=aws.endpoint_url, config=config)  # type: ignore[call-overload]
    except (botocore.exceptions.BotoCoreError, ValueError) as exc:
        raise translate(exc, "", "Session", aws) from exc


def client(aws: Aws, service: str) -> Any:
    """Return a boto3 client, one for each identity and service.

    Args:
        aws: the identity; its cluster and instance are ignored.
        service: its name in boto3: ``rds``.

    Raises:
        Error: the profile, the region or the endpoint is not valid.
    """
    return _client(_identity(aws), service, _SHORT_TIMEOUT_SECONDS.get())


@contextmanager
def short_timeouts(seconds: float) -> Iterator[None]:
    """Make each call in this context once, with this timeout: for answers that are optional."""
    token = _SHORT_TIMEOUT_SECONDS.set(seconds)
    try:
        yield
    finally:
        _SHORT_TIMEOUT_SECONDS.reset(token)


def client_without_retries(aws: Aws, service: str) -> Any:
    """Return a client that makes each call once and does not check parameters: for callers that retry themselves.

    Raises:
        Error: the profile, the region or the endpoint is not valid.
    """
    from botocore.config import Config

    config = Config(
        retries={"total_max_attempts": 1, "mode": "standard"},
        parameter_validation=False,
        max_pool_connections=64,
        tcp_keepalive=True,
        connect_timeout=_CONNECT_TIMEOUT_SECONDS,
        read_timeout=_READ_TIMEOUT_SECONDS,
        user_agent_extra=f"rdsrepl/{__version__}",
    )
    return _new_client(_identity(aws), service, config)


def call(aws: Aws, service: str, operation: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Make one call and return the response.

    Raises:
        Error: AWS refused, or is not reachable.
    """
    from botocore import xform_name

    with _translated(service, operation, aws):
        answer: dict[str, Any] = getattr(client(aws, service), xform_name(operation))(**parameters)
    return answer


def pages(
    aws: Aws, service: str, operation: str, key: str, parameters: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """Make a paginated call and return the items under KEY, page after page.

    Raises:
        Error: AWS refused, or is not reachable.
    """
    from botocore import xform_name

    with _translated(service, operation, aws):
        for page in client(aws, service).get_paginator(xform_name(operation)).paginate(**(parameters or {})):
            for part in key.split("."):
                page = page.get(part, [])
            yield from page


def token(aws: Aws, *, host: str, port: int, user: str) -> str:
    """Return an IAM token that serves as the password of USER for 15 minutes (GenerateDBAuthToken, computed locally).

    Raises:
        Error: no credentials are configured.
    """
    with _translated("rds", "GenerateDBAuthToken", aws):
        password: str = client(aws, "rds").generate_db_auth_token(DBHostname=host, Port=port, DBUsername=user)
    return password


@contextmanager
def _translated(service: str, operation: str, aws: Aws) -> Iterator[None]:
    import botocore.exceptions

    try:
        yield
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, ValueError) as exc:
        raise translate(exc, service, operation, aws) from exc


def translate(exc: Exception, service: str, operation: str, aws: Aws) -> errors.Error:
    """Translate an error of boto3; keep the text, code and request id of AWS."""
    import botocore.exceptions as boto

    if isinstance(exc, boto.ClientError):
        return _refused(exc, service, operation, aws)
    text = " ".join(str(exc).split()).rstrip(".")
    if isinstance(exc, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError):
        return errors.NoCredentials(
            f"{operation}: {text[:1].lower()}{text[1:]}",
            hint="configure credentials: AWS_PROFILE or --profile, aws sso login, or a role of this machine",
        )
    if isinstance(exc, boto.SSOTokenLoadError | boto.UnauthorizedSSOTokenError | boto.TokenRetrievalError):
        return errors.ExpiredCredentials(f"{operation}: {text}", hint="log in again: aws sso login")
    if isinstance(exc, boto.ProfileNotFound):
        return errors.NotFound(text, hint="list the profiles: aws configure list-profiles; choose one with --profile")
    if isinstance(exc, boto.NoRegionError):
        return errors.UsageError(
            "the AWS region is not set", hint="set it: --region eu-west-1, AWS_REGION, or region in the target"
        )
    if isinstance(exc, boto.InvalidRegionError):
        return errors.BadValue(text, hint="use a region such as eu-west-1")
    if isinstance(exc, boto.ParamValidationError):
        return errors.BadValue(f"{operation}: {text}", hint="correct the value")
    if isinstance(exc, boto.SSLError):
        return errors.Unreachable(
            f"{operation}: {text}", hint="if a proxy intercepts TLS, set its certificate: AWS_CA_BUNDLE=FILE"
        )
    if isinstance(exc, boto.HTTPClientError | boto.ConnectionError):
        return errors.Unreachable(
            f"{operation}: {text}",
            hint=f"check the network, the region ({_region(aws)}) and the endpoint (AWS_ENDPOINT_URL, endpoint_url)",
        )
    if isinstance(exc, ValueError):
        return errors.BadValue(text if "endpoint" in text else f"endpoint: {text}", hint=_CHECK_ENDPOINT)
    return errors.AwsError(f"{operation}: {text}")


def _refused(exc: Any, service: str, operation: str, aws: Aws) -> errors.Error:
    reported: Mapping[str, Any] = exc.response.get("Error", {})
    code = str(reported.get("Code", "Unknown"))
    text = " ".join(str(reported.get("Message") or code).split()).rstrip(".")
    kind, hint = _classify(code, text, f"{service}:{operation}", aws)
    metadata: Mapping[str, Any] = exc.response.get("ResponseMetadata", {})
    if code.isdecimal():
        # botocore uses the HTTP status as code for a body that no AWS service writes: of a load balancer, a proxy.
        text = f"HTTP {code} from a server that is not an AWS service, or an incomplete response"
        kind, hint = errors.Unreachable, f"{_CHECK_ENDPOINT}, or run the command again later"
    elif kind is errors.AwsError and metadata.get("HTTPStatusCode", 0) >= 500:
        kind, hint = errors.Unreachable, _FAILED_HINT
    request_id = metadata.get("RequestId")
    return kind(f"{operation}: {text}", hint=hint, aws_code=code, request_id=request_id)


def _classify(code: str, text: str, action: str, aws: Aws) -> tuple[type[errors.Error], str | None]:
    plain = code.removesuffix("Fault").removesuffix("Exception")
    if code in THROTTLED:
        return errors.Throttled, "run the command again later: it plans only the missing steps"
    if code in DENIED:
        # AWS names the missing permission, which can be another action (kms:Decrypt) than the call.
        named = re.search(r"to perform: ([\w-]+:\w+)", text)
        lacking = named[1] if named else action
        return errors.Denied, f"the identity lacks {lacking}; print the policy that a command needs: rdsrepl iam-policy"
    if code in BAD_KEYS:
        return errors.NotAvailable, "enable the KMS key that encrypts the stream, or encrypt it with another key"
    if code in EXPIRED:
        return errors.ExpiredCredentials, "renew them: aws sso login, or assume the role again"
    if code in BAD_CREDENTIALS:
        return errors.NoCredentials, "check the access key and the clock of this machine: aws sts get-caller-identity"
    if code == "ResourceNotFoundException" and _NO_VALUE.search(text):
        return errors.NotAvailable, "the secret has no value yet: wait for it, or set one"
    if plain.endswith("NotFound") or code == "ResourceNotFoundException":
        noun = "Stream" if action.startswith("kinesis:") else plain.removesuffix("NotFound")
        listing = f"list the existing ones: {_LIST_COMMANDS[noun]}" if noun in _LIST_COMMANDS else "check the name"
        return errors.NotFound, f"{listing} (in {_region(aws)}; choose another with --region)"
    if plain.endswith("AlreadyExists") or plain == "ResourceExists":
        return errors.AlreadyExists, "choose another name, or use the existing one"
    if plain == "ResourceInUse":
        return (
            errors.InUse,
            "it exists, or another operation is in progress: wait until it is active: rdsrepl stream list",
        )
    if plain.startswith("Insufficient") and "Capacity" in plain:
        return (
            errors.NotAvailable,
            "AWS has no capacity for this class: use another class (--class), zone or subnet group, or try again later",
        )
    if "QuotaExceeded" in plain or "LimitExceeded" in plain:
        return errors.QuotaExceeded, "delete an unused one, or request a higher quota (Service Quotas)"
    if plain.startswith("Invalid") and "State" in plain:
        return errors.NotAvailable, "wait until it is available (rdsrepl cluster list), then run the command again"
    if code in BAD_VALUES or plain.startswith(("Invalid", "Insufficient")):
        return errors.BadValue, "correct the value; this call changed nothing"
    if code in FAILURES:
        return errors.Unreachable, _FAILED_HINT
    return errors.AwsError, None


def _identity(aws: Aws) -> Aws:
    return Aws(
        profile=aws.profile,
        region=aws.region,
        endpoint_url=aws.endpoint_url,
        aws_config_file=aws.aws_config_file,
        aws_credentials_file=aws.aws_credentials_file,
    )


def region(aws: Aws) -> str | None:
    """Return the region of the identity; None if it is not set.

    Raises:
        Error: the profile is not valid.
    """
    return _session(_identity(aws)).region_name


def _region(aws: Aws) -> str:
    try:
        name = region(aws)
    except errors.Error:
        name = None
    return f"region {name}" if name else "no region"
