"""The only door to AWS: sessions, calls with retries, and boto3's errors turned into ours.

Profile, region, assumed roles, endpoints and credentials are found as boto3 finds them; a target may name its own. The
retry mode is botocore's ``adaptive``: it backs off with jitter and slows down when AWS throttles.
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

_ATTEMPTS: Final = 6
_CONNECT_TIMEOUT_SECONDS: Final = 10
_READ_TIMEOUT_SECONDS: Final = 60
_HURRY_SECONDS: Final[ContextVar[float | None]] = ContextVar("hurry_seconds", default=None)

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
# The key that a stream is encrypted with.
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
_FAILED_HINT: Final = "AWS itself failed, after all retries; repeat the command in a while"
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
    # boto3 reads AWS_DEFAULT_REGION alone; containers, Lambda and the other SDKs have AWS_REGION.
    region_name = aws.region or os.environ.get("AWS_REGION")
    try:
        return boto3.Session(botocore_session=core, profile_name=aws.profile, region_name=region_name)
    except botocore.exceptions.BotoCoreError as exc:
        raise translate(exc, "", "Session", aws) from exc


@lru_cache(maxsize=64)
def _client(aws: Aws, service: str, hurry_seconds: float | None = None) -> Any:
    import botocore.exceptions
    from botocore.config import Config

    retries: dict[str, Any] = {"mode": os.environ.get("AWS_RETRY_MODE", "adaptive")}
    if hurry_seconds is not None:
        retries = {"mode": "standard", "total_max_attempts": 1}
    elif "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = _ATTEMPTS
    config = Config(
        retries=retries,  # type: ignore[arg-type]
        connect_timeout=hurry_seconds or _CONNECT_TIMEOUT_SECONDS,
        read_timeout=hurry_seconds or _READ_TIMEOUT_SECONDS,
        user_agent_extra=f"rdsrepl/{__version__}",
    )
    try:
        made = _session(aws)
        return made.client(service, endpoint_url=aws.endpoint_url, config=config)  # type: ignore[call-overload]
    except (botocore.exceptions.BotoCoreError, ValueError) as exc:
        raise translate(exc, "", "Session", aws) from exc


def client(aws: Aws, service: str) -> Any:
    """Return a boto3 client; one is made for each identity and service.

    Args:
        aws: the identity; what stands for a cluster or an instance in it does not matter.
        service: as boto3 names it: ``rds``.

    Raises:
        Error: the profile, the region or the endpoint is wrong.
    """
    return _client(_identity(aws), service, _HURRY_SECONDS.get())


@contextmanager
def short_timeouts(seconds: float) -> Iterator[None]:
    """Within it each call of this thread is tried once and waits so long: for who would rather have no answer."""
    token = _HURRY_SECONDS.set(seconds)
    try:
        yield
    finally:
        _HURRY_SECONDS.reset(token)


def client_without_retries(aws: Aws, service: str) -> Any:
    """Return a client of its own that tries each call once and checks no parameters: for who retries by itself.

    Raises:
        Error: the profile, the region or the endpoint is wrong.
    """
    import botocore.exceptions
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
    try:
        made = _session(_identity(aws))
        return made.client(service, endpoint_url=aws.endpoint_url, config=config)  # type: ignore[call-overload]
    except (botocore.exceptions.BotoCoreError, ValueError) as exc:
        raise translate(exc, "", "Session", aws) from exc


def call(aws: Aws, service: str, operation: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Make one call and return its answer.

    Raises:
        Error: whatever AWS or the way to it says, as one of ours.
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
        Error: whatever AWS or the way to it says, as one of ours.
    """
    from botocore import xform_name

    with _translated(service, operation, aws):
        for page in client(aws, service).get_paginator(xform_name(operation)).paginate(**(parameters or {})):
            for part in key.split("."):
                page = page.get(part, [])
            yield from page


def token(aws: Aws, *, host: str, port: int, user: str) -> str:
    """Return an IAM token that stands for USER's password for 15 minutes (GenerateDBAuthToken, made locally).

    Raises:
        Error: there are no credentials.
    """
    with _translated("rds", "GenerateDBAuthToken", aws):
        made: str = client(aws, "rds").generate_db_auth_token(DBHostname=host, Port=port, DBUsername=user)
    return made


@contextmanager
def _translated(service: str, operation: str, aws: Aws) -> Iterator[None]:
    import botocore.exceptions

    try:
        yield
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, ValueError) as exc:
        raise translate(exc, service, operation, aws) from exc


def translate(exc: Exception, service: str, operation: str, aws: Aws) -> errors.Error:
    """Turn boto3's error into ours, keeping AWS's text, code and request id."""
    import botocore.exceptions as boto

    if isinstance(exc, boto.ClientError):
        return _refused(exc, service, operation, aws)
    text = " ".join(str(exc).split()).rstrip(".")
    if isinstance(exc, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError):
        return errors.NoCredentials(
            f"{operation}: {text[:1].lower()}{text[1:]}",
            hint="give them as boto3 takes them: AWS_PROFILE or --profile, aws sso login, or a role of this machine",
        )
    if isinstance(exc, boto.SSOTokenLoadError | boto.UnauthorizedSSOTokenError | boto.TokenRetrievalError):
        return errors.ExpiredCredentials(f"{operation}: {text}", hint="log in again: aws sso login")
    if isinstance(exc, boto.ProfileNotFound):
        return errors.NotFound(text, hint="profiles there are: aws configure list-profiles; choose one with --profile")
    if isinstance(exc, boto.NoRegionError):
        return errors.UsageError(
            "no AWS region is known", hint="name it: --region eu-west-1, AWS_REGION, or region in the target"
        )
    if isinstance(exc, boto.InvalidRegionError):
        return errors.BadValue(text, hint="regions look like eu-west-1")
    if isinstance(exc, boto.ParamValidationError):
        return errors.BadValue(f"{operation}: {text}", hint="mend the value")
    if isinstance(exc, boto.SSLError):
        return errors.Unreachable(
            f"{operation}: {text}", hint="behind an intercepting proxy, name its certificate: AWS_CA_BUNDLE=FILE"
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
    said: Mapping[str, Any] = exc.response.get("Error", {})
    code = str(said.get("Code", "Unknown"))
    text = " ".join(str(said.get("Message") or code).split()).rstrip(".")
    kind, hint = _classify(code, text, f"{service}:{operation}", aws)
    about: Mapping[str, Any] = exc.response.get("ResponseMetadata", {})
    if code.isdecimal():
        # botocore's code for a body that no AWS service writes: a balancer's, a proxy's, another server's.
        text = f"HTTP {code} from something that is no AWS service, or broken"
        kind, hint = errors.Unreachable, f"{_CHECK_ENDPOINT}, or repeat the command in a while"
    elif kind is errors.AwsError and about.get("HTTPStatusCode", 0) >= 500:
        kind, hint = errors.Unreachable, _FAILED_HINT
    request_id = about.get("RequestId")
    return kind(f"{operation}: {text}", hint=hint, aws_code=code, request_id=request_id)


def _classify(code: str, text: str, action: str, aws: Aws) -> tuple[type[errors.Error], str | None]:
    plain = code.removesuffix("Fault").removesuffix("Exception")
    if code in THROTTLED:
        return errors.Throttled, "wait a while and repeat the command: it plans only what is still missing"
    if code in DENIED:
        # AWS names what was missing, which may be another action (kms:Decrypt) than the one called.
        named = re.search(r"to perform: ([\w-]+:\w+)", text)
        lacking = named[1] if named else action
        return errors.Denied, f"the identity lacks {lacking}; rdsrepl iam-policy prints the policy each command needs"
    if code in BAD_KEYS:
        return errors.NotAvailable, "enable the KMS key it is encrypted with, or encrypt it with another"
    if code in EXPIRED:
        return errors.ExpiredCredentials, "get new ones: aws sso login, or assume the role again"
    if code in BAD_CREDENTIALS:
        return errors.NoCredentials, "check the access key and the clock of this machine: aws sts get-caller-identity"
    if code == "ResourceNotFoundException" and _NO_VALUE.search(text):
        return errors.NotAvailable, "the secret exists: wait until it has a value, or give it one"
    if plain.endswith("NotFound") or code == "ResourceNotFoundException":
        noun = "Stream" if action.startswith("kinesis:") else plain.removesuffix("NotFound")
        listing = f"{_LIST_COMMANDS[noun]} shows what there is in" if noun in _LIST_COMMANDS else "check the name, in"
        return errors.NotFound, f"{listing} {_region(aws)}; another region: --region"
    if plain.endswith("AlreadyExists") or plain == "ResourceExists":
        return errors.AlreadyExists, "choose another name, or use the one that exists"
    if plain == "ResourceInUse":
        return errors.InUse, "it exists, or is being created, changed or deleted: wait until it is active; " + (
            "rdsrepl stream list shows it"
        )
    if plain.startswith("Insufficient") and "Capacity" in plain:
        return (
            errors.NotAvailable,
            "AWS has no capacity for that class there now: another class (--class), another "
            + ("zone or subnet group, or the same later"),
        )
    if "QuotaExceeded" in plain or "LimitExceeded" in plain:
        return errors.QuotaExceeded, "delete one that nobody uses, or ask AWS for more (Service Quotas)"
    if plain.startswith("Invalid") and "State" in plain:
        return errors.NotAvailable, "wait until it is available, then repeat the command: rdsrepl cluster list"
    if code in BAD_VALUES or plain.startswith(("Invalid", "Insufficient")):
        return errors.BadValue, "mend that value; nothing was changed by this call"
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
    """Return the identity's region; None where none is known.

    Raises:
        Error: the profile is wrong.
    """
    return _session(_identity(aws)).region_name


def _region(aws: Aws) -> str:
    try:
        name = region(aws)
    except errors.Error:
        name = None
    return f"region {name}" if name else "no region"
