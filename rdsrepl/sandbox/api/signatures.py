"""Signature Version 4, as AWS verifies it: who signed a request, and whether nothing of it was changed since.

The signature is computed again with botocore's own code and compared in constant time. Where AWS documents its
answers: https://docs.aws.amazon.com/AmazonRDS/latest/APIReference/CommonErrors.html for the query protocol,
https://docs.aws.amazon.com/kinesis/latest/APIReference/CommonErrors.html for JSON. Requests that are signed in their
query string (presigned) are not taken.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from rdsrepl.sandbox.api.faults import Fault

if TYPE_CHECKING:
    from rdsrepl.sandbox.api.request import Call

# What RDS allows a clock to be off by, either way.
SKEW: Final = timedelta(minutes=5)
_TIME: Final = "%Y%m%dT%H%M%SZ"
_AUTHORIZATION: Final = re.compile(
    r"AWS4-HMAC-SHA256\s+Credential=(?P<key>[^/,\s]+)/(?P<date>\d{8})/(?P<region>[^/,\s]+)/(?P<service>[^/,\s]+)"
    r"/aws4_request\s*,\s*SignedHeaders=(?P<headers>[a-z0-9;._-]+)\s*,\s*Signature=(?P<signature>[0-9a-f]{64})\s*"
)
_MISMATCH: Final = (
    "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key "
    "and signing method. Consult the service documentation for details."
)
_INVALID_TOKEN: Final = "The security token included in the request is invalid."


@dataclass(frozen=True, slots=True)
class SigningKey:
    """What one access key signs with.

    Attributes:
        key: the secret access key.
        token: the session token that has to come with it; None for a key that does not expire.
        expires: when the session ends, with its time zone; None for a key that does not expire.
    """

    key: str
    token: str | None = None
    expires: datetime | None = None


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request as it was received.

    Attributes:
        method: ``POST``.
        target: the path with its query string, as the request line has it.
        headers: names and values in their order; a name may come twice.
        body: the body, whole.
    """

    method: str
    target: str
    headers: Sequence[tuple[str, str]]
    body: bytes

    def values(self, name: str) -> list[str]:
        """Return all values of a header; NAME is in lower case."""
        return [value for key, value in self.headers if key.lower() == name]


def refusal(
    request: SignedRequest, call: Call, secret_of: Callable[[str], SigningKey | None], now: datetime | None = None
) -> Fault | None:
    """Return how AWS refuses a request that is not signed as it should be; None when the signature is right.

    Args:
        request: the request.
        call: what the request says of itself; decides the protocol of the refusal.
        secret_of: returns what an access key signs with; None is an unknown key.
        now: the present moment; None is the clock's.
    """
    given = request.values("authorization")
    if not given:
        missing = "Missing Authentication Token" if call.json else "Request is missing Authentication Token"
        return _fault(call, "MissingAuthenticationToken", "MissingAuthenticationTokenException", missing)
    match = _AUTHORIZATION.fullmatch(given[0]) if len(given) == 1 else None
    dates = request.values("x-amz-date")
    if match is None or len(dates) != 1:
        message = "The Authorization header or X-Amz-Date is missing, comes twice, or is not of Signature Version 4."
        return Fault("IncompleteSignatureException" if call.json else "IncompleteSignature", message, 400)
    secret = secret_of(match["key"])
    tokens = request.values("x-amz-security-token")
    if secret is None or not _same_token(secret, tokens):
        return _fault(call, "InvalidClientTokenId", "UnrecognizedClientException", _INVALID_TOKEN)
    if (reason := _signature_error(request, match, secret, dates[0], now or datetime.now(UTC))) is not None:
        return _fault(call, "SignatureDoesNotMatch", "InvalidSignatureException", reason)
    if secret.expires is not None and secret.expires <= (now or datetime.now(UTC)):
        message = "The security token included in the request is expired"
        return _fault(call, "ExpiredToken", "ExpiredTokenException", message)
    return None


def _signature_error(
    request: SignedRequest, match: re.Match[str], secret: SigningKey, date: str, now: datetime
) -> str | None:
    """Return what is wrong with a signature; None when it is right."""
    names = match["headers"].split(";")
    if "host" not in names:
        return "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization."
    for name, _ in request.headers:
        if name.lower().startswith("x-amz-") and name.lower() not in names:
            return f"'{name.lower()}' must be a 'SignedHeader' in the AWS Authorization."
    if not hmac.compare_digest(_signature(request, match, names, secret.key, date), match["signature"]):
        return _MISMATCH
    hashes = request.values("x-amz-content-sha256")
    if hashes and hashes != [sha256(request.body).hexdigest()]:
        return "The value of X-Amz-Content-SHA256 is not the body's."
    try:
        moment = datetime.strptime(date, _TIME).replace(tzinfo=UTC)
    except ValueError:
        return f"Date must be in ISO-8601 'basic format'. Got '{date}'."
    if date[:8] != match["date"]:
        return f"Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{date}'."
    if moment < now - SKEW:
        return f"Signature expired: {date} is now earlier than {now - SKEW:{_TIME}} ({now:{_TIME}} - 5 min.)"
    if moment > now + SKEW:
        return f"Signature not yet current: {date} is still later than {now + SKEW:{_TIME}} ({now:{_TIME}} + 5 min.)"
    return None


def _signature(request: SignedRequest, match: re.Match[str], names: Sequence[str], key: str, date: str) -> str:
    """Return the signature that the request should have."""
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    # Only what was signed: botocore signs every header that it sees.
    seen = AWSRequest(method=request.method, url=f"http://sandbox{request.target}", data=request.body)
    for name in names:
        for value in request.values(name):
            seen.headers.add_header(name, value)
    seen.context["timestamp"] = date
    auth = SigV4Auth(Credentials(match["key"], key), match["service"], match["region"])
    return str(auth.signature(auth.string_to_sign(seen, auth.canonical_request(seen)), seen))


def _same_token(secret: SigningKey, tokens: Sequence[str]) -> bool:
    if secret.token is None or len(tokens) != 1:
        return secret.token is None and not tokens
    return hmac.compare_digest(secret.token.encode(), tokens[0].encode())


def _fault(call: Call, query: str, in_json: str, message: str) -> Fault:
    return Fault(in_json, message, 400) if call.json else Fault(query, message, 403)
