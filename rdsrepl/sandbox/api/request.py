"""What the headers of a request to any AWS service say, and the refusal of a request in its protocol.

For tests, access keys with certain prefixes are refused as AWS does it, although their signature is valid. They sign
with the secret key of the sandbox.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_plus

from rdsrepl.sandbox.api import query_protocol, service_model
from rdsrepl.sandbox.api.api_errors import Fault
from rdsrepl.sandbox.api.types import ACCOUNT, REGION

EXPIRED: Final = "AKIAEXPIRED"
DENIED: Final = "AKIADENIED"

_CREDENTIAL: Final = re.compile(r"Credential=([^/,\s]+)/\d{8}/([^/,\s]+)/([^/,\s]+)/aws4_request")
_ACTION: Final = re.compile(rb"(?:^|&)Action=([^&]*)")
_RDS_VERSION: Final = f"Version={service_model.VERSION}".encode()
# Services whose permissions have another prefix than the name in the signature.
_PERMISSIONS: Final[Mapping[str, str]] = {"monitoring": "cloudwatch"}
# The resource type in ARNs by a part of the operation's name; the first match counts.
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
    """The service, operation and caller of a request.

    Attributes:
        service: the name in the signature: ``rds``, ``kinesis``, ``monitoring``; empty without a signature.
        operation: ``DescribeDBClusters``, ``PutRecords``; empty when it is not known.
        region: the region in the signature.
        access_key: the access key of the caller.
        json: whether the request uses the JSON protocol; else the query protocol.
    """

    service: str
    operation: str
    region: str
    access_key: str
    json: bool

    @classmethod
    def read(cls, headers: Mapping[str, str], body: bytes) -> Call:
        """Read the headers of a request, and the operation from its body; header names are in lower case."""
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
        """The permission that the caller needs: ``rds:DescribeDBClusters``."""
        return f"{_PERMISSIONS.get(self.service, self.service)}:{self.operation}"

    @property
    def resource(self) -> str:
        """The ARN of the resource, as far as the operation's name says it."""
        kinds = [kind for word, kind in _RESOURCES if self.service == "rds" and word in self.operation]
        service = _PERMISSIONS.get(self.service, self.service)
        return ":".join(("arn:aws", service, self.region, ACCOUNT, *kinds[:1], "*"))

    def refusal(self) -> Fault | None:
        """Return the fault with which AWS refuses the caller; None when it does not."""
        if self.access_key.startswith(EXPIRED):
            return self._named(
                "ExpiredToken", "ExpiredTokenException", "The security token included in the request is expired"
            )
        # GetCallerIdentity needs no permission.
        if self.access_key.startswith(DENIED) and self.permission != "sts:GetCallerIdentity":
            return self._named(
                "AccessDenied",
                "AccessDeniedException",
                f"User: arn:aws:iam::{ACCOUNT}:user/denied is not authorized to perform: {self.permission} on "
                f"resource: {self.resource} because no identity-based policy allows the {self.permission} action",
            )
        return None

    def error_response(self, error: Fault, request_id: str) -> tuple[str, bytes]:
        """Return the content type and the body of an error response in the protocol of the call."""
        if not self.json:
            return query_protocol.CONTENT_TYPE, query_protocol.write_error(error, request_id)
        return "application/x-amz-json-1.1", json.dumps({"__type": error.code, "message": error.message}).encode()

    def _named(self, query: str, in_json: str, message: str) -> Fault:
        return Fault(in_json, message, 400) if self.json else Fault(query, message, 403)
