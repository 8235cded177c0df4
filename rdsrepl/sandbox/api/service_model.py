"""The RDS service model of botocore: every operation, shape and error code."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from botocore.model import OperationModel, ServiceModel

VERSION: Final = "2014-10-31"
NAMESPACE: Final = f"http://rds.amazonaws.com/doc/{VERSION}/"


@cache
def service() -> ServiceModel:
    """Return the model of the RDS API."""
    from botocore.loaders import Loader
    from botocore.model import ServiceModel

    return ServiceModel(Loader().load_service_model("rds", "service-2", VERSION), "rds")


@cache
def operation(name: str) -> OperationModel | None:
    """Return the model of an operation; None when it does not exist."""
    # botocore raises an error for an unknown name.
    return service().operation_model(name) if name in service().operation_names else None


@cache
def errors() -> dict[str, tuple[str, int]]:
    """Return the code and the HTTP status of every error shape, by the name of the shape."""
    codes: dict[str, tuple[str, int]] = {}
    for shape in service().error_shapes:
        error: dict[str, Any] = shape.metadata.get("error", {})
        codes[shape.name] = (str(error.get("code", shape.name)), int(error.get("httpStatusCode", 400)))
    return codes
