"""The types and constants that every module of the API shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

ACCOUNT: Final = "123456789012"
# Not us-east-1: for that region version 1 of the aws CLI ignores the endpoint of a profile and calls AWS.
REGION: Final = "eu-west-1"
DEFAULT_PORT: Final = 5432

ResourceKind = Literal["cluster", "instance"]
ApplyType = Literal["static", "dynamic"]
# The parameters of a request, converted by the input shape; those that were not sent are missing.
Parameters = Mapping[str, Any]
# A structure of the output shape; members that are None or missing are not sent.
Result = dict[str, Any]
