"""Which function answers which operation of the RDS API, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from rdsrepl.sandbox.api.consistency import Consistency
from rdsrepl.sandbox.api.faults import fault

if TYPE_CHECKING:
    from rdsrepl.sandbox.api.parameter_groups import Groups
    from rdsrepl.sandbox.api.query_protocol import Request
    from rdsrepl.sandbox.api.store import Store

ACCOUNT: Final = "123456789012"
# Not us-east-1: there the aws CLI of version 1 goes to AWS itself, whatever endpoint a profile names.
REGION: Final = "eu-west-1"

Kind = Literal["cluster", "instance"]
ApplyType = Literal["static", "dynamic"]
# As the input shape converted them: str, int, float, bool, datetime, list, dict; what was not sent is not there.
Parameters = Mapping[str, Any]
# As the output shape has it; None and members that are not there are left out.
Result = dict[str, Any]


class Fleet(Protocol):
    """What the parameter groups ask of whoever runs servers with them; both are called without the store's lock."""

    def users(self, kind: Kind, name: str) -> list[str]:
        """Return the identifiers of what a group is attached to."""

    def group_changed(self, kind: Kind, name: str, changed: Mapping[str, ApplyType]) -> None:
        """Hear of parameters of a group that have a new value, or their default again.

        Args:
            kind: whose group it is.
            name: the group's.
            changed: how each is to take effect: ``dynamic`` at once, ``static`` at the next reboot. A dynamic
                parameter that was changed with the apply method ``pending-reboot`` counts as static here.
        """


class NullFleet:
    """A fleet without a server."""

    def users(self, kind: Kind, name: str) -> list[str]:  # noqa: ARG002 - nobody uses any
        """Return nothing."""
        return []

    def group_changed(self, kind: Kind, name: str, changed: Mapping[str, ApplyType]) -> None:
        """Apply nothing to nobody."""


@dataclass(frozen=True, slots=True)
class Service:
    """RDS in one region, as an operation sees it.

    In the sandbox's own region the fleet is the real one. In every other region the store begins empty and the fleet is
    ``NullFleet``: so an operation that reads looks into ``store`` for its records, and one that needs servers says
    ``needs_servers``.

    Attributes:
        store: the records.
        groups: the parameter groups over that store.
        fleet: the servers.
        region: the one the request is signed for.
        account: AWS's number of the account.
        consistency: what describes show of a change, and when.
    """

    store: Store
    groups: Groups
    fleet: Fleet
    region: str = REGION
    account: str = ACCOUNT
    consistency: Consistency = field(default_factory=Consistency)

    def arn(self, kind: str, name: str) -> str:
        """Return the ARN of a resource: KIND is ``cluster``, ``db``, ``pg``, ``cluster-pg``, ``subgrp`` …."""
        return f"arn:aws:rds:{self.region}:{self.account}:{kind}:{name}"


Operation = Callable[[Service, Parameters], Result]


@dataclass(frozen=True, slots=True)
class _Entry:
    function: Operation
    needs_servers: bool


_registry: dict[str, _Entry] = {}
# Return every resource of a kind as it is described, by identifier.
_views: dict[Kind, Callable[[Service], dict[str, Result]]] = {}
# What a call works on, by the parameter that names it: the kind, and how it is refused while it is busy.
_BUSY: Final = {
    "DBInstanceIdentifier": ("instance", "InvalidDBInstanceStateFault", "Instance"),
    "DBClusterIdentifier": ("cluster", "InvalidDBClusterStateFault", "Cluster"),
}
_BUSY_GROUPS: Final = {"DBParameterGroupName": "instance-group", "DBClusterParameterGroupName": "cluster-group"}
_READ_ONLY: Final = ("Describe", "List")


def operation(name: str, *, needs_servers: bool = False) -> Callable[[Operation], Operation]:
    """Register the function that answers an operation.

    Args:
        name: as the service model has it: ``CreateDBParameterGroup``.
        needs_servers: refused in a region that is not the sandbox's, where there are none.
    """

    def register(function: Operation) -> Operation:
        if name in _registry:
            raise ValueError(f"{name} is answered twice")
        _registry[name] = _Entry(function, needs_servers)
        return function

    return register


def known() -> frozenset[str]:
    """Return the operations that are answered."""
    return frozenset(_registry)


def dispatch(service: Service, request: Request) -> Result:
    """Carry out a request.

    Raises:
        Fault: the answer is an error.
    """
    entry = _registry.get(request.operation)
    if entry is None:
        raise fault("NotImplemented", f"The sandbox does not have the operation {request.operation}.")
    if entry.needs_servers and isinstance(service.fleet, NullFleet):
        raise fault("NotImplemented", f"The sandbox has no servers in {service.region}.")
    if request.operation.startswith(_READ_ONLY):
        return entry.function(service, request.parameters)
    _refuse_busy(service, request)
    delays = service.consistency.delays
    if not delays.lag_seconds and not delays.not_found_seconds:
        return _noted(service, request, entry.function(service, request.parameters))
    before = _every(service)
    answer = entry.function(service, request.parameters)
    service.consistency.changed(before, _every(service))
    return _noted(service, request, answer)


def view(kind: Kind) -> Callable[[Callable[[Service], dict[str, Result]]], Callable[[Service], dict[str, Result]]]:
    """Register the function that describes every resource of a kind as it is."""

    def register(function: Callable[[Service], dict[str, Result]]) -> Callable[[Service], dict[str, Result]]:
        _views[kind] = function
        return function

    return register


def _every(service: Service) -> dict[tuple[Kind, str], Result]:
    return {(kind, name): described for kind, every in _views.items() for name, described in every(service).items()}


def _refuse_busy(service: Service, request: Request) -> None:
    for parameter, (kind, code, noun) in _BUSY.items():
        if service.consistency.is_busy(kind, str(request.parameters.get(parameter, "")).lower()):
            raise fault(code, f"{noun} cannot currently be changed due to an in-progress management operation.")
    if request.operation.startswith(("Reset", "Delete")):
        for parameter, kind in _BUSY_GROUPS.items():
            name = str(request.parameters.get(parameter, "")).lower()
            if service.consistency.is_busy(kind, name):
                raise fault("InvalidDBParameterGroupStateFault", f"Parameter group {name} has pending changes.")


def _noted(service: Service, request: Request, answer: Result) -> Result:
    """Note that a parameter group was changed."""
    if request.operation.startswith(("Modify", "Reset")) and "ParameterGroup" in request.operation:
        for parameter, kind in _BUSY_GROUPS.items():
            if name := request.parameters.get(parameter):
                service.consistency.settled(kind, [str(name).lower()])
    return answer
