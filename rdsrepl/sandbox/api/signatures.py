"""Verifies Signature Version 4 as AWS does: who signed a request, and that it did not change since.

The signature is computed again with botocore and compared in constant time. AWS documents the errors in
https://docs.aws.amazon.com/AmazonRDS/latest/APIReference/CommonErrors.html for the query protocol and in
https://docs.aws.amazon.com/kinesis/latest/APIReference/CommonErrors.html for JSON. Presigned requests, whose
signature is in the query string, are refused.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from rdsrepl.sandbox.api.api_errors import Fault

if TYPE_CHECKING:
    from rdsrepl.sandbox.api.request import Call

# The largest clock difference that RDS accepts.
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
    """The signing key of an access key.

    Attributes:
        key: the secret access key.
        token: the session token that a request must contain; None for a key that does not expire.
        expires: when the session ends, with time zone; None for a key that does not expire.
    """

    key: str
    token: str | None = None
    expires: datetime | None = None


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request as it was received.

    Attributes:
        method: ``POST``.
        target: the path with the query string, from the request line.
        headers: names and values in their order; a name may occur twice.
        body: the whole body.
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
    """Return the fault with which AWS refuses a request with a wrong signature; None when the signature is valid.

    Args:
        request: the request.
        call: the headers of the request, which determine the protocol of the refusal.
        secret_of: returns the signing key of an access key, or None when the access key is not known.
        now: the current time; None reads the clock.
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
    """Return why a signature is not valid; None when it is valid."""
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
        signed_at = datetime.strptime(date, _TIME).replace(tzinfo=UTC)
    except ValueError:
        return f"Date must be in ISO-8601 'basic format'. Got '{date}'."
    if date[:8] != match["date"]:
        return f"Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{date}'."
    if signed_at < now - SKEW:
        return f"Signature expired: {date} is now earlier than {now - SKEW:{_TIME}} ({now:{_TIME}} - 5 min.)"
    if signed_at > now + SKEW:
        return f"Signature not yet current: {date} is still later than {now + SKEW:{_TIME}} ({now:{_TIME}} + 5 min.)"
    return None


def _signature(request: SignedRequest, match: re.Match[str], names: Sequence[str], key: str, date: str) -> str:
    """Return the correct signature of a request."""
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    # Only the signed headers, because botocore signs every header that it gets.
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
