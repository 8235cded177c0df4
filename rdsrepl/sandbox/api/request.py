"""What a request to any service of AWS says of itself before it is carried out, and refusals in its own protocol.

Access keys that begin with certain words are refused although the signature is right (``signatures`` has verified it,
with the sandbox's own secret key), so that clients can be shown how AWS says it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_plus

from rdsrepl.sandbox.api import query_protocol, service_model
from rdsrepl.sandbox.api.faults import Fault
from rdsrepl.sandbox.api.types import ACCOUNT, REGION

EXPIRED: Final = "AKIAEXPIRED"
DENIED: Final = "AKIADENIED"

_CREDENTIAL: Final = re.compile(r"Credential=([^/,\s]+)/\d{8}/([^/,\s]+)/([^/,\s]+)/aws4_request")
_ACTION: Final = re.compile(rb"(?:^|&)Action=([^&]*)")
_RDS_VERSION: Final = f"Version={service_model.VERSION}".encode()
# The services whose permissions go by another name than their signatures.
_PERMISSIONS: Final[Mapping[str, str]] = {"monitoring": "cloudwatch"}
# What RDS's operations work on, as ARNs have it; the first that fits.
_RESOURCES: Final = (
    ("DBClusterParameter", "cluster-pg"),
    ("DBClusterSnapshot", "cluster-snapshot"),
    ("DBCluster", "cluster"),
    ("DBParameter", "pg"),
    ("DBSnapshot", "snapshot"),
    ("DBInstance", "db"),
)


@dataclass(frozen=True, slots=True)
class Call:
    """Who calls what.

    Attributes:
        service: as the signature names it: ``rds``, ``kinesis``, ``monitoring``; empty when nothing is signed.
        operation: ``DescribeDBClusters``, ``PutRecords``; empty when it cannot be told.
        region: the one it is signed for.
        access_key: the caller's.
        json: whether it speaks JSON, else the query protocol.
    """

    service: str
    operation: str
    region: str
    access_key: str
    json: bool

    @classmethod
    def read(cls, headers: Mapping[str, str], body: bytes) -> Call:
        """Read a request's headers, and of its body the operation; header names are in lower case."""
        credential = _CREDENTIAL.search(headers.get("authorization", ""))
        access_key, region, service = credential.groups() if credential is not None else ("", REGION, "")
        target = headers.get("x-amz-target", "")
        is_json = bool(target) or "json" in headers.get("content-type", "")
        operation = target.rpartition(".")[2]
        if not operation and (action := _ACTION.search(body)):
            operation = unquote_plus(action.group(1).decode("latin-1"))
        if not service and not is_json and _RDS_VERSION in body:
            service = "rds"
        return cls(service, operation, region, access_key, is_json)

    @property
    def permission(self) -> str:
        """What a policy has to allow: ``rds:DescribeDBClusters``."""
        return f"{_PERMISSIONS.get(self.service, self.service)}:{self.operation}"

    @property
    def resource(self) -> str:
        """What it would work on, as far as the operation's name says."""
        kinds = [kind for word, kind in _RESOURCES if self.service == "rds" and word in self.operation]
        service = _PERMISSIONS.get(self.service, self.service)
        return ":".join(("arn:aws", service, self.region, ACCOUNT, *kinds[:1], "*"))

    def refusal(self) -> Fault | None:
        """Return how AWS refuses the caller, or None when it does not."""
        if self.access_key.startswith(EXPIRED):
            return self._named(
                "ExpiredToken", "ExpiredTokenException", "The security token included in the request is expired"
            )
        # Everybody may ask who they are.
        if self.access_key.startswith(DENIED) and self.permission != "sts:GetCallerIdentity":
            return self._named(
                "AccessDenied",
                "AccessDeniedException",
                f"User: arn:aws:iam::{ACCOUNT}:user/denied is not authorized to perform: {self.permission} on "
                f"resource: {self.resource} because no identity-based policy allows the {self.permission} action",
            )
        return None

    def error_response(self, error: Fault, request_id: str) -> tuple[str, bytes]:
        """Return an error in the protocol of the call: the content type and the body."""
        if not self.json:
            return query_protocol.CONTENT_TYPE, query_protocol.write_error(error, request_id)
        return "application/x-amz-json-1.1", json.dumps({"__type": error.code, "message": error.message}).encode()

    def _named(self, query: str, in_json: str, message: str) -> Fault:
        return Fault(in_json, message, 400) if self.json else Fault(query, message, 403)
