"""The registry of the RDS operations, and what a function that implements one is called with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from rdsrepl.sandbox.api.api_errors import fault
from rdsrepl.sandbox.api.consistency import Consistency
from rdsrepl.sandbox.api.types import ACCOUNT, REGION, ResourceKind, Result

if TYPE_CHECKING:
    from rdsrepl.sandbox.api.parameter_groups import ParameterGroups
    from rdsrepl.sandbox.api.query_protocol import Request
    from rdsrepl.sandbox.api.server_controller import Controller
    from rdsrepl.sandbox.api.store import Store


@dataclass(frozen=True, slots=True)
class Service:
    """RDS in one region.

    Servers exist only in the sandbox's own region. Every other region has no controller, and its store is empty at
    first. So an operation that only reads takes its records from ``store``.

    Attributes:
        store: the records.
        groups: the parameter groups over that store.
        controller: what changes clusters and instances; None in other regions.
        region: the region in the signature of the request.
        account: the AWS account number.
        consistency: what describe calls show of a change, and when.
    """

    store: Store
    groups: ParameterGroups
    controller: Controller | None = None
    region: str = REGION
    account: str = ACCOUNT
    consistency: Consistency = field(default_factory=Consistency)

    def require_controller(self) -> Controller:
        """Return the controller.

        Raises:
            Fault: the region has none.
        """
        if self.controller is None:
            raise fault("NotImplemented", f"The sandbox has no servers in {self.region}.")
        return self.controller

    def arn(self, kind: str, name: str) -> str:
        """Return the ARN of a resource: KIND is ``cluster``, ``db``, ``pg``, ``cluster-pg``, ``subgrp`` …."""
        return f"arn:aws:rds:{self.region}:{self.account}:{kind}:{name}"


_Function = TypeVar("_Function", bound=Callable[..., Result])
# Describes every resource of a kind, by identifier.
_DescribeAll = Callable[[Service], dict[str, Result]]


_registry: dict[str, Callable[..., Result]] = {}
_views: dict[ResourceKind, _DescribeAll] = {}
# By the parameter that names a resource: its kind, the fault while it is busy, and the noun in the message.
_BUSY_RESOURCES: Final = {
    "DBInstanceIdentifier": ("instance", "InvalidDBInstanceStateFault", "Instance"),
    "DBClusterIdentifier": ("cluster", "InvalidDBClusterStateFault", "Cluster"),
}
_BUSY_GROUPS: Final = {"DBParameterGroupName": "instance-group", "DBClusterParameterGroupName": "cluster-group"}
_READ_ONLY: Final = ("Describe", "List")


def operation(name: str, *, kind: ResourceKind | None = None) -> Callable[[_Function], _Function]:
    """Register the function that implements an operation.

    Args:
        name: the name in the service model: ``CreateDBParameterGroup``.
        kind: a third argument for the function, where an operation exists for both kinds.
    """

    def register(function: _Function) -> _Function:
        if name in _registry:
            raise ValueError(f"{name} is registered twice")
        _registry[name] = function if kind is None else partial(function, kind=kind)
        return function

    return register


def operation_names() -> frozenset[str]:
    """Return the names of the implemented operations."""
    return frozenset(_registry)


def dispatch(service: Service, request: Request) -> Result:
    """Run the operation of a request and return its result.

    Raises:
        Fault: the operation failed.
    """
    function = _registry.get(request.operation)
    if function is None:
        raise fault("NotImplemented", f"The sandbox does not have the operation {request.operation}.")
    if request.operation.startswith(_READ_ONLY):
        return function(service, request.parameters)
    _refuse_busy(service, request)
    delays = service.consistency.switches
    if not delays.lag_seconds and not delays.not_found_seconds:
        return _mark_group_busy(service, request, function(service, request.parameters))
    before = _describe_everything(service)
    answer = function(service, request.parameters)
    service.consistency.changed(before, _describe_everything(service))
    return _mark_group_busy(service, request, answer)


def describes_all(
    kind: ResourceKind,
) -> Callable[[_DescribeAll], _DescribeAll]:
    """Register the function that describes every resource of a kind."""

    def register(function: _DescribeAll) -> _DescribeAll:
        _views[kind] = function
        return function

    return register


def _describe_everything(service: Service) -> dict[tuple[ResourceKind, str], Result]:
    return {(kind, name): described for kind, every in _views.items() for name, described in every(service).items()}


def _refuse_busy(service: Service, request: Request) -> None:
    for parameter, (kind, code, noun) in _BUSY_RESOURCES.items():
        if service.consistency.is_busy(kind, str(request.parameters.get(parameter, "")).lower()):
            raise fault(code, f"{noun} cannot currently be changed due to an in-progress management operation.")
    if request.operation.startswith(("Reset", "Delete")):
        for parameter, kind in _BUSY_GROUPS.items():
            name = str(request.parameters.get(parameter, "")).lower()
            if service.consistency.is_busy(kind, name):
                raise fault("InvalidDBParameterGroupStateFault", f"Parameter group {name} has pending changes.")


def _mark_group_busy(service: Service, request: Request, answer: Result) -> Result:
    """Make a changed parameter group busy, and return the result of the operation."""
    if request.operation.startswith(("Modify", "Reset")) and "ParameterGroup" in request.operation:
        for parameter, kind in _BUSY_GROUPS.items():
            if name := request.parameters.get(parameter):
                service.consistency.mark_busy(kind, [str(name).lower()])
    return answer
