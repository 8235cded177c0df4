"""The types and constants that every module of the API shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    pass


ACCOUNT: Final = "123456789012"
# Not us-east-1: there the aws CLI of version 1 goes to AWS itself, whatever endpoint a profile names.
REGION: Final = "eu-west-1"

ResourceKind = Literal["cluster", "instance"]
ApplyType = Literal["static", "dynamic"]
# As the input shape converted them: str, int, float, bool, datetime, list, dict; what was not sent is not there.
Parameters = Mapping[str, Any]
# As the output shape has it; None and members that are not there are left out.
Result = dict[str, Any]

DEFAULT_PORT: Final = 5432
